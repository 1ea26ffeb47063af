//! Mount propagation: of single mounts, of the root, and none to the host
//! unless asked for.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use kiln_integration::hostmount::HostMount;
use kiln_integration::proc::{self, parse_mountinfo};
use kiln_integration::{Bundle, Container, json, kiln_only};

/// A shared tmpfs on the host, in the bundle's scratch folder.
fn shared(bundle: &mut Bundle) -> PathBuf {
    let at = bundle.scratch().join("shared");
    bundle.hold(HostMount::tmpfs(&at).shared());
    fs::create_dir(at.join("sub")).unwrap();
    at
}

fn sleeping(bundle: Bundle) -> Container {
    let c = bundle.args(&["sleep", "100"]).container();
    c.detach().ok();
    c
}

/// Propagation fields of the mount on `at`, as the container sees it.
#[track_caller]
fn fields(bundle: Bundle, at: &str) -> Vec<String> {
    let c = bundle.args(&["cat", "/proc/self/mountinfo"]).container();
    let mounts = parse_mountinfo(&c.run().ok().stdout);
    let found = mounts.iter().rfind(|mount| mount.point == Path::new(at));
    found.unwrap_or_else(|| panic!("no mount on {at} in {mounts:#?}")).propagation.clone()
}

/// Whether a mount made on the host after create shows up inside.
fn host_mount_is_seen(options: &[&str]) -> bool {
    let mut bundle = Bundle::new();
    let at = shared(&mut bundle);
    let c = sleeping(bundle.bind(&at, "/mnt", options));
    let later = HostMount::tmpfs(at.join("sub"));
    let pid = c.pid().to_string();
    let seen = proc::mounts(&pid).iter().any(|mount| mount.point == Path::new("/mnt/sub"));
    drop(later);
    seen
}

#[test]
fn a_slave_sees_the_hosts_later_mounts() {
    assert!(host_mount_is_seen(&["rbind", "rslave"]));
    assert!(host_mount_is_seen(&["bind", "slave"]));
}

#[test]
fn a_private_mount_does_not() {
    assert!(!host_mount_is_seen(&["rbind", "rprivate"]));
    assert!(!host_mount_is_seen(&["bind", "private"]));
}

#[test]
fn the_host_does_not_see_the_containers_mounts() {
    for option in ["rprivate", "rslave"] {
        let mut bundle =
            Bundle::sh("mount -t tmpfs inner /mnt/sub && grep -c /mnt/sub /proc/mounts");
        let at = shared(&mut bundle);
        let bundle = bundle.bind(&at, "/mnt", &["rbind", option]);
        let c = bundle.capabilities(&["CAP_SYS_ADMIN"]).args(&[
            "sh",
            "-c",
            "mount -t tmpfs inner /mnt/sub && touch /mnt/sub/x",
        ]);
        let c = c.container();
        c.run().ok();
        assert!(!at.join("sub/x").exists(), "{option}");
    }
}

#[test]
fn a_shared_mount_shows_the_host_the_containers_mounts() {
    let script = "mount -t tmpfs inner /mnt/sub && touch /mnt/sub/x && sleep 100";
    let mut bundle = Bundle::new().capabilities(&["CAP_SYS_ADMIN"]);
    let at = shared(&mut bundle);
    let bundle = bundle.set("/linux/rootfsPropagation", json!("rshared"));
    let bundle = bundle.bind(&at, "/mnt", &["rbind", "rshared"]).args(&["sh", "-c", script]);
    let c = bundle.container();
    c.detach().ok();
    kiln_integration::eventually("the inner mount on the host", || at.join("sub/x").exists());
    c.delete_force().ok();
    rustix::mount::unmount(at.join("sub"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn propagation_is_shown_in_mountinfo() {
    for (option, field) in [("rslave", "master:"), ("rprivate", ""), ("runbindable", "unbindable")]
    {
        let mut bundle = Bundle::new();
        let at = shared(&mut bundle);
        let fields = fields(bundle.bind(&at, "/mnt", &["rbind", option]), "/mnt");
        match field {
            "" => assert!(fields.is_empty(), "{option}: {fields:?}"),
            _ => assert!(fields.iter().any(|own| own.starts_with(field)), "{option}: {fields:?}"),
        }
    }
}

/// The root's propagation, when the bundle's file system is shared on the host.
#[track_caller]
fn root_fields(propagation: Option<&str>) -> Vec<String> {
    let mut bundle = Bundle::new();
    let rootfs = bundle.rootfs();
    bundle.hold(HostMount::bind(&rootfs, &rootfs).shared());
    let bundle = match propagation {
        Some(value) => bundle.set("/linux/rootfsPropagation", json!(value)),
        None => bundle,
    };
    fields(bundle, "/")
}

#[test]
fn the_roots_propagation() {
    kiln_only!("makes the root's mount private after all");
    let starts = |fields: Vec<String>, with: &str| fields.iter().any(|own| own.starts_with(with));
    assert!(starts(root_fields(Some("shared")), "shared:"));
    assert!(starts(root_fields(Some("slave")), "master:"));
    assert!(starts(root_fields(Some("unbindable")), "unbindable"));
}

#[test]
fn a_private_root() {
    assert!(root_fields(Some("private")).is_empty());
}

#[test]
fn the_root_is_not_shared_by_default() {
    let fields = root_fields(None);
    assert!(!fields.iter().any(|own| own.starts_with("shared:")), "{fields:?}");
}

/// pivot_root and the unmount of the old root must not travel to the host,
/// whatever the propagation of the bundle's file system and of the config.
#[test]
fn the_hosts_mounts_are_what_they_were() {
    for propagation in ["shared", "slave", "private", "rshared", "rslave", "rprivate"] {
        let bundle = Bundle::new().set("/linux/rootfsPropagation", json!(propagation));
        let rootfs = bundle.rootfs();
        let mut bundle = bundle.mount("/mnt", "tmpfs", "tmpfs", &[]);
        bundle.hold(HostMount::bind(&rootfs, &rootfs).shared());
        let before = points_under(&rootfs);
        let c = bundle.container();
        c.run().ok();
        assert_eq!(points_under(&rootfs), before, "{propagation}");
    }
}

fn points_under(dir: &Path) -> Vec<PathBuf> {
    let points = proc::mounts("self").into_iter().map(|mount| mount.point);
    points.filter(|point| point.starts_with(dir)).collect()
}
