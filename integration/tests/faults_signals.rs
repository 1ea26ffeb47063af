//! Signals to the runtime while it makes a container, and others that go away or
//! do not take what it writes: readers, devices, sockets.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use kiln_integration::faults::{assert_deletable, one_error, rounds, true_status};
use kiln_integration::{Bundle, Cli, Container, eventually, json, kiln_only, proc, reaper};
use rustix::process::Signal;

const SIGNALS: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

fn sleeping() -> Bundle {
    Bundle::new().args(&["sleep", "100"])
}

/// Signals all over the operation: it undoes all, or was through already.
fn interrupted_all_over(c: &Container, status: &str, cli: &dyn Fn() -> Cli) {
    let whole = cli().output().ok().elapsed;
    c.delete_force().ok();
    let mut undone = 0;
    let steps = rounds(60) as u32;
    for step in 0..steps {
        let running = cli().spawn();
        std::thread::sleep(whole * step / steps);
        let signal = SIGNALS[step as usize % 3];
        if proc::alive(running.pid()) {
            running.signal(signal);
        }
        let outcome = running.wait();
        match (outcome.status.code(), true_status(c)) {
            (Some(0), Some(is)) => assert_eq!(is, status, "{outcome}"),
            (Some(1), None) => {
                one_error(&outcome.fails(&["interrupted by signal"]));
                undone += 1;
                c.assert_nothing_left();
            }
            // Before it had begun.
            (None, None) => c.assert_nothing_left(),
            (_, is) => panic!("{is:?}: {outcome}"),
        }
        assert_deletable(c, "after a signal");
    }
    assert!(undone > 0, "{undone}");
}

#[test]
fn create_interrupted_undoes_all() {
    kiln_only!("1.1.5 leaves the container");
    let c = sleeping().container();
    interrupted_all_over(&c, "created", &|| c.create_cli(&[]));
}

#[test]
fn run_detached_interrupted_undoes_all() {
    kiln_only!("1.1.5 leaves the container");
    let c = sleeping().container();
    interrupted_all_over(&c, "running", &|| c.run_cli(&["--detach"]));
}

/// `run` in the foreground passes signals on, those too that came before there was anybody.
#[test]
fn run_interrupted_ends_with_its_container() {
    kiln_only!("1.1.5 loses signals that come early");
    let c = Bundle::sh("trap 'exit 7' TERM INT HUP; while :; do sleep 0.02; done").container();
    for step in 0..rounds(30) as u64 {
        let running = c.run_cli(&[]).spawn();
        std::thread::sleep(Duration::from_millis(step * 2));
        let pid = running.pid();
        // One that comes before the trap is set is nothing to the first process of a pid namespace.
        eventually("its end", || {
            let alive = proc::alive(pid);
            if alive {
                running.signal(SIGNALS[step as usize % 3]);
            }
            !alive
        });
        let outcome = running.wait();
        assert!(outcome.status.code().is_none_or(|code| code == 7), "{outcome}");
        c.assert_nothing_left();
    }
}

/// A hook at each stage that is part of `create`, which the signal must not wait for.
#[test]
fn an_interrupt_ends_hooks_that_hang() {
    kiln_only!("1.1.5 leaves the container");
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let bundle = sleeping();
        let mark = bundle.scratch().join("mark");
        let script = format!("touch {}; sleep 100", mark.display());
        let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
        let c = bundle.set(&format!("/hooks/{stage}"), hook).container();
        for (cli, signal) in
            [(c.create_cli(&[]), Signal::TERM), (c.run_cli(&["--detach"]), Signal::HUP)]
        {
            let running = cli.spawn();
            eventually("the hook", || mark.exists());
            running.signal(signal);
            let outcome = running.wait().fails(&["interrupted by signal"]);
            one_error(&outcome);
            assert!(outcome.elapsed < Duration::from_secs(25), "{stage}: {outcome}");
            c.assert_nothing_left();
            fs::remove_file(&mark).unwrap();
        }
    }
}

/// What the caller ignores stays ignored: nohup(1).
#[test]
fn an_ignored_hangup_is_ignored() {
    kiln_only!("the hook waits for the test");
    let bundle = sleeping();
    let (mark, go) = (bundle.scratch().join("mark"), bundle.scratch().join("go"));
    let script =
        format!("touch {}; until [ -e {} ]; do sleep 0.02; done", mark.display(), go.display());
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    let c = bundle.set("/hooks/createRuntime", hook).container();
    let running = c.create_cli(&[]).under(&["nohup"]).spawn();
    eventually("the hook", || mark.exists());
    running.signal(Signal::HUP);
    fs::write(go, "").unwrap();
    running.wait().ok();
    assert_eq!(c.status(), "created");
}

/// Everything that prints, to a reader that has gone.
#[test]
fn readers_that_close_the_pipe() {
    kiln_only!("Go's runtime dies of SIGPIPE");
    let c = sleeping().container();
    c.detach().ok();
    for words in [
        &["list"][..],
        &["list", "--format", "json"],
        &["list", "--quiet"],
        &["ps", &c.id],
        &["ps", "--format", "json", &c.id],
        &["state", &c.id],
        &["events", "--stats", &c.id],
        &["events", "--interval", "50ms", &c.id],
        &["features"],
        &["--version"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = c.cli(words).command();
        let stderr = c.bundle.scratch().join("stderr");
        command.stdin(Stdio::null()).stdout(writer).stderr(fs::File::create(&stderr).unwrap());
        let mut child = reaper::spawn(&mut command);
        drop(command);
        let ended = kiln_integration::command::wait_child(&mut child, Duration::from_secs(20));
        let error = fs::read_to_string(&stderr).unwrap();
        assert!(ended.is_some(), "{words:?} goes on: {error}");
        assert!(!error.contains("panicked"), "{words:?}: {error}");
        let code = ended.and_then(|status| status.code());
        assert!(code.is_none_or(|code| code <= 1), "{words:?}: {code:?} {error}");
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn a_log_on_a_full_device_is_no_error() {
    let c = sleeping().container();
    let full = ["--log", "/dev/full", "--log-format", "json", "--debug"];
    let create = c.cli(&full).args(&["create", "--bundle"]).arg(c.bundle.path()).arg(&c.id);
    create.output().ok();
    c.cli(&full).args(&["start", &c.id]).output().ok();
    assert_eq!(c.status(), "running");
    c.cli(&full).args(&["exec", &c.id, "true"]).output().ok();
    // The failure is heard of nevertheless.
    c.cli(&full).args(&["start", &c.id]).output().fails(&["start"]);
    c.cli(&full).args(&["delete", "--force", &c.id]).output().ok();
    c.assert_nothing_left();
}

#[test]
fn standard_error_on_a_full_device() {
    kiln_only!("1.1.5's own");
    let c = sleeping().container();
    let mut command = c.cli(&["start", "not-there"]).command();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    command.stdin(Stdio::null()).stdout(full.try_clone().unwrap()).stderr(full);
    assert_eq!(reaper::wait(&mut reaper::spawn(&mut command)).code(), Some(1));
}

#[test]
fn a_pid_file_that_cannot_be_written() {
    kiln_only!("1.1.5 says less");
    let c = sleeping().container();
    for path in ["/dev/null/pid", "/proc/pid", "/sys/pid", "/not/there/pid"] {
        let flags = ["--pid-file", path];
        one_error(&c.create_cli(&flags).output().fails(&["pid file", path]));
        c.assert_nothing_left();
        let detach = ["--detach", "--pid-file", path];
        one_error(&c.run_cli(&detach).output().fails(&["pid file", path]));
        c.assert_nothing_left();
    }
    // Where a directory has its name.
    let dir = c.bundle.scratch().join("dir");
    fs::create_dir_all(dir.join("full")).unwrap();
    let flags = ["--pid-file", dir.to_str().unwrap()];
    one_error(&c.create_cli(&flags).output().fails(&["pid file"]));
    c.assert_nothing_left();
    assert_eq!(fs::read_dir(c.bundle.scratch()).unwrap().count(), 1, "no temporary file");

    c.detach().ok();
    let init = c.pid();
    let flags = ["--detach", "--pid-file", "/proc/pid"];
    one_error(&c.exec_cli(&flags, &["sleep", "99"]).output().fails_with(255, &["pid file"]));
    eventually("init alone", || kiln_integration::cgroup::members(init) == [init]);
}

/// A peer that accepts and goes, one that goes without, and one that never does either.
#[test]
fn a_console_socket_whose_peer_goes() {
    kiln_only!("1.1.5 waits differently");
    let c = sleeping().set("/process/terminal", json!(true)).container();
    let path = c.bundle.scratch().join("console.sock");
    let flags = ["--console-socket", path.to_str().unwrap()];
    let listener = UnixListener::bind(&path).unwrap();
    let peer = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let outcome = c.create_cli(&flags).output();
    peer.join().unwrap();
    // The master may have been sent before the peer went: then there is a container without.
    if outcome.status.success() {
        assert!(true_status(&c).is_some());
    } else {
        one_error(&outcome.fails(&["console"]));
        c.assert_nothing_left();
    }
    c.delete_force().ok();
    // Nobody listens any more.
    one_error(&c.create_cli(&flags).output().fails(&["console.sock", "connection refused"]));
    c.assert_nothing_left();
    fs::remove_file(&path).unwrap();
    // It listens, and goes before it accepts.
    let listener = UnixListener::bind(&path).unwrap();
    let running = c.create_cli(&flags).spawn();
    drop(listener);
    let outcome = running.wait();
    if !outcome.status.success() {
        one_error(&outcome);
        c.assert_nothing_left();
    }
    c.delete_force().ok();
    c.assert_nothing_left();
}
