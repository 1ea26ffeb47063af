//! A gateway under test: `kiln-gateway serve` with a configuration of its own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::wait_child;
use crate::http::{Address, Answer, Request};
use crate::{
    Bundle, Cli, Outcome, binary, cgroup, eventually, examples, leftovers, patience, proc, reaper,
};

/// The executable, in the engine folder; `$KILN_GATEWAY` names another.
pub fn path() -> Option<PathBuf> {
    match std::env::var_os("KILN_GATEWAY") {
        Some(path) => Some(path.into()),
        None => examples::engine().map(|engine| engine.join("kiln-gateway")),
    }
    .filter(|path| path.is_file())
}

/// Why there is no gateway to test here.
pub fn missing() -> Option<String> {
    if !binary::is_kiln() {
        return Some(format!("{:?} has no gateway", binary::runtime()));
    }
    match (path(), examples::find("serve-linux")) {
        (None, _) => Some("no kiln-gateway in kiln-engine: run scripts/build".to_owned()),
        (_, None) => Some("no serve-linux: run examples/build".to_owned()),
        _ => None,
    }
}

/// Skips the calling test where there is no gateway.
#[macro_export]
macro_rules! needs_gateway {
    () => {
        if let Some(reason) = $crate::gateway::missing() {
            $crate::skip!("{reason}");
        }
    };
}

/// A gateway with its folder. When dropped it is ended, and what stays behind fails the test.
#[derive(Debug)]
pub struct Gateway {
    home: TempDir,
    child: Option<Child>,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

impl Gateway {
    /// A folder with the configuration, and a bundle `serve` in it whose program is
    /// `examples/linux/serve.c`; not started.
    pub fn new(functions: &str) -> Self {
        let home = tempfile::Builder::new().prefix("kiln-gw-").tempdir().unwrap();
        let gateway = Self { home, child: None, listen: None, admin: None };
        gateway.write_bundle();
        gateway.configure("", functions);
        gateway
    }

    /// The same, started.
    pub fn start(functions: &str) -> Self {
        let mut gateway = Self::new(functions);
        gateway.spawn();
        gateway
    }

    fn write_bundle(&self) {
        let bundle = Bundle::new().args(&["/serve"]);
        let program = examples::find("serve-linux").unwrap();
        let rootfs = self.home().join("serve/rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        fs::copy(program, rootfs.join("serve")).unwrap();
        for dir in ["dev", "proc", "sys", "data"] {
            fs::create_dir(rootfs.join(dir)).unwrap();
        }
        let mut config = bundle.config.clone();
        config["root"] = json!({ "path": "rootfs", "readonly": true });
        fs::write(self.home().join("serve/config.json"), config.to_string()).unwrap();
    }

    /// Writes the configuration: free ports, and what is given.
    pub fn configure(&self, gateway: &str, functions: &str) {
        let text = format!(
            "[gateway]\nlisten = \"127.0.0.1:{}\"\nadmin = \"127.0.0.1:{}\"\n{gateway}\n{functions}",
            self.listen.map_or(0, |address| address.port()),
            self.admin.map_or(0, |address| address.port()),
        );
        fs::write(self.config(), text).unwrap();
    }

    /// The folder of everything.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// functions.toml.
    pub fn config(&self) -> PathBuf {
        self.home().join("functions.toml")
    }

    /// `--state`.
    pub fn state(&self) -> PathBuf {
        self.home().join("state")
    }

    /// The command line of `serve`.
    pub fn serve_cli(&self) -> Cli {
        Cli::new(["serve", "--debug", "--config"])
            .binary(path().unwrap())
            .arg(self.config())
            .arg("--state")
            .arg(self.state())
            .arg("--kiln")
            .arg(binary::path())
    }

    /// Starts it, and waits until it listens.
    pub fn spawn(&mut self) {
        self.spawn_under(&[]);
    }

    /// The same under another program.
    pub fn spawn_under(&mut self, wrapper: &[&str]) {
        reaper::start();
        let log = File::create(self.log_path()).unwrap();
        let mut command: Command = self.serve_cli().under(wrapper).command();
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(reaper::spawn(&mut command));
        self.listen = Some(self.address("listen"));
        self.admin = Some(self.address("admin"));
        let socket = self.state().join("control.sock");
        eventually("the control socket", || socket.exists());
    }

    fn log_path(&self) -> PathBuf {
        self.home().join("log")
    }

    /// The gateway's own log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    fn address(&self, key: &str) -> SocketAddr {
        let mark = format!("msg=\"{key}: ");
        let find = || {
            let log = self.log();
            let (_, rest) = log.split_once(&mark)?;
            rest.split('"').next()?.parse().ok()
        };
        eventually(&format!("{key} in the log: {}", self.log()), || find().is_some());
        find().unwrap()
    }

    /// Where functions are called.
    pub fn listen(&self) -> SocketAddr {
        self.listen.unwrap()
    }

    /// Where the gateway is looked at.
    pub fn admin(&self) -> SocketAddr {
        self.admin.unwrap()
    }

    /// The gateway's process.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id().cast_signed()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Has it read its configuration again, and waits until it has.
    pub fn reload(&self) {
        let count = || self.log().matches("functions.toml again").count();
        let before = count();
        self.signal(Signal::HUP);
        eventually("the reload", || count() > before);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        match wait_child(&mut child, patience(30)) {
            Some(status) => status,
            None => {
                reaper::end(&mut child);
                panic!("the gateway has not ended\n{}", self.log())
            }
        }
    }

    /// Ends it as a service manager does.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// `GET PATH`.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        request(self.listen(), "GET", path, &[], b"")
    }

    /// `POST PATH` with a body.
    #[track_caller]
    pub fn post(&self, path: &str, body: &[u8]) -> Answer {
        request(self.listen(), "POST", path, &[], body)
    }

    /// `GET PATH` of the admin address.
    #[track_caller]
    pub fn look(&self, path: &str) -> Answer {
        request(self.admin(), "GET", path, &[], b"")
    }

    /// What `/api/functions` says of one.
    #[track_caller]
    pub fn function(&self, name: &str) -> Value {
        let answer = self.look("/api/functions");
        let all: Value = serde_json::from_str(&answer.text()).unwrap();
        let all = all.as_array().unwrap();
        let one = all.iter().find(|function| function["name"] == name);
        one.unwrap_or_else(|| panic!("no {name} in {all:?}")).clone()
    }

    /// The state of one.
    #[track_caller]
    pub fn state_of(&self, name: &str) -> String {
        self.function(name)["state"].as_str().unwrap().to_owned()
    }

    /// Waits until a function is in a state.
    #[track_caller]
    pub fn await_state(&self, name: &str, state: &str) {
        eventually(&format!("{name} to be {state}"), || self.state_of(name) == state);
    }

    /// `fn WORDS`.
    pub fn manage(&self, words: &[&str]) -> Outcome {
        self.manage_cli(words).output()
    }

    /// The command line of that.
    pub fn manage_cli(&self, words: &[&str]) -> Cli {
        Cli::new(["fn", "--state"]).binary(path().unwrap()).arg(self.state()).args(words)
    }

    /// Ids of containers that there are.
    pub fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state().join("containers")).into_iter().flatten();
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The part of this gateway's cgroups that no other has.
    pub fn cgroup(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(self.state()).ok()?;
        Some(format!("kiln-gateway-{:x}-{:x}", meta.dev(), meta.ino()))
    }

    /// Everything that is left of it, in words.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.containers().iter().map(|id| format!("container {id}")).collect();
        for name in ["bundles", "sockets"] {
            let entries = fs::read_dir(self.state().join(name)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("{}", entry.path().display())));
        }
        if self.state().join("control.sock").exists() {
            left.push("the control socket".to_owned());
        }
        if let Some(cgroup) = self.cgroup() {
            let dirs = cgroup::directories_of(&cgroup);
            left.extend(dirs.iter().map(|dir| format!("cgroup {}", dir.display())));
            let inside = |pid: &i32| {
                let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                proc::alive(*pid) && text.contains(&cgroup)
            };
            let pids = proc::pids().into_iter().filter(inside);
            left.extend(pids.map(|pid| format!("process {pid}")));
        }
        let mounts = proc::mounts("self").into_iter();
        let own = mounts.filter(|mount| mount.point.starts_with(self.home()));
        left.extend(own.map(|mount| format!("mount on {}", mount.point.display())));
        left
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.child = None;
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            if wait_child(&mut child, patience(20)).is_none() {
                reaper::end(&mut child);
                let text = self.log();
                if !std::thread::panicking() {
                    panic!("the gateway has not ended\n{text}");
                }
            }
        }
        let left = self.leftovers();
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
            if let Some(cgroup) = self.cgroup() {
                leftovers::remove(&cgroup, self.home());
            }
            return;
        }
        assert!(left.is_empty(), "left of the gateway: {left:?}\n{}", self.log());
    }
}

/// One request over a connection of its own.
///
/// # Panics
/// If there is no whole answer.
#[track_caller]
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    try_request(address, method, path, headers, body)
        .unwrap_or_else(|problem| panic!("{method} {path}: {problem}"))
}

/// The same, for a test that can do without an answer.
///
/// # Errors
/// What went wrong, or that the answer has broken off.
pub fn try_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer, String> {
    let mut request = Request::new(method, path).host("gateway.test").header("Connection", "close");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    if !body.is_empty() {
        request = request.body(body);
    }
    let said = |error: std::io::Error| error.to_string();
    let mut connection = Address::Tcp(address).connect().map_err(said)?;
    connection.read_timeout(patience(30));
    let answer = connection.try_ask(&request).map_err(said)?;
    if answer.whole { Ok(answer) } else { Err(format!("broken off: {answer:?}")) }
}

/// How long a test lets a function be idle.
pub const IDLE: Duration = Duration::from_millis(300);
