//! Podman with storage, state and configuration of its own in a temporary folder, with kiln as its
//! runtime, and a guard that proves that nothing of its containers is left.
//!
//! [`Podman::shared`] gives all tests of a program that run at one time the same one. kiln's state
//! is where it is for every Podman, in `/run/kiln`: Podman asks for a container's state without
//! `--root`, whatever it is told (`--runtime-flag`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::image::Image;
use crate::{Cli, Outcome, binary, cgroup, command, fresh_id, leftovers, proc, reaper, shared};

/// busybox with its applets, in every [`Podman`].
pub const BUSYBOX: &str = "localhost/kiln-test/busybox:1";

/// The user of [`Podman::rootless`], who is in no file of the host's.
const USER: u32 = 47_112;
/// The first of that user's 65536 further ids.
const SUBORDINATE: u32 = 400_000;

/// One Podman. When dropped it removes its containers, and what stays behind fails the test.
#[derive(Debug)]
pub struct Podman {
    home: TempDir,
    /// The cgroup that its containers' are in.
    parent: cgroup::Parent,
    /// What runs it as a user, if one is to.
    wrapper: Vec<String>,
}

impl Podman {
    /// The Podman of this test program; made if there is none.
    #[track_caller]
    pub fn shared() -> Arc<Podman> {
        static SHARED: Mutex<Weak<Podman>> = Mutex::new(Weak::new());
        shared(&SHARED, Podman::new)
    }

    /// Makes one, of root's, with busybox.
    ///
    /// # Panics
    /// Without root or Podman.
    pub fn new() -> Self {
        let podman = Podman::make(0);
        podman.load(&Image::busybox(BUSYBOX, podman.home()));
        podman
    }

    /// Makes one of a user who is not root and has subordinate ids, with busybox. Who that is, only
    /// its processes know: by mounts in a namespace of their own.
    ///
    /// # Panics
    /// As [`Podman::new`]; also without uidmap's newuidmap.
    pub fn rootless() -> Self {
        assert!(command::exists("newuidmap"), "no newuidmap: run scripts/setup");
        let mut podman = Podman::make(USER);
        let home = podman.home().to_path_buf();
        let image = Image::busybox(BUSYBOX, &home);
        let entry = format!("kt-user:{SUBORDINATE}:65536\n");
        let etc = home.join("etc");
        fs::create_dir(&etc).unwrap();
        for (name, entry) in [
            (
                "passwd",
                format!("kt-user:x:{USER}:{USER}::{}:/bin/sh\n", home.join("user").display()),
            ),
            ("group", format!("kt-user:x:{USER}:\n")),
            ("subuid", entry.clone()),
            ("subgid", entry),
        ] {
            let host = fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
            fs::write(etc.join(name), host + &entry).unwrap();
        }
        for folder in ["user", "run", "storage", "runroot", "tmp", "net"] {
            fs::create_dir_all(home.join(folder)).unwrap();
            std::os::unix::fs::chown(home.join(folder), Some(USER), Some(USER)).unwrap();
        }
        podman.wrapper = as_user(&home);
        podman.load(&image);
        podman
    }

    fn make(user: u32) -> Self {
        assert!(rustix::process::getuid().is_root(), "the integration tests need root");
        for program in ["podman", "conmon"] {
            assert!(command::exists(program), "no {program}: run scripts/setup");
        }
        // What conmon leaves to its nearest ancestor is reaped, and seen.
        reaper::start();
        // conmon's sockets lie in it, and a path to one has 107 bytes at most.
        let home = tempfile::Builder::new().prefix("kp-").tempdir().unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(home.path(), permissions).unwrap();
        let parent = cgroup::Parent(fresh_id());
        let kiln = match user {
            0 => binary::path().to_path_buf(),
            _ => home.path().join("bin").join(binary::path().file_name().unwrap()),
        };
        fs::write(home.path().join("containers.conf"), configuration(&kiln)).unwrap();
        fs::create_dir(home.path().join("bin")).unwrap();
        Podman { home, parent, wrapper: Vec::new() }
    }

    /// The folder of everything.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The name of the cgroup that the containers' are in.
    pub fn parent(&self) -> &str {
        &self.parent.0
    }

    /// `podman` with these words, ready to run.
    pub fn cli(&self, words: &[&str]) -> Cli {
        let at = |name: &str| self.home().join(name);
        let cli = Cli::new(["--root"]).binary("podman").under(&self.wrapper);
        let cli = cli.arg(at("storage")).arg("--runroot").arg(at("runroot"));
        let cli = cli.arg("--tmpdir").arg(at("tmp")).arg("--network-config-dir").arg(at("net"));
        // conmon of Debian 12 leaves a file where it was started when the memory runs out.
        let cli = cli.args(words).dir(self.home());
        cli.env("CONTAINERS_CONF", at("containers.conf")).env("KILN_CACHE_DIR", at("cache"))
    }

    /// Runs `podman` with these words.
    pub fn podman(&self, words: &[&str]) -> Outcome {
        self.cli(words).output()
    }

    /// `podman run` in the tests' cgroup, without a network unless the flags say otherwise, with
    /// these flags and words, ready to run.
    pub fn run_cli(&self, flags: &[&str], command: &[&str]) -> Cli {
        // The user's cgroups are the caller's.
        let parent = format!("--cgroup-parent=/{}", self.parent());
        let parent = self.wrapper.is_empty().then_some(parent);
        let network = if flags.contains(&"--network") { &[][..] } else { &["--network", "none"] };
        let cli = self.cli(&["run"]).args(network);
        parent.into_iter().fold(cli, Cli::arg).args(flags).args(command)
    }

    /// Runs a container of busybox in the foreground, removed at its end.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Outcome {
        self.run_cli(flags, &[]).args(&["--rm", BUSYBOX]).args(command).output()
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
        let text = self.podman(&["inspect", "--type", "container", name]).ok().stdout;
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
        self.podman(&["rm", "--force", "--time", "0", name]).ok();
    }

    /// Loads an image.
    #[track_caller]
    pub fn load(&self, image: &Image) {
        self.cli(&["load", "--quiet", "--input"]).arg(&image.archive).output().ok();
    }

    /// What is there of its containers, in words.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = leftovers::find(
            &format!("{}/", self.parent()),
            Path::new("/nowhere"),
            &self.containers_folder(),
        );
        left.extend(self.states().iter().map(|at| format!("state {}", at.display())));
        let cgroups = cgroup::directories_of(self.parent()).into_iter();
        let cgroups =
            cgroups.filter(|dir| dir.parent().is_some_and(|dir| dir.ends_with(self.parent())));
        left.extend(cgroups.map(|dir| format!("cgroup {}", dir.display())));
        left.extend(self.processes().iter().map(|&pid| leftovers::describe(pid)));
        left
    }

    /// Where the containers' roots are mounted. The storage itself stays a mount.
    fn containers_folder(&self) -> PathBuf {
        self.home().join("storage/overlay/")
    }

    /// kiln's state of containers whose bundle is here.
    fn states(&self) -> Vec<PathBuf> {
        let roots = [PathBuf::from("/run/kiln"), self.home().join("run/kiln")];
        let home = self.home().as_os_str().as_encoded_bytes();
        let entries = roots.iter().filter_map(|root| fs::read_dir(root).ok()).flatten().flatten();
        let ours = |dir: &PathBuf| {
            let state = fs::read(dir.join("state.json")).unwrap_or_default();
            state.windows(home.len()).any(|part| part == home)
        };
        entries.map(|entry| entry.path()).filter(ours).collect()
    }

    /// Whatever has the folder in its command line or its environment: conmon, Podman, and the
    /// process that keeps a user's namespaces.
    fn processes(&self) -> Vec<i32> {
        let home = self.home().as_os_str().as_encoded_bytes();
        let names = |pid: &i32| {
            ["cmdline", "environ"].iter().any(|file| {
                let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                text.windows(home.len()).any(|part| part == home)
            })
        };
        let own = std::process::id().cast_signed();
        let others = proc::pids().into_iter().filter(|&pid| pid != own);
        others.filter(|pid| names(pid) && proc::alive(*pid)).collect()
    }

    /// Ends the process that keeps a user's namespaces, which Podman itself never does.
    fn end_pause(&self) {
        let text = fs::read_to_string(self.home().join("tmp/pause.pid")).unwrap_or_default();
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
    }
}

impl Default for Podman {
    fn default() -> Self {
        Podman::new()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for what in ["pod", "container"] {
            let words = [what, "rm", "--all", "--force", "--time", "0"];
            let _ = self.cli(&words).spawn().try_wait();
        }
        self.end_pause();
        // conmon ends after its container has been cleaned up.
        let left = leftovers::after_grace(|| self.leftovers());
        for pid in self.processes() {
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        leftovers::remove(self.parent(), self.home());
        for stray in cgroup::strays() {
            let _ = fs::remove_dir_all(stray.join(self.parent()));
        }
        if left.is_empty() {
            return;
        }
        let report = format!("left of Podman in {}: {left:#?}", self.home().display());
        match std::thread::panicking() {
            true => eprintln!("{report}"),
            false => panic!("{report}"),
        }
    }
}

/// As the README has it, and what a machine of the tests needs: no systemd, no journal, and limits
/// that a root without CAP_SYS_RESOURCE may set.
fn configuration(kiln: &Path) -> String {
    format!(
        r#"
[engine]
runtime = "kiln"
runtime_supports_json = ["crun", "runc", "kiln"]
runtime_supports_nocgroup = ["crun", "kiln"]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[engine.runtimes]
kiln = ["{}"]
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
"#,
        kiln.display()
    )
}

/// Words before a command that is to run as [`USER`], who is in /etc and finds the binary under
/// test, wherever it lies, in a mount namespace of the command's own.
fn as_user(home: &Path) -> Vec<String> {
    let script = r#"
        set -e
        home=$1; binaries=$2; user=$3; shift 3
        for name in passwd group subuid subgid; do mount --bind "$home/etc/$name" "/etc/$name"; done
        mount --bind "$binaries" "$home/bin"
        exec setpriv --reuid "$user" --regid "$user" --clear-groups env -i PATH="$PATH" \
            HOME="$home/user" XDG_RUNTIME_DIR="$home/run" \
            CONTAINERS_CONF="$home/containers.conf" "$@""#;
    let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let mut words: Vec<_> = words.map(str::to_owned).to_vec();
    let binaries = binary::path().parent().unwrap();
    words.extend([home, binaries].map(|path| path.display().to_string()));
    words.push(USER.to_string());
    words
}
