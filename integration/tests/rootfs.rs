//! The root file system: read-only root, masked and read-only paths, devices.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;

use kiln_integration::{Bundle, json};

#[test]
fn the_root_is_the_bundles() {
    let bundle = Bundle::sh("cat /mark; ls /; test ! -e /etc/debian_version");
    fs::write(bundle.rootfs().join("mark"), "mark\n").unwrap();
    let outcome = bundle.container().run().ok();
    assert!(outcome.stdout.starts_with("mark\nbin\ndev\netc\nmark\nproc\n"), "{outcome}");
}

#[test]
fn a_read_only_root() {
    let outcome = Bundle::sh("touch /x").container().run().exits(1);
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome}");
}

#[test]
fn a_writable_root() {
    let c = Bundle::sh("echo x > /made").writable().container();
    c.run().ok();
    assert_eq!(fs::read_to_string(c.bundle.rootfs().join("made")).unwrap(), "x\n");
}

#[test]
fn a_read_only_root_leaves_other_mounts_writable() {
    let c = Bundle::sh("touch /mnt/x /dev/shm/x").mount("/mnt", "tmpfs", "tmpfs", &[]);
    c.container().run().ok();
}

#[test]
fn an_absolute_root_path() {
    let bundle = Bundle::sh("exit 6");
    let rootfs = bundle.rootfs();
    bundle.set("/root/path", json!(rootfs)).container().run().exits(6);
}

#[test]
fn the_parent_of_the_root_is_the_root() {
    let c = Bundle::sh("cd /../../..; pwd -P; ls -di / /.. | awk '{print $1}' | uniq | wc -l");
    c.container().run().ok().prints("/\n1\n");
}

#[test]
fn masked_paths_show_nothing() {
    let script = "cat /etc/secret; ls /etc/hidden; echo x > /etc/hidden/x || echo refused";
    let bundle = Bundle::sh(script).writable();
    fs::write(bundle.rootfs().join("etc/secret"), "secret").unwrap();
    fs::create_dir(bundle.rootfs().join("etc/hidden")).unwrap();
    fs::write(bundle.rootfs().join("etc/hidden/file"), "secret").unwrap();
    let masked = json!(["/etc/secret", "/etc/hidden", "/no/such/path"]);
    bundle.set("/linux/maskedPaths", masked).container().run().ok().prints("refused\n");
}

#[test]
fn the_default_masked_paths() {
    let script = "cat /proc/keys /proc/timer_list; ls /sys/firmware /proc/scsi 2>&1; \
        head -c 1 /proc/kcore | wc -c";
    let outcome = Bundle::sh(script).container().run().ok();
    let outcome = outcome.shows("0\n");
    let shown = outcome.stdout.lines().filter(|line| !line.contains("No such file")).count();
    // The names of the two folders and the empty line between, if both are there.
    assert!(shown <= 4, "{outcome}");
}

#[test]
fn read_only_paths() {
    let script = "cat /etc/conf/a; echo x > /etc/conf/a; echo x > /etc/conf/new; \
        echo 1 > /proc/sys/kernel/ns_last_pid; echo x > /etc/file; echo ok > /etc/other";
    let bundle = Bundle::sh(script).writable();
    fs::create_dir(bundle.rootfs().join("etc/conf")).unwrap();
    fs::write(bundle.rootfs().join("etc/conf/a"), "a\n").unwrap();
    fs::write(bundle.rootfs().join("etc/file"), "").unwrap();
    let paths = json!(["/etc/conf", "/etc/file", "/proc/sys", "/no/such/path"]);
    let c = bundle.set("/linux/readonlyPaths", paths).container();
    let outcome = c.run().ok().prints("a\n");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 4, "{outcome}");
}

#[test]
fn a_masked_path_through_a_link_stays_inside() {
    let bundle = Bundle::sh("cat /link");
    let outside = bundle.scratch().join("outside");
    fs::write(&outside, "outside").unwrap();
    symlink(&outside, bundle.rootfs().join("link")).unwrap();
    let c = bundle.set("/linux/maskedPaths", json!(["/link"])).container();
    c.run();
    assert_eq!(fs::read_to_string(outside).unwrap(), "outside");
}

#[test]
fn the_default_devices() {
    let script = "for d in null zero full random urandom tty; do \
        stat -c '%n %F %t:%T %a' /dev/$d; done";
    let expected: String =
        ["null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"]
            .iter()
            .map(|device| device.split_once(' ').unwrap())
            .map(|(name, number)| format!("/dev/{name} character special file {number} 666\n"))
            .collect();
    Bundle::sh(script).container().run().ok().prints(&expected);
}

#[test]
fn the_default_devices_work() {
    let script = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; \
        head -c 5 /dev/urandom | wc -c; echo x > /dev/full || echo full";
    let outcome = Bundle::sh(script).container().run().ok();
    outcome.prints("3\n5\nfull\n");
}

#[test]
fn the_links_in_dev() {
    let script = "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done";
    let links = "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    Bundle::sh(script).container().run().ok().prints(links);
}

#[test]
fn devices_of_the_config() {
    let script = "stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/deep/block /dev/pipe \
        /srv/raw";
    let devices = json!([
        { "path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640,
          "uid": 7, "gid": 8 },
        { "path": "/dev/deep/block", "type": "b", "major": 7, "minor": 200, "fileMode": 0o600 },
        { "path": "/dev/pipe", "type": "p", "fileMode": 0o622 },
        { "path": "/srv/raw", "type": "u", "major": 1, "minor": 5 },
    ]);
    let c = Bundle::sh(script).writable().set("/linux/devices", devices).container();
    c.run().ok().prints(
        "/dev/mine character special file 1:3 640 7:8\n\
        /dev/deep/block block special file 7:c8 600 0:0\n\
        /dev/pipe fifo 0:0 622 0:0\n\
        /srv/raw character special file 1:5 666 0:0\n",
    );
}

#[test]
fn a_device_of_the_config_replaces_a_default_one() {
    let device = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 5,
        "fileMode": 0o600 }]);
    let c = Bundle::sh("stat -c '%t:%T %a' /dev/null").set("/linux/devices", device);
    c.container().run().ok().prints("1:5 600\n");
}

#[test]
fn devices_without_a_mount_on_dev() {
    let mut bundle = Bundle::sh("stat -c %F /dev/null && echo x > /dev/null").writable();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    bundle.container().run().ok().prints("character special file\n");
}

/// An image must not choose what the runtime writes through.
#[test]
fn a_link_in_place_of_a_device_is_not_followed() {
    let mut bundle = Bundle::new().writable();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let outside = bundle.scratch().join("outside");
    symlink(&outside, bundle.rootfs().join("dev/null")).unwrap();
    let c = bundle.container();
    c.run();
    assert!(!outside.exists());
}

#[test]
fn a_bind_mounted_dev_is_left_alone() {
    let mut bundle = Bundle::sh("ls /dev");
    let dev = bundle.scratch().join("dev");
    fs::create_dir(&dev).unwrap();
    fs::write(dev.join("mine"), "").unwrap();
    fs::write(dev.join("null"), "").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let c = bundle.bind(&dev, "/dev", &["bind"]).container();
    c.run().ok().prints("mine\nnull\n");
}

#[test]
fn the_working_directory_is_made_if_missing() {
    let bundle = Bundle::sh("pwd").set("/process/cwd", json!("/new/work")).writable();
    bundle.container().run().ok().prints("/new/work\n");
}
