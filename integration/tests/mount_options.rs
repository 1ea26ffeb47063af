//! Every mount option of the spec's table (config.md#linux-mount-options), in
//! effect as mountinfo shows it. What other options do is in mounts.rs
//! (tmpcopyup), idmap.rs (idmap, ridmap) and propagation.rs.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_integration::hostmount::HostMount;
use kiln_integration::proc::{Mount, parse_mountinfo};
use kiln_integration::{Bundle, Cli, Value, kiln_only};

const WHY: &str = "knows fewer options, or applies them another way";
/// All attributes that a mount can have, for mount(8).
const ALL: &str = "remount,bind,ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow";

/// On a new file system: the option, what mountinfo shows then (of the mount or of the file
/// system), what it does not.
const SET: &[(&str, &str, &str)] = &[
    ("async", "rw", "sync"),
    ("atime", "relatime", "noatime"),
    ("defaults", "rw", "ro"),
    ("dev", "rw", "nodev"),
    ("diratime", "rw", "nodiratime"),
    ("dirsync", "dirsync", ""),
    ("exec", "rw", "noexec"),
    ("iversion", "rw", ""),
    ("lazytime", "lazytime", ""),
    ("loud", "rw", ""),
    ("mand", "rw", ""),
    ("noatime", "noatime", "relatime"),
    ("nodev", "nodev", ""),
    ("nodiratime", "nodiratime", ""),
    ("noexec", "noexec", ""),
    ("noiversion", "rw", ""),
    ("nolazytime", "rw", "lazytime"),
    ("nomand", "rw", "mand"),
    ("norelatime", "relatime", ""),
    ("nostrictatime", "relatime", ""),
    ("nosuid", "nosuid", ""),
    ("nosymfollow", "nosymfollow", ""),
    ("relatime", "relatime", ""),
    ("ro", "ro", "rw"),
    ("rw", "rw", "ro"),
    ("silent", "rw", ""),
    ("strictatime", "rw", "relatime"),
    ("suid", "rw", "nosuid"),
    ("symfollow", "rw", "nosymfollow"),
    ("sync", "sync", ""),
];

/// On a bind of a mount that has all attributes: what the option takes away.
const CLEARED: &[(&str, &str)] = &[
    ("atime", "noatime"),
    ("dev", "nodev"),
    ("diratime", "nodiratime"),
    ("exec", "noexec"),
    ("relatime", "noatime"),
    ("rw", "ro"),
    ("strictatime", "noatime"),
    ("suid", "nosuid"),
    ("symfollow", "nosymfollow"),
];

/// On a bind with a mount below: what both have then, or have no longer.
const RECURSIVE: &[(&str, &str)] = &[
    ("rnoatime", "noatime"),
    ("rnodev", "nodev"),
    ("rnodiratime", "nodiratime"),
    ("rnoexec", "noexec"),
    ("rnorelatime", "relatime"),
    ("rnostrictatime", "relatime"),
    ("rnosuid", "nosuid"),
    ("rnosymfollow", "nosymfollow"),
    ("rrelatime", "relatime"),
    ("rro", "ro"),
];
const RECURSIVE_CLEARED: &[(&str, &str)] = &[
    ("ratime", "noatime"),
    ("rdev", "nodev"),
    ("rdiratime", "nodiratime"),
    ("rexec", "noexec"),
    ("rrw", "ro"),
    ("rstrictatime", "noatime"),
    ("rsuid", "nosuid"),
    ("rsymfollow", "nosymfollow"),
];

/// Of the mount itself, or with those below: what mountinfo shows.
const PROPAGATION: &[(&str, &str, &str)] = &[
    ("private", "", "shared:"),
    ("rprivate", "", ""),
    ("shared", "shared:", "shared:"),
    ("rshared", "shared:", "shared:"),
    ("slave", "master:", "shared:"),
    ("rslave", "master:", "master:"),
    ("unbindable", "unbindable", "shared:"),
    ("runbindable", "unbindable", "unbindable"),
];

/// Tested elsewhere.
const ELSEWHERE: &[&str] = &["bind", "idmap", "rbind", "remount", "ridmap", "tmpcopyup"];

fn seen(bundle: Bundle) -> Vec<Mount> {
    let c = bundle.writable().args(&["cat", "/proc/self/mountinfo"]).container();
    parse_mountinfo(&c.run().ok().stdout)
}

#[track_caller]
fn at<'a>(mounts: &'a [Mount], option: &str, below: &str) -> &'a Mount {
    let point = Path::new("/m").join(option).join(below);
    let point: PathBuf = point.components().collect();
    let found = mounts.iter().rfind(|mount| mount.point == point);
    found.unwrap_or_else(|| panic!("no mount on {} in {mounts:#?}", point.display()))
}

fn has(mount: &Mount, word: &str) -> bool {
    mount.options.iter().chain(&mount.super_options).any(|own| own == word)
}

/// A mount on the host with another below it, all attributes set or none.
fn tree(bundle: &mut Bundle, all: bool) -> PathBuf {
    let top = bundle.scratch().join("tree");
    bundle.hold(HostMount::tmpfs(&top).private());
    bundle.hold(HostMount::tmpfs(top.join("sub")).private());
    if all {
        for path in [top.join("sub"), top.clone()] {
            let words = ["-o", ALL, path.to_str().unwrap()];
            Cli::new(words).binary("mount").output().ok();
        }
    }
    top
}

#[test]
fn options_of_a_new_file_system() {
    kiln_only!("{WHY}");
    let bundle = SET.iter().fold(Bundle::new(), |bundle, (option, _, _)| {
        bundle.mount(&format!("/m/{option}"), "tmpfs", "tmpfs", &[option])
    });
    let mounts = seen(bundle);
    for (option, shown, hidden) in SET {
        let mount = at(&mounts, option, "");
        // The file system itself stays writable: others may have mounted it, too.
        let hides = mount.options.iter().chain(&mount.super_options).all(|own| own != hidden);
        assert!(has(mount, shown) && (hides || *option == "ro"), "{option}: {mount:?}");
        assert!(!mount.options.iter().any(|own| own == hidden), "{option}: {mount:?}");
    }
}

#[test]
fn the_last_of_two_words_counts() {
    kiln_only!("{WHY}");
    let pairs = [
        ("sync", "async"),
        ("lazytime", "nolazytime"),
        ("nosuid", "suid"),
        ("noatime", "relatime"),
    ];
    let bundle = pairs.iter().fold(Bundle::new(), |bundle, (first, last)| {
        bundle.mount(&format!("/m/{last}"), "tmpfs", "tmpfs", &[first, last])
    });
    let mounts = seen(bundle);
    for (first, last) in pairs {
        let mount = at(&mounts, last, "");
        assert!(!has(mount, first), "{first},{last}: {mount:?}");
    }
}

#[test]
fn options_that_clear_an_attribute_of_the_source() {
    kiln_only!("{WHY}");
    let mut bundle = Bundle::new();
    let top = tree(&mut bundle, true);
    let bundle = CLEARED.iter().fold(bundle, |bundle, (option, _)| {
        bundle.bind(&top, &format!("/m/{option}"), &["bind", option])
    });
    let mounts = seen(bundle);
    for (option, cleared) in CLEARED {
        let mount = at(&mounts, option, "");
        assert!(!mount.options.iter().any(|own| own == cleared), "{option}: {mount:?}");
        // Nothing else is.
        let others = ["nosuid", "nodev", "noexec", "nosymfollow"];
        let kept = others.iter().filter(|other| *other != cleared).all(|other| has(mount, other));
        assert!(kept, "{option}: {mount:?}");
    }
}

#[test]
fn recursive_options() {
    kiln_only!("{WHY}");
    for (all, table) in [(false, RECURSIVE), (true, RECURSIVE_CLEARED)] {
        let mut bundle = Bundle::new();
        let top = tree(&mut bundle, all);
        let bundle = table.iter().fold(bundle, |bundle, (option, _)| {
            bundle.bind(&top, &format!("/m/{option}"), &["rbind", option])
        });
        let mounts = seen(bundle);
        for (option, word) in table {
            for below in ["", "sub"] {
                let mount = at(&mounts, option, below);
                let has = mount.options.iter().any(|own| own == word);
                assert_eq!(has, !all, "{option}: {mount:?}");
            }
        }
    }
}

#[test]
fn propagation_types() {
    kiln_only!("{WHY}");
    let mut bundle = Bundle::new();
    let top = bundle.scratch().join("tree");
    bundle.hold(HostMount::tmpfs(&top).shared());
    fs::create_dir(top.join("sub")).unwrap();
    bundle.hold(HostMount::tmpfs(top.join("sub")).shared());
    let bundle = PROPAGATION.iter().fold(bundle, |bundle, (option, _, _)| {
        bundle.bind(&top, &format!("/m/{option}"), &["rbind", option])
    });
    // Else all binds are slaves first, as the root is.
    let bundle = bundle.set("/linux/rootfsPropagation", "shared".into());
    let mounts = seen(bundle);
    for (option, own, below) in PROPAGATION {
        for (place, expected) in [("", own), ("sub", below)] {
            let mount = at(&mounts, option, place);
            let fields = mount.propagation.join(" ");
            let right = match *expected {
                "" => fields.is_empty(),
                "shared:" => fields.starts_with("shared:"),
                expected => fields.contains(expected) && !fields.starts_with("shared:"),
            };
            assert!(right, "{option}: {mount:?}");
        }
    }
}

#[test]
fn what_is_not_in_the_table_goes_to_the_file_system() {
    let bundle = Bundle::new().mount("/m/x", "tmpfs", "tmpfs", &["size=64k", "nr_inodes=7"]);
    let mounts = seen(bundle);
    let mount = at(&mounts, "x", "");
    assert!(has(mount, "size=64k") && has(mount, "nr_inodes=7"), "{mount:?}");
    let bundle = Bundle::new().mount("/m/x", "tmpfs", "tmpfs", &["no-such-option"]);
    bundle.writable().container().run().fails(&["/m/x"]);
}

#[test]
fn every_option_of_features_is_tested() {
    kiln_only!("{WHY}");
    let features: Value = Cli::new(["features"]).output().ok().stdout.parse().unwrap();
    let listed = features["mountOptions"].as_array().unwrap();
    let listed: BTreeSet<&str> = listed.iter().map(|option| option.as_str().unwrap()).collect();
    let triples = SET.iter().chain(PROPAGATION).map(|row| row.0);
    let pairs = [CLEARED, RECURSIVE, RECURSIVE_CLEARED].into_iter().flatten().map(|row| row.0);
    let tested: BTreeSet<&str> = triples.chain(pairs).chain(ELSEWHERE.iter().copied()).collect();
    assert_eq!(listed, tested);
}
