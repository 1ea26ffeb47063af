//! `exec` with a terminal: by console socket, and the caller's own.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::process::Stdio;

use kiln_integration::console::{ConsoleSocket, Terminal};
use kiln_integration::{Bundle, Container, command, json, reap, reaper};

fn running() -> Container {
    let c = Bundle::new().args(&["sleep", "1000"]).container();
    c.detach().ok();
    c
}

#[test]
fn the_console_socket_receives_it() {
    let c = running();
    let socket = ConsoleSocket::listen(&c.bundle.scratch());
    let file = c.bundle.scratch().join("pid");
    let (path, pid_file) = (socket.path(), file.to_str().unwrap());
    let flags = ["-t", "-d", "--console-socket", path, "--pid-file", pid_file];
    let script = "tty; stty size; read line; echo got $line; exit 4";
    c.exec_cli(&flags, &["sh", "-c", script]).output().ok();
    let mut terminal = socket.accept();
    assert!(terminal.read_until("\n").contains("/dev/pts/0"));
    terminal.send("word\n");
    assert!(terminal.read_until("got word").contains("got word"));
    assert_eq!(reap(fs::read_to_string(file).unwrap().parse().unwrap()), 4);
}

#[test]
fn a_process_file_asks_for_one_with_a_size() {
    let c = running();
    let socket = ConsoleSocket::listen(&c.bundle.scratch());
    let file = c.bundle.scratch().join("process.json");
    let process = json!({ "cwd": "/", "args": ["stty", "size"], "env": ["PATH=/bin"],
        "user": { "uid": 1000, "gid": 0 }, "terminal": true,
        "consoleSize": { "height": 31, "width": 97 } });
    fs::write(&file, process.to_string()).unwrap();
    let flags = ["-d", "-p", file.to_str().unwrap(), "--console-socket", socket.path()];
    c.exec_cli(&flags, &[]).output().ok();
    assert!(socket.accept().read_until("31 97").contains("31 97"));
}

#[test]
fn a_terminal_and_a_socket_go_together() {
    let c = running();
    c.exec_cli(&["-t", "-d"], &["true"]).output().fails_with(255, &["console"]);
    let socket = ConsoleSocket::listen(&c.bundle.scratch());
    let flags = ["--console-socket", socket.path()];
    c.exec_cli(&flags, &["true"]).output().fails_with(255, &["console"]);
}

/// As when a person types `kiln exec -t`.
#[test]
fn the_callers_terminal_is_relayed() {
    let (mut terminal, slave) = Terminal::with_slave();
    terminal.resize(99, 33);
    let c = running();
    let script = "tty; read line; stty size; echo got $line; exit 5";
    let mut command = c.exec_cli(&["--tty"], &["sh", "-c", script]).command();
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    let mut child = reaper::spawn(command.stdin(stdio()).stdout(stdio()).stderr(stdio()));
    drop(command);
    assert!(terminal.read_until("\n").contains("/dev/pts/0"));
    terminal.send("hello\n");
    let text = terminal.read_until("got hello");
    assert!(text.contains("33 99") && text.contains("got hello"), "{text:?}");
    let status = command::wait_child(&mut child, std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(5));
    let modes = rustix::termios::tcgetattr(&slave).unwrap();
    assert!(modes.local_modes.contains(rustix::termios::LocalModes::ECHO));
}

#[test]
fn a_terminal_in_a_user_namespace() {
    let c = Bundle::new().args(&["sleep", "1000"]).user_namespace(200_000).container();
    c.detach().ok();
    let socket = ConsoleSocket::listen(&c.bundle.scratch());
    let flags = ["-t", "-d", "--user", "7:7", "--console-socket", socket.path()];
    c.exec_cli(&flags, &["sh", "-c", "stat -Lc %u /proc/self/fd/0; echo x > $(tty) && echo end"])
        .output()
        .ok();
    let text = socket.accept().read_until("end");
    assert!(text.starts_with('7') && text.contains("end"), "{text:?}");
}
