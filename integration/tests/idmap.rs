//! Id-mapped mounts: `uidMappings`, `gidMappings`, `idmap` and `ridmap`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use kiln_integration::hostmount::HostMount;
use kiln_integration::{Bundle, json, kiln_only, skip};

/// A folder on the host with a file, and a tmpfs below it with another file.
fn tree(bundle: &mut Bundle) -> PathBuf {
    let top = bundle.scratch().join("tree");
    fs::create_dir_all(&top).unwrap();
    fs::write(top.join("file"), "top").unwrap();
    bundle.hold(HostMount::tmpfs(top.join("sub")));
    fs::write(top.join("sub/file"), "sub").unwrap();
    top
}

fn map(container: u32, host: u32) -> kiln_integration::Value {
    json!([{ "containerID": container, "hostID": host, "size": 1000 }])
}

#[test]
fn an_idmapped_mount_shows_other_owners() {
    kiln_only!("maps no mounts");
    let bundle = Bundle::sh("stat -c %u:%g /mnt/file; stat -c %u:%g /etc");
    let source = bundle.scratch();
    fs::write(source.join("file"), "").unwrap();
    let bundle = bundle.bind(&source, "/mnt", &["rbind"]);
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    let bundle = bundle
        .set(&format!("/mounts/{last}/uidMappings"), map(0, 5000))
        .set(&format!("/mounts/{last}/gidMappings"), map(0, 6000));
    bundle.container().run().ok().prints("5000:6000\n0:0\n");
}

#[test]
fn an_idmapped_mount_in_a_user_namespace() {
    kiln_only!("maps no mounts");
    let bundle = Bundle::sh("stat -c %u:%g /mnt/file; echo x > /mnt/made");
    let source = bundle.scratch();
    fs::write(source.join("file"), "").unwrap();
    let bundle = bundle.user_namespace(200_000).bind(&source, "/mnt", &["bind"]);
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    let bundle = bundle
        .set(&format!("/mounts/{last}/uidMappings"), map(0, 200_000))
        .set(&format!("/mounts/{last}/gidMappings"), map(0, 200_000));
    let c = bundle.container();
    c.run().ok().prints("0:0\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(source.join("made")).unwrap().uid(), 0, "on the host");
}

#[test]
fn ridmap_maps_everything_below() {
    kiln_only!("maps no mounts");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap());
    if (numbers.next().unwrap(), numbers.next().unwrap()) < (6, 3) {
        skip!("a tmpfs cannot be mapped before Linux 6.3");
    }
    for (option, below) in [("idmap", "0:0"), ("ridmap", "5000:5000")] {
        let mut bundle = Bundle::sh("stat -c %u:%g /mnt/file /mnt/sub/file");
        let top = tree(&mut bundle);
        let bundle = bundle.bind(&top, "/mnt", &["rbind", option]);
        let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
        let bundle = bundle
            .set(&format!("/mounts/{last}/uidMappings"), map(0, 5000))
            .set(&format!("/mounts/{last}/gidMappings"), map(0, 5000));
        bundle.container().run().ok().prints(&format!("5000:5000\n{below}\n"));
    }
}

#[test]
fn uid_mappings_alone_are_an_error() {
    kiln_only!("maps no mounts");
    let bundle = Bundle::new();
    let source = bundle.scratch();
    let bundle = bundle.bind(&source, "/mnt", &["bind"]);
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    let c = bundle.set(&format!("/mounts/{last}/uidMappings"), map(0, 5000)).container();
    c.create().fails(&["gidMappings"]);
    c.assert_nothing_left();
}
