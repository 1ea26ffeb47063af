//! One container: its id, its state root, the commands on it, and the guard
//! that deletes it and looks for what is left.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::{Bundle, Cli, Outcome, leftovers, reaper};

/// A container id on a bundle. When dropped it is deleted by force, and what
/// stays behind fails the test.
#[derive(Debug)]
pub struct Container {
    /// Its id, unlike any other's on the machine.
    pub id: String,
    /// The bundle that it is made from.
    pub bundle: Bundle,
    shared_root: Option<PathBuf>,
    wrapper: Vec<String>,
}

impl Container {
    pub(crate) fn new(bundle: Bundle) -> Self {
        reaper::start();
        Container { id: fresh_id(), bundle, shared_root: None, wrapper: Vec::new() }
    }

    /// Runs all commands on it under another program, such as one that makes
    /// them another user's.
    pub fn under(mut self, wrapper: &[String]) -> Self {
        self.wrapper = wrapper.to_vec();
        self
    }

    /// Uses another's state root, for what concerns several containers.
    pub fn in_root_of(mut self, other: &Container) -> Self {
        self.shared_root = Some(other.root());
        self
    }

    /// The value for `--root`.
    pub fn root(&self) -> PathBuf {
        self.shared_root.clone().unwrap_or_else(|| self.bundle.home().join("root"))
    }

    /// The binary with `--root` of this container and these words after it.
    pub fn cli(&self, words: &[&str]) -> Cli {
        Cli::new(["--root"]).arg(self.root()).args(words).under(&self.wrapper)
    }

    /// `create` with further flags, ready to run.
    pub fn create_cli(&self, flags: &[&str]) -> Cli {
        self.bundle_cli("create", flags)
    }

    /// `run` with further flags, ready to run.
    pub fn run_cli(&self, flags: &[&str]) -> Cli {
        self.bundle_cli("run", flags)
    }

    /// `exec` with these flags and this command, ready to run.
    pub fn exec_cli(&self, flags: &[&str], command: &[&str]) -> Cli {
        self.cli(&["exec"]).args(flags).arg(&self.id).args(command)
    }

    /// Runs a command by `exec`.
    pub fn exec(&self, command: &[&str]) -> Outcome {
        self.exec_cli(&[], command).output()
    }

    fn bundle_cli(&self, operation: &str, flags: &[&str]) -> Cli {
        self.cli(&[operation, "--bundle"]).arg(self.bundle.path()).args(flags).arg(&self.id)
    }

    /// Runs `create`.
    pub fn create(&self) -> Outcome {
        self.create_cli(&[]).output()
    }

    /// Runs `start`.
    pub fn start(&self) -> Outcome {
        self.on_id("start", &[])
    }

    /// Runs `run` in the foreground.
    pub fn run(&self) -> Outcome {
        self.run_cli(&[]).output()
    }

    /// Runs `run --detach`.
    pub fn detach(&self) -> Outcome {
        self.run_cli(&["--detach"]).output()
    }

    /// Runs `kill` with this signal.
    pub fn kill(&self, signal: &str) -> Outcome {
        self.on_id("kill", &[signal])
    }

    /// Runs `delete`.
    pub fn delete(&self) -> Outcome {
        self.on_id("delete", &[])
    }

    /// Runs `delete --force`.
    pub fn delete_force(&self) -> Outcome {
        self.cli(&["delete", "--force", &self.id]).output()
    }

    /// Runs an operation on the id, with words after it.
    pub fn on_id(&self, operation: &str, after: &[&str]) -> Outcome {
        self.cli(&[operation, &self.id]).args(after).output()
    }

    /// What `state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        let outcome = self.on_id("state", &[]).ok();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|err| panic!("{err}: {outcome}"))
    }

    /// The status in `state`.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// The init's process id in `state`.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let pid = self.state()["pid"].as_i64().unwrap();
        i32::try_from(pid).unwrap()
    }

    /// Waits until `state` says `status`.
    #[track_caller]
    pub fn await_status(&self, status: &str) {
        eventually(&format!("{} to be {status}", self.id), || self.status() == status);
    }

    /// Reads a file of the rootfs when it has content.
    #[track_caller]
    pub fn await_file(&self, path: &str) -> String {
        let path = self.bundle.rootfs().join(path.trim_start_matches('/'));
        let mut text = String::new();
        eventually(&format!("content in {}", path.display()), || {
            text = fs::read_to_string(&path).unwrap_or_default();
            !text.is_empty()
        });
        text
    }

    /// Asserts that nothing of this id is on the machine.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left = leftovers::find(&self.id, &self.root(), self.bundle.home());
        assert!(left.is_empty(), "left of {}: {left:#?}", self.id);
    }
}

impl Container {
    /// The same where the test has mounts on the host in the container's folder.
    #[track_caller]
    pub fn assert_nothing_left_but_mounts(&self) {
        let mut left = leftovers::find(&self.id, &self.root(), self.bundle.home());
        left.retain(|what| !what.starts_with("mount on"));
        assert!(left.is_empty(), "left of {}: {left:#?}", self.id);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let deleted = self.cli(&["delete", "--force", &self.id]).spawn().try_wait();
        self.bundle.undo_host_mounts();
        let left = leftovers::find(&self.id, &self.root(), self.bundle.home());
        if left.is_empty() && deleted.is_ok() {
            return;
        }
        leftovers::remove(&self.id, self.bundle.home());
        let left = &left[..left.len().min(12)];
        let outcome = deleted.map_or_else(|hung| hung, |outcome| outcome.to_string());
        let report = format!("left of {} after delete --force: {left:#?}\n{outcome}", self.id);
        // A second panic would abort the test program and hide the first.
        match std::thread::panicking() {
            true => eprintln!("{report}"),
            false => panic!("{report}"),
        }
    }
}

/// Polls `ready` until it is true.
///
/// # Panics
/// After a minute of waiting for `what`: a machine in software is slow.
#[track_caller]
pub fn eventually(what: &str, ready: impl FnMut() -> bool) {
    assert!(within(crate::patience(60), ready), "waited a minute or more for {what}");
}

/// Polls `ready` until it is true, or for that time: whether it came to be.
pub fn within(time: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    loop {
        if ready() {
            return true;
        }
        if since.elapsed() > time {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `create` and `run` of this bundle must fail, with all of `parts` in the error, and leave
/// nothing.
#[track_caller]
pub fn refused(bundle: Bundle, parts: &[&str]) {
    let c = bundle.container();
    c.create().fails(parts);
    c.assert_nothing_left();
    c.run().fails(parts);
    c.assert_nothing_left();
}

/// An id that no other container on the machine has, and that is part of none.
pub fn fresh_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Process ids repeat, in a pid namespace at once; the time does not.
    static START: LazyLock<u128> =
        LazyLock::new(|| SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_micros()));
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("kt{:x}-{}-{number:04}", *START & 0xffff_ffff, std::process::id())
}
