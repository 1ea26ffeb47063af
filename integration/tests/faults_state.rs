//! The state on disk when things go wrong: a reader at any moment, no space, a
//! broken file, a process id that is somebody else's by now.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_integration::faults::{assert_deletable, one_error, rounds, true_status};
use kiln_integration::hostmount::HostMount;
use kiln_integration::{
    Bundle, Container, Value, cgroup, eventually, json, kiln_only, leftovers, proc,
};
use rustix::mount::{MountFlags, mount_remount};

fn sleeping() -> Bundle {
    Bundle::new().args(&["sleep", "100"])
}

#[test]
fn a_reader_never_sees_half_a_state() {
    kiln_only!("1.1.5's list fails on a container that is being removed");
    let c = sleeping().set("/annotations/long", json!("x".repeat(100_000))).container();
    let done = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let read = || {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let state = c.on_id("state", &[]);
                if state.status.success() {
                    let state: Value = serde_json::from_str(&state.stdout).unwrap();
                    assert_eq!(state["annotations"]["long"].as_str().unwrap().len(), 100_000);
                } else {
                    state.fails(&["does not exist"]);
                }
                let list = c.cli(&["list", "--format", "json"]).output().ok();
                serde_json::from_str::<Value>(&list.stdout).unwrap();
                assert_eq!(list.stderr, "", "{list}");
                reads += 1;
            }
            reads
        };
        let readers = [scope.spawn(read), scope.spawn(read)];
        for _ in 0..rounds(30) {
            c.create().ok();
            c.start().ok();
            c.delete_force().ok();
        }
        done.store(true, Ordering::Relaxed);
        readers.map(|reader| reader.join().unwrap())
    });
    assert!(reads.iter().all(|&reads| reads > 0), "{reads:?}");
}

/// A container whose state root is a small tmpfs.
fn on_tmpfs(options: &str) -> Container {
    let mut bundle = sleeping();
    let root = bundle.home().join("root");
    bundle.hold(HostMount::tmpfs(&root));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    mount_remount(&root, MountFlags::empty(), options).unwrap();
    bundle.container()
}

#[test]
fn a_full_state_directory() {
    kiln_only!("1.1.5 says it otherwise");
    let c = on_tmpfs("size=16k");
    let filler = c.root().join("filler");
    let _ = fs::write(&filler, vec![0; 64 << 10]);
    let outcome = c.create().fails(&["write the state", "no space left on device"]);
    one_error(&outcome);
    c.assert_nothing_left_but_mounts();
    one_error(&c.run().fails(&["no space left on device"]));
    c.assert_nothing_left_but_mounts();
    fs::remove_file(filler).unwrap();
    c.create().ok();
    // What is there can be used and removed although nothing more can be written.
    let _ = fs::write(c.root().join("filler"), vec![0; 64 << 10]);
    c.start().ok();
    assert_eq!(c.status(), "running");
    c.exec(&["true"]).ok();
    c.delete_force().ok();
    c.assert_nothing_left_but_mounts();
}

#[test]
fn a_state_directory_without_inodes() {
    kiln_only!("1.1.5 makes other files");
    let mut failed = 0;
    for inodes in 1..=8 {
        let c = on_tmpfs(&format!("nr_inodes={inodes}"));
        let outcome = c.create();
        if outcome.status.success() {
            assert_eq!(c.status(), "created");
        } else {
            one_error(&outcome.fails(&["no space left on device"]));
            failed += 1;
        }
        c.delete_force().ok();
        c.assert_nothing_left_but_mounts();
    }
    // The root's own, the directory, state.json, start.sock, init.
    assert!((3..8).contains(&failed), "{failed}");
}

#[test]
fn a_state_directory_that_became_read_only() {
    kiln_only!("1.1.5 removes the cgroup first");
    let c = on_tmpfs("");
    c.create().ok();
    let options = |flags| mount_remount(c.root(), flags, "").unwrap();
    options(MountFlags::RDONLY);
    assert_eq!(c.status(), "created");
    one_error(&c.start().fails(&["read-only file system"]));
    // It was not started, or says so.
    let status = c.status();
    assert!(["created", "stopped"].contains(&status.as_str()), "{status}");
    one_error(&c.delete_force().fails(&["read-only file system"]));
    options(MountFlags::empty());
    c.delete_force().ok();
    c.assert_nothing_left_but_mounts();
    options(MountFlags::RDONLY);
    one_error(&c.create().fails(&["read-only file system"]));
    c.assert_nothing_left_but_mounts();
    options(MountFlags::empty());
}

/// A name, and what it does to a container's directory.
type Damage = (&'static str, fn(&Path));

/// Ways to damage a container's directory.
const DAMAGES: &[Damage] = &[
    ("an empty state", |dir| fs::write(dir.join("state.json"), "").unwrap()),
    ("half a state", |dir| {
        let text = fs::read_to_string(dir.join("state.json")).unwrap();
        fs::write(dir.join("state.json"), &text[..text.find('\n').unwrap() / 2]).unwrap();
    }),
    ("bytes", |dir| fs::write(dir.join("state.json"), [0xff, 0, 0x80].repeat(999)).unwrap()),
    ("another's JSON", |dir| fs::write(dir.join("state.json"), "[1, {}]").unwrap()),
    ("a directory as state", |dir| {
        fs::remove_file(dir.join("state.json")).unwrap();
        fs::create_dir_all(dir.join("state.json/in/it")).unwrap();
    }),
    ("a link as state", |dir| {
        fs::remove_file(dir.join("state.json")).unwrap();
        symlink("/etc/passwd", dir.join("state.json")).unwrap();
    }),
    ("a pipe as state", |dir| {
        fs::remove_file(dir.join("state.json")).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("state.json"), mode).unwrap();
    }),
    ("a corrupt init", |dir| {
        fs::remove_file(dir.join("init")).unwrap();
        symlink("-1 -1", dir.join("init")).unwrap();
    }),
    ("a file as init", |dir| {
        fs::remove_file(dir.join("init")).unwrap();
        fs::write(dir.join("init"), "1 1").unwrap();
    }),
    ("a directory as init", |dir| {
        fs::remove_file(dir.join("init")).unwrap();
        fs::create_dir(dir.join("init")).unwrap();
    }),
];

#[test]
fn a_damaged_state_is_an_error_and_can_be_deleted() {
    kiln_only!("its state is another");
    for (what, damage) in DAMAGES {
        let c = sleeping().container();
        c.detach().ok();
        let init = c.pid();
        damage(&c.root().join(&c.id));
        eprintln!("{what}");
        for (operation, after) in [
            ("state", &[][..]),
            ("start", &[]),
            ("kill", &["KILL"]),
            ("exec", &["true"]),
            ("ps", &[]),
            ("pause", &[]),
            ("delete", &[]),
        ] {
            let outcome = c.on_id(operation, after);
            assert!(!outcome.status.success(), "{what}: {outcome}");
            one_error(&outcome);
            assert!(outcome.stderr.contains(&c.id), "{what}: the id is named: {outcome}");
        }
        c.cli(&["list"]).output().ok();
        assert!(proc::alive(init), "{what}: nothing was touched");
        assert_deletable(&c, what);
        c.create().ok();
    }
}

/// What the runtime makes, and nothing else, is followed.
#[test]
fn delete_follows_no_link_in_the_state_directory() {
    kiln_only!("its state is another");
    let c = sleeping().container();
    c.detach().ok();
    let victim = c.bundle.scratch().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "kept").unwrap();
    symlink(&victim, c.root().join(&c.id).join("link")).unwrap();
    fs::write(c.root().join(&c.id).join("other"), "").unwrap();
    assert_deletable(&c, "with other files");
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "kept");
}

/// A process of the test's that must not be touched.
struct Stranger(std::process::Child);

impl Stranger {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("100").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Stranger(kiln_integration::reaper::spawn(&mut command))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    #[track_caller]
    fn assert_untouched(&self, when: &str) {
        let state = proc::status_field(self.pid(), "State").unwrap_or_default();
        assert!(state.starts_with('S'), "{when}: {state}");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        kiln_integration::reaper::end(&mut self.0);
    }
}

#[test]
fn a_pid_that_is_a_strangers_by_now() {
    kiln_only!("its state is another");
    for created in [false, true] {
        let c = sleeping().container();
        let done = if created { c.create() } else { c.detach() };
        done.ok();
        let stranger = Stranger::new();
        let link = c.root().join(&c.id).join("init");
        let init = c.pid();
        let text = fs::read_link(&link).unwrap();
        let ticks = text.to_str().unwrap().split_once(' ').unwrap().1.to_owned();
        // Init has ended, and its pid has been given to another.
        let end = rustix::process::Pid::from_raw(init).unwrap();
        rustix::process::kill_process(end, rustix::process::Signal::KILL).unwrap();
        eventually("its end", || !proc::alive(init));
        fs::remove_file(&link).unwrap();
        // It began before the stranger did, in any case.
        let ticks = ticks.parse::<u64>().unwrap() - 1;
        symlink(format!("{} {ticks}", stranger.pid()), &link).unwrap();

        assert_eq!(true_status(&c).as_deref(), Some("stopped"));
        for (operation, after) in [
            ("kill", &["KILL"][..]),
            ("kill", &["--all", "KILL"]),
            ("pause", &[]),
            ("resume", &[]),
            ("exec", &["true"]),
            ("ps", &[]),
            ("start", &[]),
            ("events", &["--stats"]),
            ("update", &["--pids-limit", "5"]),
        ] {
            let outcome = c.on_id(operation, after);
            assert!(!outcome.stdout.contains(&stranger.pid().to_string()), "{outcome}");
            assert!(!outcome.stderr.contains("panicked"), "{outcome}");
            stranger.assert_untouched(&format!("{operation} {after:?}"));
        }
        c.cli(&["list"]).output().ok().shows("stopped");
        c.delete().ok();
        stranger.assert_untouched("delete");
        c.assert_nothing_left();
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", stranger.pid())).unwrap();
        assert!(!cgroup.contains(&c.id));
    }
}

/// The same with `delete --force`, of a state that is damaged besides.
#[test]
fn delete_force_does_not_end_a_stranger() {
    kiln_only!("its state is another");
    for damaged in [false, true] {
        let c = sleeping().container();
        c.detach().ok();
        let init = c.pid();
        let stranger = Stranger::new();
        let dir = c.root().join(&c.id);
        c.kill("KILL").ok();
        eventually("its end", || !proc::alive(init));
        fs::remove_file(dir.join("init")).unwrap();
        symlink(format!("{} 12", stranger.pid()), dir.join("init")).unwrap();
        if damaged {
            fs::write(dir.join("state.json"), "{").unwrap();
        }
        assert_deletable(&c, "a stranger's pid");
        stranger.assert_untouched("delete --force");
    }
}

/// The cgroup that a damaged state leads to has init in it, or is left alone.
#[test]
fn delete_force_of_a_damaged_state_kills_nobody_else() {
    kiln_only!("its state is another");
    let c = sleeping().container();
    c.detach().ok();
    let init = c.pid();
    let dirs = cgroup::directories_of(&c.id);
    let dir = c.root().join(&c.id);
    c.kill("KILL").ok();
    eventually("its end", || !proc::alive(init));
    let stranger = Stranger::new();
    for dir in &dirs {
        // v1 in some hierarchies needs its settings first; the kernel has seen to it.
        fs::write(dir.join("cgroup.procs"), stranger.pid().to_string()).unwrap();
    }
    fs::write(dir.join("state.json"), "{").unwrap();
    c.delete_force().ok();
    stranger.assert_untouched("delete --force");
    drop(stranger);
    for dir in &dirs {
        eventually("the cgroup to be empty", || fs::remove_dir(dir).is_ok() || !dir.exists());
    }
    let left = leftovers::find(&c.id, &c.root(), c.bundle.home());
    assert!(left.is_empty(), "{left:?}");
}
