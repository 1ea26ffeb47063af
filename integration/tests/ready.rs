//! NOTIFY_SOCKET, sd_notify(3): the service manager hears when the container is ready, and nothing
//! else of what a container says.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use kiln_integration::{
    Bundle, Cli, Container, eventually, examples, json, kiln_only, patience, skip,
};
use rustix::process::Signal;

/// A bundle with the program that sends messages, which runs `script`; skips the calling test where
/// it is not built.
macro_rules! bundle {
    ($script:expr) => {{
        kiln_only!("runc says it in two messages, crun has the socket elsewhere");
        let Some(probe) = examples::find("probe") else {
            skip!("no probe: run examples/build");
        };
        let bundle = Bundle::sh($script).writable();
        fs::copy(probe, bundle.rootfs().join("bin/probe")).unwrap();
        bundle
    }};
}

/// The service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn of(bundle: &Bundle) -> Self {
        let path = bundle.scratch().join("manager.sock");
        Manager { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    /// The next message. Descriptors that come with it are closed, which is what a barrier waits
    /// for.
    fn hears(&self) -> String {
        self.socket.set_read_timeout(Some(patience(20))).unwrap();
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[track_caller]
    fn hears_nothing(&self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut buffer = [0; 4096];
        let heard = self.socket.recv(&mut buffer);
        assert!(heard.is_err(), "{}", String::from_utf8_lossy(&buffer));
    }

    fn told(&self, cli: Cli) -> Cli {
        cli.env("NOTIFY_SOCKET", &self.path)
    }
}

fn ready(pid: i32) -> String {
    format!("MAINPID={pid}\nREADY=1\n")
}

#[test]
fn run_tells_the_manager_and_nothing_but_that() {
    let bundle = bundle!(
        "echo $NOTIFY_SOCKET; touch /run/notify/x 2> /dev/null || echo read-only
         probe notify STATUS=x MAINPID=1 READY=0 \"$(printf 'STATUS=y\\nREADY=1')\" READY=1
         cat > /dev/null"
    );
    let bundle = bundle.push("/process/env", json!("NOTIFY_SOCKET=/of/the/config"));
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    // It reads until it is ended.
    let mut command = manager.told(c.run_cli(&[])).command();
    let mut child = kiln_integration::reaper::spawn(
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()),
    );
    assert_eq!(manager.hears(), ready(child.id().cast_signed()));
    manager.hears_nothing();
    assert_eq!(c.status(), "running");
    drop(child.stdin.take());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
    assert!(kiln_integration::reaper::wait(&mut child).success());
    // What comes after the word may find nobody.
    assert!(said.starts_with("/run/notify/notify.sock\nread-only\nOK\nOK\nOK\nOK\n"), "{said}");
    c.assert_nothing_left();
}

const WAITS: &str = "until [ -e /go ]; do sleep 0.01; done; probe notify READY=1; sleep 100";

fn go(c: &Container) {
    fs::write(c.bundle.rootfs().join("go"), "").unwrap();
}

#[test]
fn detach_returns_when_it_is_ready() {
    let bundle = bundle!(WAITS);
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    let run = manager.told(c.run_cli(&["--detach"])).spawn();
    eventually("the container to run", || c.on_id("state", &[]).stdout.contains("running"));
    manager.hears_nothing();
    go(&c);
    assert_eq!(manager.hears(), ready(c.pid()));
    // sd_notify_barrier(3): it stays until the manager has read that.
    assert_eq!(manager.hears(), "BARRIER=1");
    run.wait().ok();
    assert_eq!(c.status(), "running");
}

#[test]
fn start_returns_when_it_is_ready() {
    let bundle = bundle!(WAITS);
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    manager.told(c.create_cli(&[])).output().ok();
    manager.hears_nothing();
    let start = manager.told(c.cli(&["start", &c.id])).spawn();
    eventually("the container to run", || c.status() == "running");
    // Whoever else wants something of the container need not wait for that.
    c.on_id("pause", &[]).ok();
    c.on_id("resume", &[]).ok();
    go(&c);
    assert_eq!(manager.hears(), ready(c.pid()));
    assert_eq!(manager.hears(), "BARRIER=1");
    start.wait().ok();
}

#[test]
fn one_that_is_deleted_instead() {
    let bundle = bundle!(WAITS);
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    manager.told(c.create_cli(&[])).output().ok();
    let start = manager.told(c.cli(&["start", &c.id])).spawn();
    eventually("the container to run", || c.status() == "running");
    c.delete_force().ok();
    start.wait().ok();
    manager.hears_nothing();
    c.assert_nothing_left();
}

#[test]
fn one_that_ends_before() {
    let bundle = bundle!("probe notify STATUS=late; exit 3");
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    manager.told(c.run_cli(&["--detach"])).output().ok();
    c.await_status("stopped");
    manager.hears_nothing();
}

#[test]
fn one_that_is_ready_and_ends() {
    let bundle = bundle!("probe notify STATUS=x READY=1");
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    let run = manager.told(c.run_cli(&["--detach"])).spawn();
    assert!(manager.hears().ends_with("READY=1\n"));
    assert_eq!(manager.hears(), "BARRIER=1");
    run.wait().ok();
}

/// Without a manager at `start`, as Podman has it, nobody waits, and nobody listens.
#[test]
fn it_takes_both_create_and_start() {
    let bundle = bundle!("probe notify READY=1; sleep 100");
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    manager.told(c.create_cli(&[])).output().ok();
    c.start().ok();
    manager.hears_nothing();
    c.delete_force().ok();
    c.create().ok();
    manager.told(c.cli(&["start", &c.id])).output().ok();
    manager.hears_nothing();
    assert_eq!(c.status(), "running");
}

/// A manager that gives up wants nothing left.
#[test]
fn an_interrupt_undoes_all() {
    let bundle = bundle!("sleep 100");
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    let run = manager.told(c.run_cli(&["--detach"])).spawn();
    eventually("the container to run", || c.on_id("state", &[]).stdout.contains("running"));
    run.signal(Signal::TERM);
    run.wait().fails(&["interrupted"]);
    manager.hears_nothing();
    c.assert_nothing_left();
}

#[test]
fn any_user_of_the_container_may_say_it() {
    let bundle = bundle!("probe notify READY=1; sleep 100").user_namespace(300_000);
    let bundle = bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let manager = Manager::of(&bundle);
    let c = bundle.container();
    let run = manager.told(c.run_cli(&["--detach"])).spawn();
    assert_eq!(manager.hears(), ready(c.pid()));
    manager.hears();
    run.wait().ok();
}

#[test]
fn managers_with_other_addresses() {
    use std::os::linux::net::SocketAddrExt;
    let bundle = bundle!("probe notify READY=1; sleep 100");
    let c = bundle.container();
    let name = format!("/kiln/{}", c.id);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager {
        socket: UnixDatagram::bind_addr(&address).unwrap(),
        path: format!("@{name}").into(),
    };
    let run = manager.told(c.run_cli(&["--detach"])).spawn();
    assert_eq!(manager.hears(), ready(c.pid()));
    manager.hears();
    run.wait().ok();
    c.delete_force().ok();
    // No address, and nobody there: the container runs all the same.
    for (address, warned) in [("vsock:2:1", true), ("/no/such.sock", true), ("", false)] {
        let cli = c.run_cli(&["--detach"]).env("NOTIFY_SOCKET", address);
        let outcome = cli.output().ok();
        assert_eq!(outcome.stderr.contains("NOTIFY_SOCKET"), warned, "{outcome}");
        c.delete_force().ok();
    }
}
