//! Containers that behave badly: whatever they do, their shim answers, they can be killed and
//! deleted, nothing is left, and their neighbours in the same shim notice nothing.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, Instant};

use kiln_integration::chaos::{IMAGE, Lab, WASM, at_once};
use kiln_integration::containerd::Shim;
use kiln_integration::{
    Bundle, Outcome, eventually, fresh_id, json, kiln_only, needs_shim, needs_wasm, patience, proc,
};

/// The lab with a well-behaved neighbour in the group.
struct Street {
    lab: Lab,
    neighbour: String,
    pid: i32,
}

impl Street {
    fn new() -> Self {
        let (lab, neighbour) = (Lab::new(), fresh_id());
        lab.define_in_group(&neighbour, &WASM, &["/sleep.wasm", "10000"]);
        lab.start(&neighbour).ok();
        let pid = lab.pid(&neighbour, "init.pid").unwrap();
        Street { lab, neighbour, pid }
    }

    /// Starts a container in the group, with its output in FIFOs that nobody reads.
    #[track_caller]
    fn run(&self, flags: &[&str], command: &[&str]) -> String {
        let id = fresh_id();
        self.run_as(&id, flags, command).ok();
        id
    }

    fn run_as(&self, id: &str, flags: &[&str], command: &[&str]) -> Outcome {
        let (group, fifos) = (self.lab.group_annotation(), self.lab.containerd.home().join("f"));
        let own = ["--detach", "--annotation", &group, "--fifo-dir", fifos.to_str().unwrap()];
        let (flags, command) = ([&own, flags].concat(), [&[id], command].concat());
        self.lab.containerd.run_cli(Shim::Kiln, &flags, IMAGE, &command).output()
    }

    /// Starts a container in the group from a config of its own.
    #[track_caller]
    fn run_bundle(&self, bundle: Bundle) -> (String, Bundle) {
        let id = fresh_id();
        let cgroup = format!("/{}/{id}", self.lab.containerd.namespace);
        let root = bundle.rootfs();
        let bundle = bundle
            .set("/root/path", json!(root))
            .set("/linux/cgroupsPath", json!(cgroup))
            .set("/annotations", json!({ "io.containerd.runc.v2.group": self.lab.group() }));
        bundle.write();
        let create = self.lab.containerd.ctr_cli(&["containers", "create", "--config"]);
        let create = create.arg(bundle.path().join("config.json"));
        create.args(&["--runtime", Shim::Kiln.runtime(), &id]).output().ok();
        self.lab.start(&id).ok();
        (id, bundle)
    }

    #[track_caller]
    fn exec(&self, id: &str, command: &[&str]) -> Outcome {
        self.lab.tasks(&["exec", "--exec-id", &fresh_id(), id]).args(command).output()
    }

    /// Kills and deletes it, both without delay.
    #[track_caller]
    fn end(&self, id: &str) {
        let since = Instant::now();
        self.lab.tasks(&["kill", "--signal", "KILL", id]).output().ok();
        eventually("its end", || self.lab.true_status(id).as_deref() == Some("STOPPED"));
        let deleted = self.lab.tasks(&["delete", id]).output();
        assert!(deleted.stderr.contains("non-zero exit code 137"), "{deleted}");
        assert!(since.elapsed() < patience(10), "{:?}", since.elapsed());
        self.lab.containerd.ctr(&["containers", "delete", id]).ok();
        self.is_undisturbed();
        let left = self.lab.left_of(id);
        assert!(left.is_empty(), "{left:#?}");
    }

    #[track_caller]
    fn is_undisturbed(&self) {
        let there = (self.neighbour.clone(), self.pid, "RUNNING".to_owned());
        assert!(self.lab.list().contains(&there), "{:?}", self.lab.list());
        self.exec(&self.neighbour, &["/hello.wasm"]).ok().prints("hello from wasm\n");
    }

    fn leave(self) {
        self.lab.remove(&self.neighbour);
        self.lab.assert_nothing_left();
    }
}

macro_rules! street {
    () => {{
        kiln_only!("it runs no wasm");
        needs_wasm!();
        needs_shim!();
        Street::new()
    }};
}

#[test]
fn forks_without_end() {
    let street = street!();
    // A shell would end when it cannot fork.
    let bomb = r#"awk 'BEGIN { while (1) system("sleep 1000 &") }' & exec sleep 10000"#;
    let bundle = Bundle::sh(bomb).set("/linux/resources/pids", json!({ "limit": 64 }));
    let (id, _bundle) = street.run_bundle(bundle);
    let tasks = || street.lab.tasks(&["ps", &id]).output().ok().stdout.lines().count();
    eventually("the limit", || tasks() > 60);
    // There is no room for another; it is said, or there was some for a moment.
    let outcome = street.exec(&id, &["true"]);
    let said = outcome.stderr.contains("resource temporarily unavailable");
    assert!(outcome.status.success() || said, "{outcome}");
    street.end(&id);
    street.leave();
}

#[test]
fn kills_all_that_it_sees() {
    let street = street!();
    let flags = ["--privileged"];
    let id = street.run(&[&flags[..], &WASM].concat(), &["/sleep.wasm", "10000"]);
    for exec_id in ["one", "two"] {
        let exec = street.lab.tasks(&["exec", "--detach", "--exec-id", exec_id, &id]);
        exec.args(&["sleep", "10000"]).output().ok();
    }
    street.exec(&id, &["kill", "-KILL", "-1"]);
    eventually("the end of the others", || street.lab.execs(&id).is_empty());
    for exec_id in ["one", "two"] {
        street.lab.tasks(&["delete", "--exec-id", exec_id, &id]).output().exits(137);
    }
    assert_eq!(street.lab.true_status(&id).as_deref(), Some("RUNNING"));
    street.end(&id);
    street.leave();
}

#[test]
fn fills_its_output() {
    let street = street!();
    let linux = street.run(&[], &["sh", "-c", "yes & yes >&2"]);
    let module = street.run(&WASM, &["/sleep.wasm", "10000"]);
    let exec = street.lab.tasks(&["exec", "--detach", "--exec-id", "e", &module]);
    exec.arg("yes").output().ok();
    let blocked = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|text| text.starts_with("1 "))
    };
    let writers = || proc::children(street.lab.pid(&linux, "init.pid").unwrap());
    eventually("full FIFOs", || writers().iter().filter(|pid| blocked(pid)).count() >= 1);
    // What they have said is waited for, but not for long.
    street.end(&linux);
    street.end(&module);
    street.leave();
}

#[test]
fn stops_itself() {
    let street = street!();
    let id = street.run(&[], &["sh", "-c", "sh -c 'kill -STOP $$' & while :; do sleep 1; done"]);
    let exec = street.lab.tasks(&["exec", "--detach", "--exec-id", "e", &id]);
    exec.args(&["sh", "-c", "kill -STOP $$"]).output().ok();
    street.lab.tasks(&["kill", "--signal", "STOP", &id]).output().ok();
    let init = street.lab.pid(&id, "init.pid").unwrap();
    eventually("init to stop", || {
        proc::status_field(init, "State").is_some_and(|state| state.starts_with('T'))
    });
    street.exec(&id, &["true"]).ok();
    street.lab.tasks(&["kill", "--signal", "KILL", "--exec-id", "e", &id]).output().ok();
    street.end(&id);
    street.leave();
}

#[test]
fn has_no_memory_to_begin() {
    let street = street!();
    for flags in [&[][..], &WASM] {
        for limit in ["16384", "24576", "32768"] {
            let id = fresh_id();
            let flags = [&["--memory-limit", limit][..], flags].concat();
            let program = if flags.len() > 2 { "/hello.wasm" } else { "true" };
            let outcome = street.run_as(&id, &flags, &[program]);
            // It may be enough to begin with.
            if limit == "16384" || !outcome.status.success() {
                outcome.fails(&["killed (hint: is the memory limit too small?)"]);
            }
            street.lab.remove(&id);
            street.is_undisturbed();
        }
    }
    street.leave();
}

#[test]
fn loses_its_rootfs() {
    let street = street!();
    let (id, bundle) = street.run_bundle(Bundle::new().args(&["sleep", "10000"]));
    fs::remove_dir_all(bundle.rootfs()).unwrap();
    street.exec(&id, &["true"]).fails(&["no such file or directory"]);
    street.end(&id);
    // What containerd has mounted is taken away.
    let id = street.run(&[], &["sleep", "10000"]);
    let mounted =
        street.lab.containerd.bundle(&street.lab.containerd.namespace, &id).join("rootfs");
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
    street.exec(&id, &["echo", "still"]).ok().prints("still\n");
    street.end(&id);
    street.leave();
}

/// Thirty at once, of which every second one cannot be created or started.
#[test]
fn every_second_one_fails() {
    let street = street!();
    let numbers: Vec<usize> = (0..30).collect();
    at_once(&numbers, |number| {
        let id = fresh_id();
        let outcome = match number % 6 {
            0 => street.run_as(&id, &WASM, &["/missing.wasm"]),
            2 => street.run_as(&id, &[], &["/missing"]),
            4 => street.run_as(&id, &["--mount", "type=bind,src=/missing,dst=/a"], &["true"]),
            1 | 3 => street.run_as(&id, &[], &["sleep", "10000"]),
            _ => street.run_as(&id, &WASM, &["/sleep.wasm", "10000"]),
        };
        if number % 2 == 0 {
            outcome.fails(&["no such file"]);
            assert_eq!(street.lab.true_status(&id), None);
        } else {
            outcome.ok();
            assert_eq!(street.lab.true_status(&id).as_deref(), Some("RUNNING"));
        }
        street.lab.remove(&id);
    });
    street.is_undisturbed();
    street.leave();
}

/// A hook that hangs keeps nobody else waiting, and goes with its container.
#[test]
fn hangs_in_a_hook() {
    let street = street!();
    let hook = json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"] }]);
    let bundle = Bundle::new().set("/hooks", json!({ "createRuntime": hook }));
    let id = fresh_id();
    let cgroup = format!("/{}/{id}", street.lab.containerd.namespace);
    let root = bundle.rootfs();
    let bundle = bundle
        .set("/root/path", json!(root))
        .set("/linux/cgroupsPath", json!(cgroup))
        .set("/annotations", json!({ "io.containerd.runc.v2.group": street.lab.group() }));
    bundle.write();
    let create = street.lab.containerd.ctr_cli(&["containers", "create", "--config"]);
    let create = create.arg(bundle.path().join("config.json"));
    create.args(&["--runtime", Shim::Kiln.runtime(), &id]).output().ok();
    let start = street.lab.tasks(&["start", "--detach", "--null-io", &id]).spawn();
    let shim = street.lab.shim(&street.neighbour);
    eventually("the hook", || {
        street.lab.containerd.processes().iter().any(|&pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\0")
        })
    });
    let since = Instant::now();
    street.is_undisturbed();
    assert!(since.elapsed() < patience(2), "{:?}", since.elapsed());
    // Whoever waited for it does so no more: containerd has it deleted.
    start.signal(rustix::process::Signal::INT);
    drop(start);
    eventually("the hook's end", || {
        std::thread::sleep(Duration::from_millis(50));
        let _ = street.lab.tasks(&["delete", "--force", &id]).output();
        let others = street.lab.containerd.processes().into_iter();
        others
            .filter(|pid| *pid != shim && kiln_integration::chaos::warm_parent(shim) != Some(*pid))
            .count()
            == 0
    });
    street.lab.remove(&id);
    street.leave();
}
