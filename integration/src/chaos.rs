//! Kills whoever serves a container, at a moment of one's choice.
//!
//! A moment is told by the processes that come and go: the shim does each operation in a child of
//! its own, a job, or for wasm in a child of the warm parent. What is to be caught can be frozen
//! there, so that it takes no luck.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::containerd::{Containerd, Shim};
use crate::image::Image;
use crate::{Bundle, Cli, Outcome, eventually, examples, fresh_id, json, leftovers, proc};

/// An image with busybox and all modules.
pub const IMAGE: &str = "localhost/kiln-test/chaos:1";
/// The annotation that lets a container run modules.
pub const WASM: [&str; 2] = ["--annotation", "module.wasm.image/variant=compat"];

/// A containerd with the image, and the group of containers that share a shim.
#[derive(Debug)]
pub struct Lab {
    /// It is killed and started again here.
    pub containerd: Containerd,
    group: String,
}

impl Lab {
    /// Starts one.
    pub fn new() -> Self {
        let containerd = Containerd::start(false);
        let bundle = Bundle::new();
        let rootfs = bundle.rootfs();
        for module in ["sleep.wasm", "hello.wasm", "exit.wasm"] {
            let path = examples::find(module).unwrap_or_else(|| panic!("{module} is not built"));
            fs::copy(path, rootfs.join(module)).unwrap();
        }
        let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "WorkingDir": "/" });
        containerd.import(&Image::of_folder(IMAGE, &rootfs, &config, containerd.home()));
        Lab { containerd, group: fresh_id() }
    }

    /// `ctr containers create` with these flags, id and command.
    #[track_caller]
    pub fn define(&self, id: &str, flags: &[&str], command: &[&str]) {
        let words = ["containers", "create", "--snapshotter", crate::containerd::snapshotter()];
        let cli = self.containerd.ctr_cli(&words).args(&["--runtime", Shim::Kiln.runtime()]);
        cli.args(flags).arg(IMAGE).arg(id).args(command).output().ok();
    }

    /// The same, in the lab's group: one shim for all of them.
    #[track_caller]
    pub fn define_in_group(&self, id: &str, flags: &[&str], command: &[&str]) {
        let group = self.group_annotation();
        self.define(id, &[&["--annotation", &group], flags].concat(), command);
    }

    /// What the lab's group is called.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The annotation that puts a container into the lab's group.
    pub fn group_annotation(&self) -> String {
        format!("io.containerd.runc.v2.group={}", self.group)
    }

    /// `ctr tasks` with these words, ready to run.
    pub fn tasks(&self, words: &[&str]) -> Cli {
        self.containerd.ctr_cli(&["tasks"]).args(words)
    }

    /// `ctr tasks start --detach`.
    #[track_caller]
    pub fn start(&self, id: &str) -> Outcome {
        self.tasks(&["start", "--detach", "--null-io", id]).output()
    }

    /// Takes away a task, whatever is with it, and its container.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        let deleted = self.tasks(&["delete", "--force", id]).output();
        let error = &deleted.stderr;
        let expected = deleted.status.success()
            || ["not found", "exit with non-zero exit code"]
                .iter()
                .any(|text| error.contains(text));
        assert!(expected, "{deleted}");
        self.containerd.ctr(&["containers", "delete", id]).ok();
    }

    /// The tasks: id, pid and status.
    #[track_caller]
    pub fn list(&self) -> Vec<(String, i32, String)> {
        let list = self.tasks(&["ls"]).output().ok().stdout;
        let task = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[0].to_owned(), words[1].parse().unwrap(), words[2].to_owned())
        };
        list.lines().skip(1).map(task).collect()
    }

    /// The status of a task, which is true: who is said to run runs, in a cgroup of this id, and who
    /// is not does not. Nothing if there is no such task.
    #[track_caller]
    pub fn true_status(&self, id: &str) -> Option<String> {
        let mut status = None;
        eventually("the status to be true", || {
            let task = self.list().into_iter().find(|(other, ..)| other == id);
            status = task.as_ref().map(|(.., status)| status.clone());
            task.is_none_or(|(_, pid, status)| match status.as_str() {
                "STOPPED" => !proc::alive(pid),
                "CREATED" | "RUNNING" | "PAUSED" => is_of(pid, id),
                _ => false,
            })
        });
        status
    }

    /// The pids of the processes that were executed in a task, as `ctr tasks ps` has them.
    #[track_caller]
    pub fn execs(&self, id: &str) -> Vec<i32> {
        let list = self.tasks(&["ps", id]).output().ok().stdout;
        // PID, and the rest of a line only for an exec.
        let pid = |line: &str| {
            let (pid, info) = line.split_once(char::is_whitespace)?;
            (!info.trim().is_empty() && info.trim() != "-").then(|| pid.parse().unwrap())
        };
        list.lines().skip(1).filter_map(pid).collect()
    }

    /// What is there of the container though containerd says that it is not.
    pub fn left_of(&self, id: &str) -> Vec<String> {
        let namespace = &self.containerd.namespace;
        let bundle = self.containerd.bundle(namespace, id);
        let mut left = leftovers::find(id, &self.state(), &bundle);
        if bundle.exists() {
            left.push(format!("bundle {}", bundle.display()));
        }
        left
    }

    /// Where the shim has the state of what `ctr containers create` has made.
    fn state(&self) -> PathBuf {
        PathBuf::from("/run/containerd/kiln").join(&self.containerd.namespace)
    }

    /// Asserts that there is nothing of any task any more; what ends by itself may take a moment.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let since = Instant::now();
        loop {
            let mut left = self.containerd.leftovers();
            let state = fs::read_dir(self.state()).into_iter().flatten().flatten();
            left.extend(state.map(|entry| format!("state {}", entry.path().display())));
            if left.is_empty() {
                return;
            }
            assert!(since.elapsed() < crate::patience(5), "{left:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A file of the task's bundle with a pid in it.
    pub fn pid(&self, id: &str, file: &str) -> Option<i32> {
        let path = self.containerd.bundle(&self.containerd.namespace, id).join(file);
        fs::read_to_string(path).ok()?.parse().ok()
    }

    /// A task's shim, which is the parent of its init as soon as the fork that has made that has
    /// ended.
    #[track_caller]
    pub fn shim(&self, id: &str) -> i32 {
        let init = self.pid(id, "init.pid").unwrap_or_else(|| panic!("{id} has no init"));
        let mut shim = 0;
        eventually("the shim to be init's parent", || {
            let parent = proc::status_field(init, "PPid").and_then(|pid| pid.parse().ok());
            shim = parent.unwrap_or_else(|| panic!("the init of {id} has ended"));
            // A fork of the shim's own has its name, but leads no session.
            proc::status_field(shim, "NSsid").is_some_and(|sid| sid.ends_with(&shim.to_string()))
        });
        shim
    }
}

impl Drop for Lab {
    /// The folder stays with any shim, for the next container: not so for a test.
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.state());
    }
}

impl Default for Lab {
    fn default() -> Self {
        Lab::new()
    }
}

fn is_of(pid: i32, id: &str) -> bool {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    proc::alive(pid) && cgroup.contains(id)
}

/// The warm parent of a shim, if it has one.
pub fn warm_parent(shim: i32) -> Option<i32> {
    proc::children(shim).into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.ends_with(b"kiln-wasmedge\0warm\0")
    })
}

/// Whether there is time for all of it: `KILN_TEST_LONG=1`.
pub fn is_long() -> bool {
    std::env::var_os("KILN_TEST_LONG").is_some_and(|value| value == "1")
}

/// Does something with each of many, a few at a time.
pub fn at_once<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    const WORKERS: usize = 6;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Sends a signal; whether there was such a process.
pub fn signal(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Waits for a child of `parent` that is none of `known`. Looks without a pause, since a job takes a
/// millisecond. Nothing if `end` comes first.
pub fn new_child(parent: i32, known: &BTreeSet<i32>, mut end: impl FnMut() -> bool) -> Option<i32> {
    loop {
        // Before the look: what ends last is not missed.
        let over = end();
        let new = proc::children(parent).into_iter().find(|pid| !known.contains(pid));
        if new.is_some() || over {
            return new;
        }
    }
}

/// Waits without sleeping, for what is shorter than a sleep.
pub fn spin(time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The processes below `pid`, itself not.
pub fn descendants(pid: i32) -> Vec<i32> {
    let children = proc::children(pid);
    children.iter().flat_map(|&child| [vec![child], descendants(child)].concat()).collect()
}

/// Zombies among the children of `pid`.
pub fn zombies(pid: i32) -> usize {
    let is_zombie =
        |pid: &i32| proc::status_field(*pid, "State").is_some_and(|s| s.starts_with('Z'));
    proc::children(pid).iter().filter(|pid| is_zombie(pid)).count()
}

/// How many descriptors a process has open.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A process's memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident.
    pub rss: u64,
    /// Its share of it.
    pub pss: u64,
    /// What is no file's: pages of files are shared with whoever else runs at the time.
    pub anonymous: u64,
    /// What no other process has mapped.
    pub private: u64,
}

/// The memory of a process; nothing of one that has ended.
pub fn memory(pid: i32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let private = field("Private_Clean") + field("Private_Dirty");
    Memory { rss: field("Rss"), pss: field("Pss"), anonymous: field("Anonymous"), private }
}

impl std::ops::AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.rss += other.rss;
        self.pss += other.pss;
        self.anonymous += other.anonymous;
        self.private += other.private;
    }
}
