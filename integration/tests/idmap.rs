//! Id-mapped mounts: `uidMappings`, `gidMappings`, `idmap` and `ridmap`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use kiln_integration::hostmount::HostMount;
use kiln_integration::{Bundle, json, kiln_only, refused, skip};

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

/// config.md#mounts: without maps of its own, those of the container.
#[test]
fn an_idmapped_mount_takes_the_containers_maps() {
    kiln_only!("maps no mounts");
    let bundle = Bundle::sh("stat -c %u:%g /mnt/file; echo x > /mnt/made");
    let source = bundle.scratch();
    fs::write(source.join("file"), "").unwrap();
    let bundle = bundle.user_namespace(200_000).bind(&source, "/mnt", &["bind", "idmap"]);
    let c = bundle.container();
    c.run().ok().prints("0:0\n");
    assert_eq!(fs::metadata(source.join("made")).unwrap().uid(), 0, "on the host");
}

#[test]
fn an_idmapped_mount_takes_the_maps_of_a_joined_namespace() {
    kiln_only!("maps no mounts");
    let holder = Bundle::new().args(&["sleep", "100"]).user_namespace(200_000).container();
    holder.detach().ok();
    let path = format!("/proc/{}/ns/user", holder.pid());
    let bundle = Bundle::sh("stat -c %u:%g /mnt/file");
    let source = bundle.scratch();
    fs::write(source.join("file"), "").unwrap();
    let bundle = bundle.user_namespace(200_000).namespace("user", Some(&path));
    let bundle = bundle.unset("/linux/uidMappings").unset("/linux/gidMappings");
    bundle.bind(&source, "/mnt", &["bind", "idmap"]).container().run().ok().prints("0:0\n");
}

#[test]
fn an_idmapped_mount_without_any_maps_is_an_error() {
    kiln_only!("maps no mounts");
    let bundle = Bundle::new();
    let source = bundle.scratch();
    refused(bundle.bind(&source, "/mnt", &["bind", "idmap"]), &["/mnt", "needs maps"]);
    let bundle = Bundle::new().mount("/mnt", "tmpfs", "tmpfs", &[]);
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    let bundle = bundle.set(&format!("/mounts/{last}/uidMappings"), map(0, 5000));
    let bundle = bundle.set(&format!("/mounts/{last}/gidMappings"), map(0, 5000));
    refused(bundle, &[&format!("mounts[{last}]"), "only bind mounts"]);
}

/// Whatever the kernel would refuse, or take for something else, has a name.
#[test]
fn wrong_maps_are_named() {
    kiln_only!("words it otherwise");
    let range = |container: u64, host: u64, size: u64| json!({ "containerID": container, "hostID": host, "size": size });
    let first = range(0, 200_000, 65536);
    // More than 64 KiB as text.
    let many: Vec<_> = (0..5000).map(|n| range(n, 1_000_000_000 + 2 * n, 1)).collect();
    let long: Vec<_> = (0..340).map(|n| range(n, 1_000_000_000 + 2 * n, 1)).collect();
    let wrong = [
        (json!([first, range(65535, 300_000, 1)]), "linux.uidMappings[1].containerID"),
        (json!([first, range(65536, 200_100, 1)]), "linux.uidMappings[1].hostID"),
        (json!([range(0, 200_000, 0)]), "linux.uidMappings[0].size"),
        (json!([range(0, 4_294_967_290, 10)]), "linux.uidMappings[0].hostID"),
        (json!([range(4_294_967_290, 0, 10)]), "linux.uidMappings[0].containerID"),
        (json!(many), "linux.uidMappings: has 5000 ranges"),
        (json!(long), "bytes as a map"),
        (json!([]), "linux.uidMappings: is needed"),
    ];
    for (map, part) in wrong {
        refused(Bundle::new().user_namespace(200_000).set("/linux/uidMappings", map), &[part]);
    }
    // An id beyond 32 bits is no id.
    let map = json!([range(0, 1 << 32, 1)]);
    refused(Bundle::new().user_namespace(200_000).set("/linux/uidMappings", map), &["config.json"]);
}

#[test]
fn as_many_ranges_as_the_kernel_takes() {
    let many: Vec<_> = (0..300)
        .map(|n| json!({ "containerID": n, "hostID": 200_000 + 2 * n, "size": 1 }))
        .collect();
    let bundle = Bundle::sh("wc -l < /proc/self/uid_map").user_namespace(200_000);
    bundle.set("/linux/uidMappings", json!(many)).container().run().ok().prints("300\n");
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
