//! Mounts: types, options, destinations, recursive attributes, id mapping.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kiln_integration::hostmount::HostMount;
use kiln_integration::proc::{Mount, parse_mountinfo};
use kiln_integration::{Bundle, cgroup, json, kiln_only, skip};

/// The mount that the container sees at `at`, the topmost one.
#[track_caller]
fn seen(bundle: Bundle, at: &str) -> Mount {
    let mounts = all_seen(bundle);
    let found = mounts.iter().rfind(|mount| mount.point == Path::new(at));
    found.unwrap_or_else(|| panic!("no mount on {at} in {mounts:#?}")).clone()
}

#[track_caller]
fn all_seen(bundle: Bundle) -> Vec<Mount> {
    let c = bundle.args(&["cat", "/proc/self/mountinfo"]).container();
    parse_mountinfo(&c.run().ok().stdout)
}

#[track_caller]
fn has(mount: &Mount, options: &[&str]) {
    for option in options {
        assert!(mount.options.iter().any(|own| own == option), "no {option} in {mount:?}");
    }
}

#[track_caller]
fn lacks(mount: &Mount, options: &[&str]) {
    for option in options {
        assert!(!mount.options.iter().any(|own| own == option), "{option} in {mount:?}");
    }
}

/// A folder on the host with a file, and a tmpfs below it with another file.
fn tree(bundle: &mut Bundle) -> PathBuf {
    let top = bundle.scratch().join("tree");
    fs::create_dir_all(&top).unwrap();
    fs::write(top.join("file"), "top").unwrap();
    bundle.hold(HostMount::tmpfs(top.join("sub")));
    fs::write(top.join("sub/file"), "sub").unwrap();
    top
}

/// runc's mount order tests: a source below the rootfs shows what was mounted there before.
#[test]
fn a_source_in_the_container() {
    kiln_only!("older runc and crun do it without a user namespace only");
    for user_namespace in [false, true] {
        let bundle = Bundle::sh("cat /final/sub/file; readlink /final/out");
        let from = bundle.scratch().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir_all(bundle.scratch().join("more")).unwrap();
        fs::write(bundle.scratch().join("more/file"), "more\n").unwrap();
        std::os::unix::fs::symlink("/", from.join("out")).unwrap();
        let more = bundle.scratch().join("more");
        let top = bundle.rootfs().join("mnt");
        let bundle = match user_namespace {
            true => bundle.user_namespace(200_000),
            false => bundle,
        };
        let bundle = bundle.bind(&from, "/mnt", &["rbind"]).bind(&more, "/mnt/sub", &["rbind"]);
        bundle.bind(&top, "/final", &["rbind"]).container().run().ok().prints("more\n/\n");
    }
}

#[test]
fn the_default_mounts_are_there() {
    let mounts = all_seen(Bundle::new());
    for (at, kind, options) in [
        ("/proc", "proc", vec![]),
        ("/dev", "tmpfs", vec!["nosuid"]),
        ("/dev/pts", "devpts", vec!["nosuid", "noexec"]),
        ("/dev/shm", "tmpfs", vec!["nosuid", "noexec", "nodev"]),
        ("/dev/mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", vec!["nosuid", "noexec", "nodev", "ro"]),
    ] {
        let mount = mounts.iter().find(|mount| mount.point == Path::new(at)).unwrap();
        assert_eq!(mount.kind, kind, "{at}");
        has(mount, &options);
    }
}

/// The host's tree must be gone, not hidden below.
#[test]
fn nothing_of_the_hosts_mounts_is_seen() {
    let mounts = all_seen(Bundle::new());
    assert_eq!(mounts[0].point, Path::new("/"), "{mounts:#?}");
    let roots = mounts.iter().filter(|mount| mount.point == Path::new("/")).count();
    assert_eq!(roots, 1, "{mounts:#?}");
    assert!(mounts[0].root.ends_with("bundle/rootfs"), "{mounts:#?}");
}

#[test]
fn bind_of_a_folder() {
    let bundle = Bundle::sh("cat /mnt/file && echo changed > /mnt/file");
    let source = bundle.scratch().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    let c = bundle.bind(&source, "/mnt", &["bind"]).writable().container();
    c.run().ok().prints("content\n");
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "changed\n");
}

#[test]
fn bind_of_a_file_makes_its_destination() {
    let bundle = Bundle::sh("cat /new/folder/file");
    let source = bundle.scratch().join("file");
    fs::write(&source, "content\n").unwrap();
    let c = bundle.bind(&source, "/new/folder/file", &["bind"]).container();
    c.run().ok().prints("content\n");
}

#[test]
fn bind_makes_the_destination_folder_with_mode_755() {
    let bundle =
        Bundle::sh("stat -c %a /new/folder /new").mount("/new/folder/deep", "tmpfs", "tmpfs", &[]);
    bundle.container().run().ok().prints("755\n755\n");
}

#[test]
fn bind_options_are_applied() {
    let bundle = Bundle::new();
    let source = bundle.scratch();
    let options = ["bind", "ro", "nosuid", "nodev", "noexec", "noatime"];
    let mount = seen(bundle.bind(&source, "/mnt", &options), "/mnt");
    has(&mount, &["ro", "nosuid", "nodev", "noexec", "noatime"]);
}

#[test]
fn a_read_only_bind_cannot_be_written() {
    let bundle = Bundle::sh("touch /mnt/x");
    let source = bundle.scratch();
    let c = bundle.bind(&source, "/mnt", &["bind", "ro"]).container();
    let outcome = c.run().exits(1);
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome}");
}

#[test]
fn a_noexec_mount_cannot_be_executed_from() {
    let bundle = Bundle::sh("/mnt/busybox true");
    let source = bundle.rootfs().join("bin");
    let c = bundle.bind(&source, "/mnt", &["bind", "noexec"]).container();
    let outcome = c.run().exits(126);
    assert!(outcome.stderr.contains("Permission denied"), "{outcome}");
}

/// The kernel locks them there, and a remount that drops one fails.
#[test]
fn a_bind_in_a_user_namespace_keeps_the_flags_of_its_source() {
    kiln_only!("fixed in 1.1.6");
    let mut bundle = Bundle::new().user_namespace(200_000);
    let source = bundle.scratch().join("locked");
    bundle.hold(HostMount::tmpfs(&source));
    let flags = rustix::mount::MountFlags::NOEXEC | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount_remount(&source, flags, "").unwrap();
    let mount = seen(bundle.bind(&source, "/mnt", &["bind", "ro"]), "/mnt");
    has(&mount, &["ro", "noexec", "nodev"]);
}

#[test]
fn bind_leaves_out_what_is_mounted_below() {
    let mut bundle = Bundle::sh("cat /mnt/file; ls /mnt/sub");
    let top = tree(&mut bundle);
    let c = bundle.bind(top, "/mnt", &["bind"]).container();
    c.run().ok().prints("top");
}

#[test]
fn rbind_takes_what_is_mounted_below() {
    let mut bundle = Bundle::sh("cat /mnt/file /mnt/sub/file");
    let top = tree(&mut bundle);
    let c = bundle.bind(top, "/mnt", &["rbind"]).container();
    c.run().ok().prints("topsub");
}

#[test]
fn ro_holds_for_the_top_only() {
    let mut bundle = Bundle::sh("touch /mnt/sub/x && touch /mnt/x");
    let top = tree(&mut bundle);
    let c = bundle.bind(&top, "/mnt", &["rbind", "ro"]).container();
    c.run().exits(1);
    assert!(top.join("sub/x").exists() && !top.join("x").exists());
}

#[test]
fn rro_holds_for_everything_below() {
    let mut bundle = Bundle::sh("touch /mnt/x; touch /mnt/sub/x");
    let top = tree(&mut bundle);
    let c = bundle.bind(&top, "/mnt", &["rbind", "rro"]).container();
    c.run().exits(1);
    assert!(!top.join("sub/x").exists() && !top.join("x").exists());
}

#[test]
fn other_recursive_attributes() {
    let mut bundle = Bundle::new();
    let top = tree(&mut bundle);
    let options = ["rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime"];
    let mounts = all_seen(bundle.bind(&top, "/mnt", &options));
    for at in ["/mnt", "/mnt/sub"] {
        let mount = mounts.iter().find(|mount| mount.point == Path::new(at)).unwrap();
        has(mount, &["nosuid", "nodev", "noexec", "noatime"]);
    }
}

#[test]
fn rnosymfollow_stops_links_below() {
    let mut bundle = Bundle::sh("cat /mnt/sub/link");
    let top = tree(&mut bundle);
    symlink("file", top.join("sub/link")).unwrap();
    bundle.bind(&top, "/mnt", &["rbind", "rnosymfollow"]).container().run().exits(1);
}

#[test]
fn tmpfs_has_its_size_and_mode() {
    let bundle = Bundle::sh("stat -c %a /mnt; df -k /mnt | tail -1 | awk '{print $2}'");
    let bundle = bundle.mount("/mnt", "tmpfs", "tmpfs", &["size=1024k", "mode=0710"]);
    bundle.container().run().ok().prints("710\n1024\n");
}

#[test]
fn a_full_tmpfs_refuses_more() {
    let bundle = Bundle::sh("dd if=/dev/zero of=/mnt/x bs=64k count=32");
    let c = bundle.mount("/mnt", "tmpfs", "tmpfs", &["size=1m"]).container();
    let outcome = c.run().exits(1);
    assert!(outcome.stderr.contains("No space left"), "{outcome}");
}

#[test]
fn tmpfs_keeps_the_mode_of_what_it_covers() {
    let bundle = Bundle::sh("stat -c %a /covered");
    let covered = bundle.rootfs().join("covered");
    fs::create_dir(&covered).unwrap();
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o1730)).unwrap();
    bundle.mount("/covered", "tmpfs", "tmpfs", &[]).container().run().ok().prints("1730\n");
    let c = Bundle::sh("stat -c %a /uncovered").mount("/uncovered", "tmpfs", "tmpfs", &[]);
    c.container().run().ok().prints("1777\n");
}

#[test]
fn tmpfs_is_read_only_if_told() {
    let mount = seen(Bundle::new().mount("/mnt", "tmpfs", "tmpfs", &["ro", "noexec"]), "/mnt");
    has(&mount, &["ro", "noexec"]);
}

#[test]
fn tmpcopyup_brings_the_covered_files() {
    let script = "cat /data/a /data/deep/b; readlink /data/link; stat -c %a:%u /data/a; \
        echo new > /data/a";
    let bundle = Bundle::sh(script);
    let data = bundle.rootfs().join("data");
    fs::create_dir_all(data.join("deep")).unwrap();
    fs::write(data.join("a"), "a\n").unwrap();
    fs::write(data.join("deep/b"), "b\n").unwrap();
    symlink("a", data.join("link")).unwrap();
    fs::set_permissions(data.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(data.join("a"), Some(7), Some(8)).unwrap();
    let bundle = bundle.mount("/data", "tmpfs", "tmpfs", &["tmpcopyup"]).writable();
    let bundle = bundle.capabilities(&["CAP_DAC_OVERRIDE"]);
    let c = bundle.container();
    c.run().ok().prints("a\nb\na\n640:7\n");
    assert_eq!(fs::read_to_string(data.join("a")).unwrap(), "a\n", "the original is untouched");
}

#[test]
fn a_second_proc_and_sysfs() {
    let bundle = Bundle::sh("cat /p/1/comm; ls /s/class/net");
    let bundle = bundle.mount("/p", "proc", "proc", &[]).mount("/s", "sysfs", "sysfs", &["ro"]);
    bundle.container().run().ok().prints("sh\nlo\n");
}

#[test]
fn mqueue_is_of_the_containers_ipc_namespace() {
    let bundle = Bundle::sh("touch /dev/mqueue/queue && ls /dev/mqueue");
    bundle.container().run().ok().prints("queue\n");
    assert!(!Path::new("/dev/mqueue/queue").exists());
}

#[test]
fn the_cgroup_mount_shows_the_containers_own_cgroup() {
    for namespace in [true, false] {
        let script = "cd /sys/fs/cgroup; test -d pids && cd pids; grep -c . cgroup.procs; \
            touch cgroup.procs; mkdir made";
        let bundle = Bundle::sh(script);
        let bundle = match namespace {
            true => bundle.namespace("cgroup", None),
            false => bundle.without_namespace("cgroup"),
        };
        let c = bundle.container();
        let outcome = c.run().exits(1);
        // sh and grep: not one of the host's processes.
        let outcome = outcome.prints("2\n");
        assert!(outcome.stderr.contains("Read-only file system"), "{outcome}");
    }
}

#[test]
fn every_cgroup_hierarchy_is_there() {
    if cgroup::is_v2() {
        skip!("v2 is one hierarchy, and the container sees its own part only");
    }
    let c = Bundle::sh("ls /sys/fs/cgroup").container();
    let outcome = c.run().ok();
    // A directory without a mount is what others have left there.
    for hierarchy in cgroup::hierarchies() {
        // v2 beside v1 (`unified`) is where runtimes differ.
        let name = hierarchy.file_name().unwrap().to_str().unwrap();
        if name != "unified" {
            assert!(outcome.stdout.lines().any(|line| line == name), "no {name}: {outcome}");
        }
    }
}

#[test]
fn mounts_are_made_in_order() {
    let bundle = Bundle::sh("ls /a /a/b");
    let bundle = bundle.mount("/a", "tmpfs", "tmpfs", &[]).mount("/a/b", "tmpfs", "tmpfs", &[]);
    bundle.container().run().ok().prints("/a:\nb\n\n/a/b:\n");
}

#[test]
fn a_later_mount_covers_an_earlier_one() {
    let bundle = Bundle::sh("ls /a");
    let source = bundle.scratch();
    fs::write(source.join("seen"), "").unwrap();
    let bundle = bundle.mount("/a", "tmpfs", "tmpfs", &[]).bind(&source, "/a", &["bind"]);
    bundle.container().run().ok().prints("seen\n");
}

#[test]
fn a_destination_with_dots_is_inside() {
    let mount = seen(Bundle::new().mount("/../../mnt/./x", "tmpfs", "tmpfs", &[]), "/mnt/x");
    assert_eq!(mount.kind, "tmpfs");
}

/// CVE-2021-30465 and its kin: the rootfs is the image's, so are its links.
#[test]
fn a_destination_through_links_stays_inside() {
    for target in ["{scratch}", "../../../../../../../..{scratch}", "/proc/self/cwd/../..{scratch}"]
    {
        let bundle = Bundle::new();
        let scratch = bundle.scratch();
        let target = target.replace("{scratch}", scratch.to_str().unwrap());
        symlink(&target, bundle.rootfs().join("evil")).unwrap();
        let c = bundle.mount("/evil/x", "tmpfs", "tmpfs", &[]);
        let c = c.args(&["cat", "/proc/self/mountinfo"]).container();
        c.run();
        let outside: Vec<_> = fs::read_dir(&scratch).unwrap().flatten().collect();
        assert!(outside.is_empty(), "{target}: {outside:?}");
    }
}

#[test]
fn a_link_as_the_destination_is_followed_inside() {
    let bundle = Bundle::new();
    symlink("/real", bundle.rootfs().join("link")).unwrap();
    let mount = seen(bundle.mount("/link", "tmpfs", "tmpfs", &[]), "/real");
    assert_eq!(mount.kind, "tmpfs");
}

#[test]
fn proc_cannot_be_mounted_on_a_link() {
    let bundle = Bundle::new();
    fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    symlink("/tmp", bundle.rootfs().join("proc")).unwrap();
    let c = bundle.container();
    c.create().fails(&["proc"]);
    c.assert_nothing_left();
}

#[test]
fn options_that_undo_others() {
    let bundle = Bundle::new();
    let source = bundle.scratch();
    let options = ["bind", "ro", "rw", "nosuid", "suid", "noexec", "exec"];
    let mount = seen(bundle.bind(&source, "/mnt", &options), "/mnt");
    has(&mount, &["rw"]);
    lacks(&mount, &["ro", "nosuid", "noexec"]);
}

#[test]
fn a_read_only_dev_is_filled_first() {
    let bundle = Bundle::sh(
        "echo x > /dev/null; test -c /dev/pts/ptmx && touch /dev/new 2>/dev/null || echo ro",
    );
    let mounts = bundle.config["mounts"].as_array().unwrap();
    let dev = mounts.iter().position(|mount| mount["destination"] == "/dev").unwrap();
    let c = bundle.push(&format!("/mounts/{dev}/options"), json!("ro")).container();
    c.run().ok().prints("ro\n");
}

#[test]
fn a_destination_below_the_rootfs_on_the_host_is_the_place_inside() {
    let bundle = Bundle::sh("cat /in/file");
    let data = bundle.scratch();
    fs::write(data.join("file"), "inside\n").unwrap();
    let destination = bundle.rootfs().join("in");
    let mount = json!({ "destination": destination, "source": data, "options": ["bind"] });
    bundle.push("/mounts", mount).container().run().ok().prints("inside\n");
}

#[test]
fn a_file_is_bound_where_a_dangling_symlink_leads() {
    let bundle = Bundle::sh("cat /run/late/hosts; readlink /hosts");
    let data = bundle.scratch().join("file");
    fs::write(&data, "bound\n").unwrap();
    symlink("/run/late/hosts", bundle.rootfs().join("hosts")).unwrap();
    let mount = json!({ "destination": "/hosts", "source": data, "options": ["bind"] });
    bundle.push("/mounts", mount).container().run().ok().prints("bound\n/run/late/hosts\n");
}

#[test]
fn a_relative_source_is_the_bundles() {
    let bundle = Bundle::sh("cat /in/file");
    let data = bundle.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "bundle\n").unwrap();
    let c = bundle.bind("data", "/in", &["bind"]).container();
    c.run_cli(&[]).dir("/").output().ok().prints("bundle\n");
}
