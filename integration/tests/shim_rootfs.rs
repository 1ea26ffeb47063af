//! The rootfs that containerd-shim-kiln-v1 mounts, with options that `ctr` of 1.x does not send.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use containerd_shim_protos::ttrpc::proto::Code;
use containerd_shim_protos::types::mount::Mount;
use kiln_integration::shim::Shim;
use kiln_integration::ttrpc::refused;
use kiln_integration::{Bundle, needs_shim, proc};

/// Where the container's ids begin on the host.
const IDS: u32 = 200_000;

/// A shim for a container in a user namespace, whose image is in a folder beside the bundle and
/// root's. It exits with 9 if it finds it so, and can write.
fn with_image() -> (Shim, PathBuf) {
    let script = "[ $(stat -c %u:%g /bin/busybox /bin | uniq) = 0:0 ] && touch /made && exit 9";
    let bundle = Bundle::sh(script).writable().user_namespace(IDS);
    let image = bundle.scratch().join("image");
    fs::rename(bundle.rootfs(), &image).unwrap();
    fs::create_dir(bundle.rootfs()).unwrap();
    chown(&image, Some(0), Some(0)).unwrap();
    (Shim::start(bundle), image)
}

fn mount(kind: &str, source: &str, options: &[String]) -> Mount {
    let mut mount = Mount::new();
    (mount.type_, mount.source) = (kind.to_owned(), source.to_owned());
    mount.options = options.to_vec();
    mount
}

fn maps() -> [String; 2] {
    ["uidmap", "gidmap"].map(|name| format!("{name}=0:{IDS}:65536"))
}

/// As the overlay snapshotter of containerd 2.x has it: the layers are root's, what is written is
/// the container's.
#[test]
fn the_ids_of_layers_are_mapped() {
    needs_shim!();
    let (shim, image) = with_image();
    let [upper, work, empty] = ["upper", "work", "empty"].map(|name| {
        let dir = image.with_file_name(name);
        fs::create_dir(&dir).unwrap();
        dir
    });
    chown(&upper, Some(IDS), Some(IDS)).unwrap();
    let mut options = vec![
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
        format!("lowerdir={}:{}", empty.display(), image.display()),
    ];
    options.extend(maps());
    let mut request = shim.request(&shim.id);
    request.rootfs = vec![mount("overlay", "overlay", &options)];
    let mut client = shim.client();
    client.create(&request).unwrap();
    let below = |path: &str| shim.bundle(&shim.id).join(path);
    let mounted = |path: &str| proc::mounts("self").iter().any(|one| one.point == below(path));
    assert!(mounted("rootfs") && !mounted("layers") && !below("layers").exists());
    client.start(&shim.id, "").unwrap();
    assert_eq!(client.wait(&shim.id, ""), Ok(9));
    assert_eq!(fs::metadata(upper.join("made")).unwrap().uid(), IDS, "on the host");
    client.delete(&shim.id, "").unwrap();
    assert!(!mounted("rootfs"));
}

#[test]
fn the_ids_of_a_bind_mount_are_mapped() {
    needs_shim!();
    let (shim, image) = with_image();
    let mut options = vec!["rbind".to_owned(), "rw".to_owned()];
    options.extend(maps());
    let mut request = shim.request(&shim.id);
    request.rootfs = vec![mount("bind", image.to_str().unwrap(), &options)];
    let mut client = shim.client();
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    assert_eq!(client.wait(&shim.id, ""), Ok(9));
    assert_eq!(fs::metadata(image.join("made")).unwrap().uid(), 0, "on the host");
    client.delete(&shim.id, "").unwrap();
}

#[test]
fn maps_that_are_none() {
    needs_shim!();
    let (shim, image) = with_image();
    let mut client = shim.client();
    // Not three numbers; without one for groups.
    for map in ["uidmap=0:1", "uidmap=0:1:1"] {
        let options = ["bind".to_owned(), map.to_owned()];
        let mut request = shim.request(&shim.id);
        request.rootfs = vec![mount("bind", image.to_str().unwrap(), &options)];
        refused(client.create(&request), Code::UNKNOWN, &["rootfs"]);
    }
}
