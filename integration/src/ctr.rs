//! Tasks in a containerd of the tests' own, by `ctr`: of kiln's shim, or of runc's with kiln.

use std::fs;
use std::ops::Deref;

use crate::containerd::{Containerd, Shared, Shim};
use crate::image::Image;
use crate::shim::zombies;
use crate::{Cli, Outcome, eventually, fresh_id, proc};

/// The image of busybox.
pub const BUSYBOX: &str = "localhost/kiln-test/busybox:1";

/// A containerd with busybox in it, shared by all tests of a program that run at one time.
#[derive(Debug)]
pub struct Ctr {
    containerd: Shared,
    shim: Shim,
}

impl Ctr {
    /// This test's share, for tasks of kiln's shim.
    #[track_caller]
    pub fn new() -> Self {
        Ctr::of(Shim::Kiln)
    }

    /// The same for tasks of any shim's.
    #[track_caller]
    pub fn of(shim: Shim) -> Self {
        let containerd = Containerd::shared(false);
        containerd.import(&Image::busybox(BUSYBOX, containerd.home()));
        Ctr { containerd, shim }
    }

    /// `ctr run` of busybox with these flags, ready to run; the id is chosen.
    pub fn run_cli(&self, flags: &[&str], command: &[&str]) -> Cli {
        self.run_as(&fresh_id(), flags, command)
    }

    /// The same with this id.
    pub fn run_as(&self, id: &str, flags: &[&str], command: &[&str]) -> Cli {
        self.run_image(BUSYBOX, flags, &[&[id], command].concat())
    }

    /// The same of another image, the id before the command.
    pub fn run_image(&self, image: &str, flags: &[&str], command: &[&str]) -> Cli {
        let fifos = self.home().join("f");
        let flags = [&["--fifo-dir", fifos.to_str().unwrap()], flags].concat();
        self.containerd.run_cli(self.shim, &flags, image, command)
    }

    /// Runs it to its end; nothing of it stays.
    #[track_caller]
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Outcome {
        self.run_cli(&[&["--rm"], flags].concat(), command).output()
    }

    /// Runs it in the background.
    #[track_caller]
    pub fn detach(&self, flags: &[&str], command: &[&str]) -> Task<'_> {
        let id = fresh_id();
        self.run_as(&id, &[&["--detach"], flags].concat(), command).output().ok();
        Task { ctr: self, id }
    }

    /// Takes care of a task that the test has started itself.
    pub fn adopt(&self, id: &str) -> Task<'_> {
        Task { ctr: self, id: id.to_owned() }
    }
}

impl Default for Ctr {
    fn default() -> Self {
        Ctr::new()
    }
}

impl Deref for Ctr {
    type Target = Containerd;

    fn deref(&self) -> &Containerd {
        &self.containerd
    }
}

/// A task. When dropped it is killed, and deleted with its container; a child that its shim has not
/// reaped by then fails the test.
#[derive(Debug)]
pub struct Task<'a> {
    ctr: &'a Ctr,
    /// The container's id.
    pub id: String,
}

impl Task<'_> {
    /// `ctr tasks` with these words, and the container after them.
    #[track_caller]
    pub fn ctr(&self, words: &[&str]) -> Outcome {
        self.ctr.ctr(&[&["tasks"], words, &[&self.id]].concat())
    }

    /// `ctr tasks exec`, ready to run, with an exec id of its own.
    pub fn exec_cli(&self, flags: &[&str], command: &[&str]) -> Cli {
        self.exec_as(&fresh_id(), flags, command)
    }

    /// The same with this exec id.
    pub fn exec_as(&self, exec_id: &str, flags: &[&str], command: &[&str]) -> Cli {
        let fifos = self.ctr.home().join("f");
        let fifos = fifos.to_str().unwrap();
        let words = [&["tasks", "exec", "--fifo-dir", fifos, "--exec-id", exec_id], flags];
        self.ctr.ctr_cli(&words.concat()).arg(&self.id).args(command)
    }

    /// Executes a command to its end.
    #[track_caller]
    pub fn exec(&self, flags: &[&str], command: &[&str]) -> Outcome {
        self.exec_cli(flags, command).output()
    }

    /// What `ctr tasks ls` calls its status; nothing if there is no such task.
    pub fn status(&self) -> String {
        let list = self.ctr.ctr(&["tasks", "ls"]).ok().stdout;
        let mut lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|words| words.first() == Some(&self.id.as_str()));
        line.map(|words| words[2].to_owned()).unwrap_or_default()
    }

    /// Waits until it has this status.
    #[track_caller]
    pub fn await_status(&self, status: &str) {
        eventually(&format!("the status {status}"), || self.status() == status);
    }

    /// The container's init.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.number("init.pid")
    }

    /// The shim: init's parent, where it has not left its pid.
    #[track_caller]
    pub fn shim_pid(&self) -> i32 {
        match self.ctr.shim {
            Shim::Kiln => self.number("shim.pid"),
            Shim::Runc => proc::status_field(self.pid(), "PPid").unwrap().parse().unwrap(),
        }
    }

    #[track_caller]
    fn number(&self, file: &str) -> i32 {
        let path = self.ctr.bundle(&self.ctr.namespace, &self.id).join(file);
        fs::read_to_string(&path).unwrap().parse().unwrap()
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        let bundle = self.ctr.bundle(&self.ctr.namespace, &self.id);
        if std::thread::panicking() || !bundle.exists() {
            let _ = self.ctr.ctr_cli(&["tasks", "delete", "--force", &self.id]).spawn().try_wait();
            return;
        }
        if self.ctr.shim == Shim::Kiln {
            let shim = self.shim_pid();
            eventually("the shim to reap its children", || zombies(shim).is_empty());
        }
        self.ctr(&["delete", "--force"]);
        self.ctr.ctr(&["containers", "delete", &self.id]).ok();
        assert!(!bundle.exists(), "{} is left", bundle.display());
    }
}
