//! A Docker Engine of the tests' own, with kiln as its runtime: private storage, state and socket in
//! a temporary folder, no network, the containerd of [`Containerd`], and a guard that proves that
//! nothing of its containers is left.
//!
//! [`Docker::shared`] gives all tests of a program that run at one time the same one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::containerd::{Containerd, Shared};
use crate::{
    Bundle, Cli, Outcome, binary, cgroup, command, eventually, fresh_id, leftovers, patience, proc,
    reaper, shared,
};

/// busybox with its applets, in every [`Docker`].
pub const BUSYBOX: &str = "kiln-test/busybox:1";

/// A Docker Engine that runs. When dropped it is ended, with its containers, and what stays behind
/// fails the test.
#[derive(Debug)]
pub struct Docker {
    home: TempDir,
    daemon: Child,
    /// The cgroup that its containers' are in.
    parent: cgroup::Parent,
    /// Which runs its containers.
    _containerd: Shared,
}

impl Docker {
    /// The Docker Engine of this test program; started if none runs.
    #[track_caller]
    pub fn shared() -> Arc<Docker> {
        static SHARED: Mutex<Weak<Docker>> = Mutex::new(Weak::new());
        shared(&SHARED, Docker::start)
    }

    /// Starts one, waits until it answers, and gives it busybox.
    ///
    /// # Panics
    /// Without root or Docker, or if it does not come up.
    pub fn start() -> Self {
        for program in ["dockerd", "docker"] {
            assert!(command::exists(program), "no {program}: run scripts/setup");
        }
        let containerd = Containerd::shared(false);
        // A socket's path has 107 bytes at most.
        let home = tempfile::Builder::new().prefix("kd-").tempdir().unwrap();
        let parent = cgroup::Parent(fresh_id());
        let daemon = spawn(home.path(), &containerd.socket(), &parent.0);
        let mut docker = Docker { home, daemon, parent, _containerd: containerd };
        eventually("dockerd to be ready", || docker.is_ready());
        let bundle = Bundle::new();
        docker.import(BUSYBOX, &bundle.rootfs(), &["CMD [\"sh\"]", "ENV PATH=/bin"]);
        docker
    }

    /// The folder of everything.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The value for `--host`.
    pub fn host(&self) -> String {
        host(self.home())
    }

    /// The name of the cgroup that the containers' are in.
    pub fn parent(&self) -> &str {
        &self.parent.0
    }

    /// `docker` with these words, ready to run.
    pub fn cli(&self, words: &[&str]) -> Cli {
        let cli = Cli::new(["--host", &self.host()]).binary("docker").args(words);
        // What a user has set up is not for the tests; Debian 12's engine builds by itself.
        cli.env("DOCKER_CONFIG", self.home()).env("DOCKER_BUILDKIT", "0")
    }

    /// Runs `docker` with these words.
    pub fn docker(&self, words: &[&str]) -> Outcome {
        self.cli(words).output()
    }

    /// `docker run`, without a network unless the flags say otherwise, ready to run.
    pub fn run_cli(&self, flags: &[&str], command: &[&str]) -> Cli {
        let network = if flags.contains(&"--network") { &[][..] } else { &["--network", "none"] };
        self.cli(&["run"]).args(network).args(flags).args(command)
    }

    /// Runs a container of busybox in the foreground, removed at its end.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Outcome {
        self.run_cli(flags, &["--rm", BUSYBOX]).args(command).output()
    }

    /// Starts a container of busybox in the background; gives its name.
    #[track_caller]
    pub fn detach(&self, flags: &[&str], command: &[&str]) -> String {
        let name = fresh_id();
        let cli = self.run_cli(flags, &["--detach", "--name", &name, BUSYBOX]).args(command);
        cli.output().ok();
        name
    }

    /// What `inspect` says of a container.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        let text = self.docker(&["container", "inspect", name]).ok().stdout;
        serde_json::from_str::<Value>(&text).unwrap()[0].take()
    }

    /// The container's init on the host.
    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        let pid = self.inspect(name)["State"]["Pid"].as_i64().unwrap();
        i32::try_from(pid).unwrap()
    }

    /// Removes a container, running or not.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.docker(&["rm", "--force", name]).ok();
    }

    /// Makes an image of a folder's contents. `changes` are lines of a Dockerfile.
    #[track_caller]
    pub fn import(&self, name: &str, rootfs: &Path, changes: &[&str]) {
        let archive = self.home().join("import.tar");
        let tar = Cli::new(["--create", "--file"]).binary("tar").arg(&archive);
        tar.arg("--directory").arg(rootfs).arg(".").output().ok();
        let import = self.cli(&["import"]);
        let import = changes.iter().fold(import, |cli, line| cli.args(&["--change", line]));
        import.arg(archive).arg(name).output().ok();
    }

    /// What is there of its containers, in words.
    pub fn leftovers(&self) -> Vec<String> {
        let containers = self.home().join("data/overlay2/");
        let id = format!("{}/", self.parent());
        let mut left = leftovers::find(&id, Path::new("/nowhere"), &containers);
        let states = fs::read_dir(self.home().join("exec/runtime-runc/moby"));
        let states = states.into_iter().flatten().flatten();
        left.extend(states.map(|entry| format!("state {}", entry.path().display())));
        let cgroups = cgroup::directories_of(self.parent()).into_iter();
        let below = |dir: &PathBuf| dir.parent().is_some_and(|dir| dir.ends_with(self.parent()));
        left.extend(cgroups.filter(below).map(|dir| format!("cgroup {}", dir.display())));
        left
    }

    fn is_ready(&mut self) -> bool {
        let log = fs::read_to_string(self.home().join("log")).unwrap_or_default();
        if let Some(status) = command::wait_child(&mut self.daemon, Duration::ZERO) {
            panic!("dockerd ended: {status}\n{log}");
        }
        log.contains("API listen on")
    }

    /// Removes all containers.
    fn empty(&self) {
        let listed = self.cli(&["ps", "--all", "--quiet"]).spawn().try_wait();
        let listed = listed.map(|outcome| outcome.stdout).unwrap_or_default();
        for id in listed.lines() {
            let _ = self.cli(&["rm", "--force", id]).spawn().try_wait();
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.empty();
        let mut left = leftovers::after_grace(|| self.leftovers());
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        if command::wait_child(&mut self.daemon, patience(20)).is_none() {
            left.push("dockerd, which did not end on SIGTERM".to_owned());
            reaper::end(&mut self.daemon);
        }
        // The engine's own: its storage, and the host's network namespace.
        for mount in proc::mounts("self").into_iter().rev() {
            if mount.point.starts_with(self.home()) {
                let _ = unmount(&mount.point, UnmountFlags::DETACH);
            }
        }
        if left.is_empty() {
            return;
        }
        let log = fs::read_to_string(self.home().join("log")).unwrap_or_default();
        leftovers::remove(self.parent(), self.home());
        let report = format!("left of Docker in {}: {left:#?}", self.home().display());
        match std::thread::panicking() {
            true => eprintln!("{report}"),
            false => panic!("{report}\n{log}"),
        }
    }
}

fn host(home: &Path) -> String {
    format!("unix://{}", home.join("s").display())
}

fn spawn(home: &Path, containerd: &Path, parent: &str) -> Child {
    let at = |name: &str| home.join(name);
    let config = at("daemon.json");
    // Else a key is made in /etc.
    fs::write(&config, json!({ "deprecated-key-path": at("key.json") }).to_string()).unwrap();
    let mut command = Command::new("dockerd");
    command.arg("--config-file").arg(config);
    command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
    command.arg("--pidfile").arg(at("pid")).arg("--host").arg(host(home));
    command.arg("--containerd").arg(containerd);
    // In namespaces that the containerd's other users do not know of.
    command.args(["--containerd-namespace", &fresh_id()]);
    command.args(["--containerd-plugins-namespace", &fresh_id()]);
    command.args(["--bridge=none", "--iptables=false", "--ip-masq=false", "--ip-forward=false"]);
    command.arg("--cgroup-parent").arg(format!("/{parent}"));
    command.arg("--add-runtime").arg(format!("kiln={}", binary::path().display()));
    command.args(["--default-runtime", "kiln"]);
    let log = File::create(at("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    reaper::spawn(&mut command)
}
