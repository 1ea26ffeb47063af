//! `--pidfd-socket` of `create`, `run` and `exec`, as runc 1.2 has it.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::pidfd::{PidfdSocket, pid_of};
use kiln_integration::{Bundle, eventually, kiln_only};

fn idle() -> (kiln_integration::Container, PidfdSocket) {
    let bundle = Bundle::new().args(&["sleep", "1000"]);
    let socket = PidfdSocket::listen(&bundle.scratch());
    (bundle.container(), socket)
}

#[test]
fn create_sends_inits() {
    kiln_only!("runc 1.1 and crun do not know it");
    let (c, socket) = idle();
    c.create_cli(&["--pidfd-socket", socket.path()]).output().ok();
    let (text, pidfd) = socket.accept();
    assert_eq!((text.as_str(), pid_of(&pidfd)), ("standard", c.pid()));
}

#[test]
fn run_sends_inits() {
    kiln_only!("runc 1.1 and crun do not know it");
    let (c, socket) = idle();
    c.run_cli(&["-d", "--pidfd-socket", socket.path()]).output().ok();
    let (text, pidfd) = socket.accept();
    assert_eq!((text.as_str(), pid_of(&pidfd)), ("standard", c.pid()));
    let (c, socket) = idle();
    let run = c.run_cli(&["--pidfd-socket", socket.path()]).spawn();
    let (_, pidfd) = socket.accept();
    let pid = pid_of(&pidfd);
    let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    eventually("the program", || comm() == "sleep\n");
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    run.wait().exits(137);
}

#[test]
fn exec_sends_the_processes() {
    kiln_only!("runc 1.1 and crun do not know it");
    let (c, socket) = idle();
    c.detach().ok();
    let file = c.bundle.scratch().join("pid");
    let flags = ["-d", "--pidfd-socket", socket.path(), "--pid-file", file.to_str().unwrap()];
    c.exec_cli(&flags, &["sleep", "100"]).output().ok();
    let (text, pidfd) = socket.accept();
    let pid: i32 = fs::read_to_string(file).unwrap().parse().unwrap();
    assert_eq!((text.as_str(), pid_of(&pidfd)), ("setns", pid));
    let exec = c.exec_cli(&["--pidfd-socket", socket.path()], &["sleep", "100"]).spawn();
    let (_, pidfd) = socket.accept();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    exec.wait().exits(137);
}

#[test]
fn without_a_listener_nothing_is_made() {
    kiln_only!("runc 1.1 and crun do not know it");
    let (c, _socket) = idle();
    let flags = ["--pidfd-socket", "/no/such.sock"];
    c.create_cli(&flags).output().fails(&["/no/such.sock", "no such file"]);
    c.run_cli(&flags).output().fails(&["/no/such.sock"]);
    c.assert_nothing_left();
    c.detach().ok();
    c.exec_cli(&flags, &["true"]).output().fails_with(255, &["/no/such.sock"]);
}
