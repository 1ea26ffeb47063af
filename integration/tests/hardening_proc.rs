//! The kernel's files: what is masked stays masked, and what kiln writes to /proc goes where it is
//! meant, whatever an image has in its place (CVE-2019-16884, CVE-2019-19921, CVE-2023-27561,
//! CVE-2025-31133, CVE-2025-52881).

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use kiln_integration::{Bundle, Value, binary, json, proc};

/// Takes away the mounts whose destination begins so.
fn without_mounts(mut bundle: Bundle, prefix: &str) -> Bundle {
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with(prefix));
    bundle
}

/// Mode, owner, group and number of the host's null device.
fn null_device() -> [u64; 4] {
    let meta = fs::metadata("/dev/null").unwrap();
    [meta.mode().into(), meta.uid().into(), meta.gid().into(), meta.rdev()]
}

/// A masked file is the host's /dev/null, which uid 0 owns.
#[test]
fn a_masked_path_does_not_lead_to_the_hosts_null_device() {
    let before = null_device();
    let script = "for f in /etc/masked /proc/keys /proc/timer_list; do \
        chmod 600 $f; chown 1:1 $f; touch $f; done 2>/dev/null; \
        echo x > /etc/masked && cat /etc/masked && stat -c %t:%T /etc/masked";
    let bundle = Bundle::sh(script).capabilities(&["CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"]);
    fs::write(bundle.rootfs().join("etc/masked"), "secret").unwrap();
    let bundle = bundle.push("/linux/maskedPaths", json!("/etc/masked")).writable();
    let outcome = bundle.container().run();
    let after = null_device();
    if after != before {
        use std::os::unix::fs::{PermissionsExt, chown};
        fs::set_permissions("/dev/null", fs::Permissions::from_mode(0o666)).unwrap();
        chown("/dev/null", Some(0), Some(0)).unwrap();
    }
    assert_eq!(after, before, "{outcome}");
    if binary::is_kiln() {
        outcome.ok().prints("1:3\n");
    }
}

/// CVE-2025-31133: the image's /dev/null is not what masks.
#[test]
fn an_image_cannot_choose_what_masks() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let outside = outside.path();
    fs::write(outside, "outside\n").unwrap();
    for link in [outside.to_str().unwrap(), "/etc/other", "/proc/sys/kernel/core_pattern"] {
        let bundle = Bundle::sh("cat /etc/masked; stat -c '%F %t:%T' /etc/masked").writable();
        let bundle = bundle.set("/linux/maskedPaths", json!(["/etc/masked"]));
        let bundle = without_mounts(bundle, "/dev");
        fs::write(bundle.rootfs().join("etc/masked"), "secret").unwrap();
        fs::write(bundle.rootfs().join("etc/other"), "other\n").unwrap();
        symlink(link, bundle.rootfs().join("dev/null")).unwrap();
        let outcome = bundle.container().run();
        // Refused, or masked all the same.
        let masked = outcome.stdout == "character special file 1:3\n";
        assert!(masked || outcome.status.code() == Some(1), "{outcome}");
        assert!(!outcome.stdout.contains("secret"), "{outcome}");
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), "outside\n");
}

const KEY: &str = "net.ipv4.ip_forward";

/// A folder with a file where /proc/sys would have the sysctl, and where /proc/self/attr is.
fn fake_proc(bundle: &Bundle) -> std::path::PathBuf {
    let fake = bundle.scratch().join("proc");
    for dir in ["sys/net/ipv4", "self/attr", "thread-self/attr", "1/attr"] {
        fs::create_dir_all(fake.join(dir)).unwrap();
    }
    fs::write(fake.join("sys/net/ipv4/ip_forward"), "fake").unwrap();
    for dir in ["self", "thread-self", "1"] {
        for file in ["exec", "current", "keycreate"] {
            fs::write(fake.join(dir).join("attr").join(file), "fake").unwrap();
        }
    }
    fake
}

fn sysctl(bundle: Bundle) -> Bundle {
    bundle
        .set("/linux/sysctl", json!({ KEY: "1" }))
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]))
}

/// The value that the kernel has, read through a procfs of another name.
const READ: &str = "cat /real/sys/net/ipv4/ip_forward";

#[test]
fn a_sysctl_is_written_to_the_kernel_and_not_to_a_fake_proc() {
    // An image's own folder, a bind mount over it, and a tmpfs with links.
    for kind in ["image", "bind", "links"] {
        let bundle = without_mounts(sysctl(Bundle::sh(READ)), "/proc");
        let bundle = bundle.mount("/real", "proc", "proc", &[]).writable();
        let fake = fake_proc(&bundle);
        let proc = bundle.rootfs().join("proc");
        let bundle = match kind {
            "image" => {
                fs::remove_dir(&proc).unwrap();
                fs::rename(&fake, &proc).unwrap();
                bundle
            }
            "bind" => bundle.bind(&fake, "/proc", &["rbind"]),
            _ => {
                for (link, to) in [("sys", "/real/sys/../../etc"), ("self", "/etc")] {
                    symlink(to, proc.join(link)).unwrap();
                }
                bundle
            }
        };
        let c = bundle.container();
        c.run().ok().prints("1\n");
        for dir in [&fake, &proc] {
            if let Ok(text) = fs::read_to_string(dir.join("sys/net/ipv4/ip_forward")) {
                assert_eq!(text, "fake", "{kind}");
            }
        }
    }
}

/// CVE-2025-52881: a mount inside /proc/sys that the sysctl would land on.
#[test]
fn mounts_cannot_cover_what_is_written_in_proc() {
    for destination in ["/proc/sys/net/ipv4", "/proc/self/attr", "/proc/sys", "/proc/1/attr"] {
        let bundle = sysctl(Bundle::new());
        let fake = fake_proc(&bundle);
        let source = fake.join("sys/net/ipv4");
        let c = bundle.bind(&source, destination, &["bind"]).container();
        c.run().fails(&[destination]);
        c.assert_nothing_left();
        assert_eq!(fs::read_to_string(source.join("ip_forward")).unwrap(), "fake");
    }
}

/// CVE-2019-16884 and its like: proc and sysfs only on real directories.
#[test]
fn proc_and_sysfs_are_mounted_on_real_directories() {
    for (name, link) in [("proc", "etc"), ("proc", "/etc"), ("sys", "/etc"), ("sys", "../../etc")] {
        let bundle = Bundle::new().writable();
        let at = bundle.rootfs().join(name);
        fs::remove_dir(&at).unwrap();
        symlink(link, &at).unwrap();
        let c = bundle.container();
        c.run().fails(&[&format!("/{name}")]);
        c.assert_nothing_left();
    }
    // Nor below a link.
    let bundle = Bundle::new().mount("/link/proc", "proc", "proc", &[]).writable();
    symlink("/etc", bundle.rootfs().join("link")).unwrap();
    let c = bundle.container();
    c.run().fails(&["/link/proc"]);
}

/// A masked or read-only path that cannot be looked at must not be passed over.
#[test]
fn a_masked_path_that_cannot_be_resolved_is_an_error() {
    for list in ["maskedPaths", "readonlyPaths"] {
        let bundle = Bundle::new().set(&format!("/linux/{list}"), json!(["/etc/loop/x"]));
        symlink("loop", bundle.rootfs().join("etc/loop")).unwrap();
        let c = bundle.container();
        c.run().fails(&["/etc/loop"]);
        c.assert_nothing_left();
    }
}

/// Every default mask and read-only path is there, at its own place.
#[test]
fn the_masks_are_where_the_config_says() {
    let bundle = Bundle::sh("cat /proc/self/mountinfo");
    let list = |name: &str| -> Vec<String> {
        let list = bundle.config["linux"][name].as_array().unwrap();
        list.iter().filter_map(Value::as_str).map(String::from).collect()
    };
    let (masked, readonly) = (list("maskedPaths"), list("readonlyPaths"));
    let outcome = bundle.container().run().ok();
    let mounts = proc::parse_mountinfo(&outcome.stdout);
    let find = |path: &str| mounts.iter().rev().find(|mount| mount.point.to_str() == Some(path));
    // Not every kernel has every file.
    let there = |path: &&String| fs::symlink_metadata(path).is_ok();
    for path in masked.iter().filter(there) {
        let mount = find(path).unwrap_or_else(|| panic!("{path} is not masked: {outcome}"));
        assert!(mount.kind.ends_with("tmpfs"), "{path}: {}", mount.kind);
        assert!(mount.options.iter().any(|option| option == "ro"), "{path} is writable");
    }
    for path in readonly.iter().filter(there) {
        let mount = find(path).unwrap_or_else(|| panic!("{path} is not read-only: {outcome}"));
        assert!(mount.options.iter().any(|option| option == "ro"), "{path} is writable");
    }
}
