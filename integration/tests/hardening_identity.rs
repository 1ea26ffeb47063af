//! Who a process is: ids, groups, capabilities and keyrings are exactly the config's, whatever
//! files the image has and whatever its neighbours do.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::Duration;

use kiln_integration::{Bundle, Cli, Container, command, json, kiln_only, proc, refused, skip};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

fn running(bundle: Bundle) -> Container {
    let c = bundle.args(&["sleep", "1000"]).container();
    c.detach().ok();
    c
}

const SETS: &str = "grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | tr -s '\\t\\n' '  '";

/// CVE-2022-29162.
#[test]
fn the_inheritable_set_is_empty() {
    let all = "0000000000000000";
    let c = Bundle::sh(SETS).container();
    let outcome = c.run().ok();
    assert!(outcome.stdout.contains(&format!("CapInh: {all}")), "{outcome}");
    let c = running(Bundle::new());
    let user = ["--user", "1000"];
    for flags in [&[][..], &["--cap", "CAP_NET_ADMIN"], &user, &[user[0], user[1], "--cap", "KILL"]]
    {
        let outcome = c.exec_cli(flags, &["sh", "-c", SETS]).output().ok();
        assert!(outcome.stdout.contains(&format!("CapInh: {all}")), "{outcome}");
        assert!(outcome.stdout.contains(&format!("CapAmb: {all}")), "{outcome}");
        // What is not inheritable is nobody's but root's after execve(2).
        let effective = outcome.stdout.contains(&format!("CapEff: {all}"));
        assert_eq!(effective, flags.contains(&"--user"), "{outcome}");
    }
}

#[test]
fn groups_are_exactly_the_configs() {
    // The caller's own, and those that the image gives to the user, are not.
    let groups = "grep ^Groups: /proc/self/status; id -u; id -g";
    let image = |bundle: &Bundle| {
        let etc = bundle.rootfs().join("etc");
        fs::write(etc.join("passwd"), "u:x:1000:0::/:/bin/sh\n").unwrap();
        fs::write(etc.join("group"), "root:x:0:u\nwheel:x:10:u\ndocker:x:999:u\n").unwrap();
    };
    for (gids, shown) in [(json!([]), ""), (json!([7, 4_294_967_294_u32]), "7 4294967294 ")] {
        let user = json!({ "uid": 1000, "gid": 1000, "additionalGids": gids });
        let bundle = Bundle::sh(groups).set("/process/user", user);
        image(&bundle);
        let outcome = bundle.container().run().ok();
        let shown: Vec<_> = shown.split_whitespace().collect();
        let words: Vec<_> = outcome.stdout.split_whitespace().collect();
        assert_eq!(words, [&["Groups:"], &shown[..], &["1000", "1000"]].concat());
    }
    let bundle = Bundle::new();
    image(&bundle);
    let c = running(bundle);
    let outcome = c.exec_cli(&["--user", "1000:5", "-g", "7"], &["sh", "-c", groups]).output();
    assert_eq!(outcome.ok().stdout, "Groups:\t7 \n1000\n5\n");
}

#[test]
fn ids_that_overflow_never_become_root() {
    for id in ["-1", "4294967295", "4294967296", "18446744073709551616", "\"0\"", "1.5", "1e10"] {
        for field in ["uid", "gid"] {
            let mut bundle = Bundle::sh("id -u; id -g");
            bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            bundle.config["process"]["user"][field] = serde_json_value(id);
            refused(bundle, &[]);
        }
        let bundle = Bundle::new().push("/process/user/additionalGids", serde_json_value(id));
        refused(bundle, &[]);
    }
    let c = running(Bundle::new());
    let image = "0x0:x:0:0::/:\n4294967296:x:0:0::/:\nzero:x:0:0::/:\n";
    fs::write(c.bundle.rootfs().join("etc/passwd"), image).unwrap();
    for user in ["-1", "4294967295", "4294967296", "0x0", "zero", "", "1000:", ":", "1:-1", " 1"] {
        let outcome = c.exec_cli(&["--user", user], &["id", "-u"]).output();
        assert!(!outcome.status.success() && outcome.stdout.is_empty(), "{user}: {outcome}");
    }
}

fn serde_json_value(text: &str) -> kiln_integration::Value {
    text.parse().unwrap()
}

/// The home directory is looked up in the image's file: a gigabyte, a pipe that nobody writes to,
/// a device without end, a link to either.
#[test]
fn files_of_users_that_are_no_such_files() {
    let limit = json!({ "limit": 64 << 20 });
    for kind in ["huge", "line", "fifo", "zero", "link", "folder", "loop", "procfs"] {
        let bundle = Bundle::sh("echo home $HOME").set("/linux/resources/memory", limit.clone());
        let mut env = bundle.config["process"]["env"].as_array().unwrap().clone();
        env.retain(|entry| !entry.as_str().unwrap().starts_with("HOME="));
        let bundle = bundle.set("/process/env", json!(env)).writable();
        for name in ["passwd", "group"] {
            let path = bundle.rootfs().join("etc").join(name);
            match kind {
                "huge" => fs::File::create(&path).unwrap().set_len(1 << 30).unwrap(),
                "line" => fs::write(&path, "x".repeat(4 << 20)).unwrap(),
                "fifo" => mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
                "zero" => {
                    let (kind, device) = (FileType::CharacterDevice, makedev(1, 5));
                    mknodat(CWD, &path, kind, Mode::RWXU, device).unwrap();
                }
                "link" => symlink("/dev/zero", &path).unwrap(),
                "folder" => fs::create_dir(&path).unwrap(),
                "loop" => symlink(name, &path).unwrap(),
                _ => symlink("/proc/kmsg", &path).unwrap(),
            }
        }
        let c = bundle.container();
        let outcome = c.run().ok().prints("home /\n");
        assert!(outcome.elapsed < Duration::from_secs(20), "{kind}: {outcome}");
    }
}

/// A program of root's that anybody may execute as root.
#[test]
fn setuid_programs_gain_nothing_with_no_new_privileges() {
    for no_new_privileges in [true, false] {
        let bundle = Bundle::new()
            .args(&["/busybox", "grep", "^Uid:", "/proc/self/status"])
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
            .set("/process/capabilities/bounding", json!(["CAP_SETUID", "CAP_SETGID"]))
            .set("/process/noNewPrivileges", json!(no_new_privileges));
        let path = bundle.rootfs().join("busybox");
        // busybox itself gives the right up unless a file of root's lets its applets have it.
        fs::copy("/bin/busybox", &path).unwrap();
        chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(bundle.rootfs().join("etc/busybox.conf"), "[SUID]\ngrep = ssx 0.0\n").unwrap();
        let outcome = bundle.container().run();
        let ids: Vec<_> = outcome.stdout.split_whitespace().collect();
        if no_new_privileges {
            // busybox gives up, because it did not get what its file promises.
            assert!(ids.is_empty() || ids[1..] == ["1000"; 4], "{outcome}");
        } else if ids.get(2) != Some(&"0") {
            skip!("this busybox has no busybox.conf to show the difference with: {outcome}");
        }
    }
}

/// The caller's session keyring, and the keys in it.
#[test]
fn the_callers_keyring_is_out_of_reach() {
    if !command::exists("keyctl") {
        skip!("keyctl is not installed");
    }
    let c = Bundle::sh("cat /proc/keys; true").set("/linux/maskedPaths", json!([])).container();
    let wrapper = ["keyctl", "session", "kiln-it-caller"];
    let outcome = c.run_cli(&[]).under(&wrapper).output().ok();
    assert!(!outcome.stdout.contains("kiln-it-caller"), "{outcome}");
}

/// CVE-2021-43784: what a netlink attribute of 64 KiB could not hold.
#[test]
fn maps_of_more_than_64_kib_are_a_clean_error() {
    let map: Vec<_> = (0..4000)
        .map(|n| json!({ "containerID": n * 2, "hostID": 200_000_000 + n * 2, "size": 1 }))
        .collect();
    assert!(json!(map).to_string().len() > 2 * 65536);
    for field in ["uidMappings", "gidMappings"] {
        let bundle = Bundle::new().user_namespace(200_000);
        let c = bundle.set(&format!("/linux/{field}"), json!(map)).container();
        let outcome = c.run().fails(&[field.trim_end_matches("Mappings")]);
        assert!(outcome.stderr.len() < 4096, "an error of {} bytes", outcome.stderr.len());
        c.assert_nothing_left();
    }
}

/// The kernel's own limit is 340 lines: one more is refused, and nobody gets the first of them.
#[test]
fn maps_of_one_line_too_many() {
    let map: Vec<_> = (0..341)
        .map(|n| json!({ "containerID": n, "hostID": 200_000 + n * 2, "size": 1 }))
        .collect();
    let c = Bundle::new().user_namespace(200_000).set("/linux/uidMappings", json!(map));
    let c = c.container();
    c.run().fails(&["uid"]);
    c.assert_nothing_left();
}

/// What kiln makes on the host is for nobody else's eyes.
#[test]
fn state_is_closed_to_other_users() {
    kiln_only!("the modes are kiln's");
    let secret = "hunter2-of-the-bundle";
    let bundle = Bundle::new().annotation("org.example.secret", secret);
    let c = bundle.args(&["sleep", "1000"]).container();
    c.create().ok();
    let mode = |path: &std::path::Path| fs::symlink_metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&c.root()) & 0o7777, 0o700);
    let dir = c.root().join(&c.id);
    assert_eq!(mode(&dir) & 0o7777, 0o700);
    for entry in fs::read_dir(&dir).unwrap().flatten() {
        let link = entry.file_type().unwrap().is_symlink();
        let open = mode(&entry.path()) & 0o022;
        assert!(link || open == 0, "{} is writable by others", entry.path().display());
    }
    // Nor where the root is there already, and others may look into it.
    let shared = c.bundle.home().join("shared");
    fs::create_dir(&shared).unwrap();
    let other = Bundle::new().container();
    let words = ["--root", shared.to_str().unwrap(), "create", "--bundle"];
    Cli::new(words).arg(other.bundle.path()).arg(&other.id).output().ok();
    assert_eq!(mode(&shared.join(&other.id)) & 0o7777, 0o700);
    Cli::new(["--root", shared.to_str().unwrap(), "delete", "--force", &other.id]).output().ok();
    // Somebody else's, or one that others write to.
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    Cli::new(words).arg(other.bundle.path()).arg(&other.id).output().fails(&["writable"]);
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&shared, Some(1000), Some(1000)).unwrap();
    Cli::new(words).arg(other.bundle.path()).arg(&other.id).output().fails(&["uid 1000"]);
}

/// Nobody traces or dumps init while it is being made: a joined pid namespace shows it.
#[test]
fn init_is_not_dumpable_until_it_is_the_program() {
    let c = Bundle::new().args(&["sleep", "1000"]).container();
    c.create().ok();
    let pid = c.pid();
    let owner = |pid| {
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/environ")).unwrap())
    };
    assert_eq!(owner(pid), 0);
    // As any other user, even with its ids: ptrace_may_access() in the kernel.
    let reader = Bundle::sh(
        "cat /proc/1/environ /proc/1/maps; ls /proc/1/root/; \
        readlink /proc/1/fd/0 /proc/1/cwd /proc/1/root",
    )
    .namespace("pid", Some(&format!("/proc/{pid}/ns/pid")))
    .capabilities(&["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
    let outcome = reader.container().run();
    assert_eq!(outcome.stdout.trim(), "", "{outcome}");
    assert!(outcome.stderr.contains("Permission denied"), "{outcome}");
    assert!(proc::alive(pid));
}

/// A neighbour with CAP_SYS_PTRACE can make a waiting init do what init may do:
/// not more than it still needs.
#[test]
fn a_waiting_init_has_given_up_what_it_does_not_need() {
    kiln_only!("they keep all until start");
    let bundle = Bundle::sh("grep ^Cap /proc/self/status").capabilities(&["CAP_KILL"]);
    let bundle = bundle.unset("/process/rlimits").set("/process/user/uid", json!(0));
    let c = bundle.set("/process/noNewPrivileges", json!(true)).container();
    c.create().ok();
    let own = 1_u64 << 5; // CAP_KILL
    // CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID
    let needed = 0b1100_0111;
    let set = |name: &str| proc::status_field(c.pid(), name).unwrap();
    for (name, bits) in [("CapPrm", own | needed), ("CapEff", own | needed), ("CapBnd", own)] {
        assert_eq!(set(name), format!("{bits:016x}"), "{name}");
    }
    c.start().ok();
    c.await_status("stopped");
    c.delete().ok();
    // Whoever runs at once, or in a container that runs, ends with the same.
    let bundle = Bundle::sh("sleep 100").capabilities(&["CAP_KILL"]);
    let user = json!({ "uid": 7, "gid": 8, "additionalGids": [9] });
    let c = bundle.set("/process/user", user).container();
    c.create().ok();
    c.start().ok();
    let script = "grep -E 'Cap(Bnd|Prm)' /proc/self/status; id -u; id -G";
    let outcome = c.exec(&["sh", "-c", script]).ok();
    let bounding = format!("CapBnd:\t{own:016x}");
    assert!(
        outcome.stdout.contains(&bounding) && outcome.stdout.ends_with("7\n8 9\n"),
        "{outcome}"
    );
    assert_eq!(proc::status_field(c.pid(), "Uid").unwrap(), "7\t7\t7\t7");
}
