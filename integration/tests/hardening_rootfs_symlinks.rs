//! An image with links in the places that kiln works on: whatever they lead to, the container is
//! refused or stays in its rootfs, and nothing of the host's changes (CVE-2019-19921,
//! CVE-2021-30465, CVE-2023-27561, CVE-2025-52565 and their like).
//!
//! A table: each place, with each kind of link, with and without mounts on /dev, with a read-only
//! and a writable root, with and without a terminal.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use kiln_integration::{Bundle, json, proc};

/// Where a link leads.
#[derive(Clone, Copy, Debug)]
enum To {
    /// A path of the host's, absolute.
    Absolute,
    /// The same, climbing out of the rootfs.
    Relative,
    /// A folder in a volume, which is the host's.
    VolumeFolder,
    /// A file in a volume.
    VolumeFile,
    /// Nothing, in a volume.
    VolumeNothing,
    /// A device that is not the one that belongs there.
    Device,
    /// A kernel file.
    Procfs,
}

const ALL: [To; 7] = [
    To::Absolute,
    To::Relative,
    To::VolumeFolder,
    To::VolumeFile,
    To::VolumeNothing,
    To::Device,
    To::Procfs,
];

/// Which mounts on /dev, whether the root is read-only, whether there is a terminal: each value of
/// each with each of the others. Every other row takes the first two, and the last two.
const SETTINGS: [(bool, bool, bool); 4] =
    [(true, true, true), (true, false, false), (false, true, false), (false, false, true)];

/// Everything about the host's files that a container could change.
fn snapshot(dir: &Path) -> Vec<(PathBuf, [u32; 3], String)> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    for path in entries.chain([dir.to_owned()]) {
        let meta = fs::symlink_metadata(&path).unwrap();
        let text = if meta.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        found.push((path.clone(), [meta.mode(), meta.uid(), meta.gid()], text));
        if meta.is_dir() && path != dir {
            found.extend(snapshot(&path));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// A folder of the host's with odd owners and modes, in and out of the volume.
fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("folder/pts")).unwrap();
    for name in ["file", "folder/null", "folder/console", "folder/hosts", "folder/ptmx"] {
        let path = dir.join(name);
        fs::write(&path, format!("{name} of the host\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        chown(&path, Some(1234), Some(5678)).unwrap();
    }
    fs::set_permissions(dir.join("folder"), fs::Permissions::from_mode(0o710)).unwrap();
}

/// Puts the link in place of whatever the rootfs has at `place`.
fn link(rootfs: &Path, place: &str, target: &Path) {
    let at = rootfs.join(place.trim_start_matches('/'));
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    let _ = fs::remove_dir_all(&at);
    let _ = fs::remove_file(&at);
    symlink(target, at).unwrap();
}

/// One row of the table.
fn check(place: &str, to: To, (dev, readonly, terminal): (bool, bool, bool)) {
    let row = format!("{place} -> {to:?}, /dev mounted {dev}, {readonly} {terminal}");
    let mut bundle = Bundle::sh("cat /proc/self/mountinfo")
        .set("/root/readonly", json!(readonly))
        .set("/process/terminal", json!(terminal))
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    if !dev {
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| {
            let at = mount["destination"].as_str().unwrap();
            !at.starts_with("/dev") || (terminal && at == "/dev/pts")
        });
    }
    let host = bundle.scratch().join("host");
    let volume = bundle.scratch().join("volume");
    fill(&host);
    fill(&volume);
    let climb = Path::new("../../../../../../../../../..");
    let target = match to {
        To::Absolute => host.join("folder"),
        To::Relative => climb.join(host.join("file").strip_prefix("/").unwrap()),
        To::VolumeFolder => "/volume/folder".into(),
        To::VolumeFile => "/volume/file".into(),
        To::VolumeNothing => "/volume/nothing".into(),
        To::Device => "/odd".into(),
        To::Procfs => "/proc/sys/kernel/core_pattern".into(),
    };
    link(&bundle.rootfs(), place, &target);
    let odd = bundle.rootfs().join("odd");
    let device = rustix::fs::makedev(1, 5);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &odd, kind, 0o640.into(), device).unwrap();
    // What engines mount into /etc.
    let hosts = bundle.scratch().join("hosts");
    fs::write(&hosts, "hosts\n").unwrap();
    // First, so that the links lead into it when the others are mounted.
    let mount = json!({ "destination": "/volume", "type": "bind", "source": volume,
        "options": ["rbind"] });
    bundle.config["mounts"].as_array_mut().unwrap().insert(0, mount);
    let bundle = bundle.bind(&hosts, "/etc/hosts", &["rbind"]);
    let core_pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let (before, shared) = (snapshot(&host), snapshot(&volume));

    let c = bundle.container();
    let outcome = c.run();
    let message = format!("{row}\n{outcome}");
    assert!(matches!(outcome.status.code(), Some(0 | 1)), "{message}");
    assert!(!outcome.stderr.contains("panicked"), "{message}");
    assert_eq!(snapshot(&host), before, "{message}");
    let after = snapshot(&volume);
    for entry in &shared {
        assert!(after.contains(entry), "{entry:?} has changed: {message}");
    }
    // A place to mount on may have been made there: it is inside the rootfs. No device may.
    for (path, ..) in after {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        assert!(!kind.is_char_device() && !kind.is_block_device(), "{path:?}: {message}");
    }
    assert_eq!(fs::symlink_metadata(odd).unwrap().mode() & 0o7777, 0o640, "{message}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), core_pattern);
    assert_eq!(fs::read_to_string(hosts).unwrap(), "hosts\n", "{message}");
    if outcome.status.success() {
        for mount in proc::parse_mountinfo(&outcome.stdout) {
            let wanted = match mount.kind.as_str() {
                "proc" => "/proc",
                "sysfs" => "/sys",
                _ => continue,
            };
            assert!(mount.point.starts_with(wanted), "{mount:?}: {message}");
        }
        assert!(!matches!(place, "/proc" | "/sys"), "{message}");
    }
    drop(c);
}

fn check_all(places: &[&str]) {
    for (row, place) in places.iter().enumerate() {
        for (column, to) in ALL.into_iter().enumerate() {
            // On a slow machine a fifth of the table.
            if kiln_integration::rounds(2) == 1 && !(row * ALL.len() + column).is_multiple_of(5) {
                continue;
            }
            // Two of the four, the others in the next row and column.
            let first = (row + column) % 2 * 2;
            for settings in &SETTINGS[first..first + 2] {
                check(place, to, *settings);
            }
        }
    }
}

#[test]
fn links_in_place_of_proc_and_sys() {
    check_all(&["/proc", "/sys"]);
}

#[test]
fn links_in_place_of_dev_and_etc() {
    check_all(&["/dev", "/etc"]);
}

#[test]
fn links_in_place_of_devices() {
    check_all(&["/dev/null", "/dev/console"]);
}

#[test]
fn links_in_place_of_terminals() {
    check_all(&["/dev/pts", "/dev/pts/0", "/dev/pts/ptmx", "/dev/ptmx"]);
}

#[test]
fn links_in_place_of_what_dev_links_to() {
    check_all(&["/dev/shm", "/dev/fd"]);
}
