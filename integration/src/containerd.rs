//! A containerd of the tests' own: private root, state and sockets in a temporary folder, a network
//! of its own, and a guard that proves that nothing of it is left.
//!
//! [`Containerd::shared`] gives all tests of a program that run at one time the same one; the last
//! of them ends it. Its containers are run by kiln in two ways, see [`Shim`].
//!
//! Variables: `KILN` (as everywhere), `KILN_SHIM` (containerd-shim-kiln-v1; beside `KILN` without
//! it).

pub mod config;
mod network;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use config::configuration;
pub use config::snapshotter;
use network::Network;

use crate::image::Image;
use crate::{
    Cli, Outcome, binary, cgroup, command, eventually, fresh_id, leftovers, proc, reaper, shared,
};

/// The image of the sandboxes' container.
const PAUSE: &str = "localhost/kiln-test/pause:1";

/// How containerd comes to run a container by kiln.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// containerd's own shim for runc, with kiln as `BinaryName`.
    Runc,
    /// kiln's shim.
    Kiln,
}

impl Shim {
    /// What containerd calls the runtime.
    pub fn runtime(self) -> &'static str {
        match self {
            Shim::Runc => "io.containerd.runc.v2",
            Shim::Kiln => "io.containerd.kiln.v1",
        }
    }

    /// The runtime's name in the configuration of CRI: the handler of a RuntimeClass.
    pub fn handler(self) -> &'static str {
        match self {
            Shim::Runc => "kiln-runc",
            Shim::Kiln => "kiln",
        }
    }

    /// Why it cannot be tested here; nothing if it can.
    pub fn missing(self) -> Option<String> {
        match self {
            Shim::Kiln if shim_binary().is_none() => Some(format!(
                "no containerd-shim-kiln-v1 beside {}, and no KILN_SHIM",
                binary::path().display()
            )),
            _ => None,
        }
    }
}

/// Declares each of the named functions, which take a [`Shim`], as a test for every shim.
#[macro_export]
macro_rules! for_each_shim {
    ($($(#[$attribute:meta])* $name:ident),+ $(,)?) => {
        mod runc_shim {
            $($(#[$attribute])* #[test] fn $name() {
                super::$name($crate::containerd::Shim::Runc);
            })+
        }
        mod kiln_shim {
            $($(#[$attribute])* #[test] fn $name() {
                if let Some(reason) = $crate::containerd::Shim::Kiln.missing() {
                    $crate::skip!("{reason}");
                }
                super::$name($crate::containerd::Shim::Kiln);
            })+
        }
    };
}

/// A containerd that runs. When dropped it is ended, with all that runs in it, and what stays
/// behind fails the test.
#[derive(Debug)]
pub struct Containerd {
    home: TempDir,
    child: Child,
    cri: bool,
    /// Its namespace for `ctr`, which no other containerd on the machine has.
    pub namespace: String,
    network: Network,
    /// The namespace's cgroup.
    _parent: cgroup::Parent,
    /// Sockets of shims that have been seen.
    shim_sockets: Mutex<BTreeSet<PathBuf>>,
}

/// One test's share of a containerd: shows the end of its log when the test fails.
#[derive(Debug)]
pub struct Shared(Arc<Containerd>);

impl Containerd {
    /// The containerd of this test program, with CRI or without; started if none runs.
    #[track_caller]
    pub fn shared(cri: bool) -> Shared {
        static RUNNING: [Mutex<Weak<Containerd>>; 2] = [const { Mutex::new(Weak::new()) }; 2];
        Shared(shared(&RUNNING[usize::from(cri)], || Containerd::start(cri)))
    }

    /// Starts one, and waits until it answers.
    ///
    /// # Panics
    /// Without root or containerd, or if it does not come up.
    pub fn start(cri: bool) -> Self {
        Containerd::start_with(cri, "")
    }

    /// The same with further lines of configuration (TOML, whole tables) at the end.
    pub fn start_with(cri: bool, more: &str) -> Self {
        assert!(rustix::process::getuid().is_root(), "containerd needs root");
        assert!(command::exists("containerd"), "no containerd: run scripts/setup");
        // What shims leave to their nearest ancestor is reaped, and seen.
        reaper::start();
        // A socket's path has 107 bytes at most, and shims put theirs below the folder, too.
        let home = tempfile::Builder::new().prefix("kc-").tempdir().unwrap();
        // As containerd's own folders: root of a user namespace gets through.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let network = Network::new();
        network.configure(&home.path().join("cni"));
        let config = home.path().join("config.toml");
        fs::write(&config, configuration(home.path(), cri) + more).unwrap();
        let options = format!("Root = {:?}\n", home.path().join("r"));
        fs::write(home.path().join("shim.toml"), options).unwrap();
        let namespace = fresh_id();
        let mut containerd = Containerd {
            child: spawn(home.path(), &config),
            home,
            cri,
            _parent: cgroup::Parent(namespace.clone()),
            namespace,
            network,
            shim_sockets: Mutex::default(),
        };
        containerd.await_start();
        if cri {
            let pause = Image::of_example(PAUSE, "pause", containerd.home());
            containerd.import_into("k8s.io", &pause);
        }
        containerd
    }

    /// Kills containerd and starts it again; the shims live on.
    ///
    /// # Panics
    /// If it does not come up again.
    pub fn kill_and_restart(&mut self) {
        self.stop(Signal::KILL);
        self.start_again();
    }

    /// The folder of everything.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Its socket, also CRI's.
    pub fn socket(&self) -> PathBuf {
        self.home().join("c.sock")
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The root below which kiln has the state of containers, a folder for each namespace.
    pub fn kiln_root(&self) -> PathBuf {
        self.home().join("r")
    }

    /// The state folder of a task, which the shim calls its bundle.
    pub fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
        self.tasks_folder().join(namespace).join(id)
    }

    /// What containerd and the shims have logged, also before a restart.
    pub fn log(&self) -> String {
        ["log.before", "log"]
            .map(|name| fs::read_to_string(self.home().join(name)).unwrap_or_default())
            .concat()
    }

    /// Ends containerd by this signal, and nothing else: what it has started lives on.
    pub fn stop(&mut self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
        if command::wait_child(&mut self.child, crate::patience(20)).is_none() {
            reaper::end(&mut self.child);
            panic!("containerd did not end on {signal:?}\n{}", tail(&self.log()));
        }
    }

    /// Starts it again after [`Containerd::stop`], and waits until it answers.
    pub fn start_again(&mut self) {
        fs::write(self.home().join("log.before"), self.log()).unwrap();
        self.child = spawn(self.home(), &self.home().join("config.toml"));
        self.await_start();
    }

    /// `ctr` in the tests' namespace with these words, ready to run.
    pub fn ctr_cli(&self, words: &[&str]) -> Cli {
        self.ctr_in(&self.namespace, words)
    }

    /// Runs `ctr` in the tests' namespace.
    pub fn ctr(&self, words: &[&str]) -> Outcome {
        self.ctr_cli(words).output()
    }

    /// `ctr` in another namespace (`k8s.io` is CRI's), ready to run.
    pub fn ctr_in(&self, namespace: &str, words: &[&str]) -> Cli {
        let cli = Cli::new(["--address"]).binary("ctr").arg(self.socket());
        cli.args(&["--namespace", namespace]).args(words)
    }

    /// `ctr run` with the flags that choose the shim, these after them, then the image, an id, and
    /// the words of `command`.
    pub fn run_cli(&self, shim: Shim, flags: &[&str], image: &str, command: &[&str]) -> Cli {
        let root = self.kiln_root();
        let cli = self.ctr_cli(&["run", "--snapshotter", snapshotter()]);
        let cli = cli.args(&["--runtime", shim.runtime()]);
        let cli = match shim {
            Shim::Runc => cli.arg("--runc-binary").arg(binary::path()).arg("--runc-root").arg(root),
            Shim::Kiln => cli,
        };
        cli.args(flags).arg(image).args(command)
    }

    /// Imports an image for `ctr`.
    #[track_caller]
    pub fn import(&self, image: &Image) {
        self.import_into(&self.namespace, image);
    }

    /// Imports an image for the namespace (`k8s.io` is CRI's).
    #[track_caller]
    pub fn import_into(&self, namespace: &str, image: &Image) {
        let words = ["image", "import", "--snapshotter", snapshotter()];
        self.ctr_in(namespace, &words).arg(&image.archive).output().ok();
    }

    /// Remembers the sockets of the shims that run, for the search at the end.
    pub fn note_shims(&self) {
        let bundles = folders(&self.tasks_folder()).into_iter().flat_map(|dir| folders(&dir));
        let mut seen = self.shim_sockets.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        seen.extend(bundles.filter_map(|dir| shim_address(&dir)));
    }

    /// Everything that is there of containers and pods, in words: what a test that has removed its
    /// own looks at. Of the daemon itself nothing is meant.
    pub fn leftovers(&self) -> Vec<String> {
        self.note_shims();
        let root = self.kiln_root();
        // What is in the namespaces: their own folders stay with runc, too, and end with this.
        let mut left = leftovers::find(&format!("{}/", self.namespace), &root, self.home());
        let state = folders(&root).into_iter().flat_map(|dir| entries(&dir));
        left.extend(state.map(|at| format!("state {}", at.display())));
        let cgroups = cgroup::directories_of(&self.namespace);
        let cgroups = cgroups.iter().flat_map(|dir| folders(dir));
        left.extend(cgroups.map(|dir| format!("cgroup {}", dir.display())));
        let seen = self.shim_sockets.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        left.extend(seen.iter().filter(|at| at.exists()).map(|at| format!("socket {at:?}")));
        left.extend(self.processes().iter().map(|&pid| leftovers::describe(pid)));
        left.extend(self.network.left());
        left
    }

    fn tasks_folder(&self) -> PathBuf {
        self.home().join("s/io.containerd.runtime.v2.task")
    }

    fn await_start(&mut self) {
        let cri = self.cri;
        // CRI is served last, and says so before it is.
        let last_word =
            if cri { "Start streaming server" } else { "containerd successfully booted" };
        eventually("containerd to be ready", || {
            if let Some(status) = command::wait_child(&mut self.child, Duration::ZERO) {
                panic!("containerd ended: {status}\n{}", self.log());
            }
            let log = fs::read_to_string(self.home().join("log")).unwrap_or_default();
            let broken =
                |line: &str| line.contains("failed to load plugin") && line.contains("v1.cri");
            assert!(!cri || !log.lines().any(broken), "no CRI: {}", tail(&log));
            log.contains(last_word) && UnixStream::connect(self.socket()).is_ok()
        });
    }

    /// Whatever has the folder in its command line or its environment, but containerd: shims, and
    /// what they have started that is not a container.
    pub fn processes(&self) -> Vec<i32> {
        let home = self.home().as_os_str().as_encoded_bytes();
        let names = |pid: &i32| {
            ["cmdline", "environ"].iter().any(|file| {
                let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                text.windows(home.len()).any(|part| part == home)
            })
        };
        let others = proc::pids().into_iter().filter(|&pid| pid != self.pid());
        others.filter(|pid| names(pid) && proc::alive(*pid)).collect()
    }

    /// Kills and deletes all tasks and containers, in every namespace.
    fn empty(&self) {
        self.note_shims();
        for namespace in self.listed(self.ctr_cli(&["namespaces", "ls", "-q"])) {
            for task in self.listed(self.ctr_in(&namespace, &["tasks", "ls", "-q"])) {
                let delete = ["tasks", "delete", "--force", &task];
                let _ = self.ctr_in(&namespace, &delete).spawn().try_wait();
            }
        }
    }

    fn listed(&self, cli: Cli) -> Vec<String> {
        let outcome = cli.spawn().try_wait();
        let text = outcome.map(|outcome| outcome.stdout).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Ends containerd; `false` if it must be killed for it.
    fn end(&mut self) -> bool {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let ended = command::wait_child(&mut self.child, crate::patience(10)).is_some();
        if !ended {
            reaper::end(&mut self.child);
        }
        ended
    }

    /// Cleans up after a failed test as well as one can from outside.
    fn sweep(&self) {
        for pid in self.processes() {
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        leftovers::remove(&self.namespace, self.home());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.empty();
        // Shims end after their last task, by themselves.
        let mut left = leftovers::after_grace(|| self.leftovers());
        if !self.end() {
            left.push("containerd, which did not end on SIGTERM".to_owned());
        }
        if left.is_empty() {
            return;
        }
        let report = format!("left of containerd in {}: {left:#?}", self.home().display());
        let log = self.log();
        self.sweep();
        match std::thread::panicking() {
            true => eprintln!("{report}"),
            false => panic!("{report}\n{}", tail(&log)),
        }
    }
}

impl std::ops::Deref for Shared {
    type Target = Containerd;

    fn deref(&self) -> &Containerd {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", tail(&self.0.log()));
        }
    }
}

/// The end of a log, its lines cut: some have a whole config in them.
fn tail(log: &str) -> String {
    let lines: Vec<String> = log.lines().map(|line| line.chars().take(400).collect()).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Where the shim of a task listens.
fn shim_address(bundle: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(bundle.join("address"));
    // As of 1.7.
    let text = text.or_else(|_| fs::read_to_string(bundle.join("bootstrap.json"))).ok()?;
    let (_, path) = text.split_once("unix://")?;
    path.split('"').next().map(PathBuf::from)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut entries = entries(dir);
    entries.retain(|path| path.is_dir());
    entries
}

/// kiln's shim: `$KILN_SHIM`, or beside the binary under test.
pub fn shim_binary() -> Option<PathBuf> {
    let beside = || Some(binary::path().parent()?.join("containerd-shim-kiln-v1"));
    let path = std::env::var_os("KILN_SHIM").map(PathBuf::from).or_else(beside)?;
    path.is_file().then_some(path)
}

fn spawn(home: &Path, config: &Path) -> Child {
    let log = fs::File::create(home.join("log")).unwrap();
    let mut command = Command::new("containerd");
    command.arg("--config").arg(config).arg("--log-level").arg("info");
    command.env("PATH", search_path());
    if std::env::var_os("KILN_CACHE_DIR").is_none() {
        command.env("KILN_CACHE_DIR", home.join("cache"));
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    reaper::spawn(&mut command)
}

/// `PATH` for containerd, which looks for shims in it: kiln's comes from the build.
fn search_path() -> OsString {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let shim = shim_binary().and_then(|path| Some(path.parent()?.to_path_buf()));
    std::env::join_paths(shim.into_iter().chain(std::env::split_paths(&inherited))).unwrap()
}
