//! Terminals: the console socket of an engine, and `run` on the caller's own.

#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Stdio;

use kiln_integration::console::{ConsoleSocket, Terminal};
use kiln_integration::{Bundle, Container, command, json, kiln_only, reap, reaper};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

fn with_terminal(script: &str) -> Bundle {
    Bundle::sh(script).set("/process/terminal", json!(true))
}

/// Creates and starts the container with its terminal on a console socket.
fn started(bundle: Bundle) -> (Container, i32, Terminal) {
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = bundle.container();
    c.create_cli(&["--console-socket", socket.path()]).output().ok();
    let terminal = socket.accept();
    let pid = c.pid();
    c.start().ok();
    (c, pid, terminal)
}

#[test]
fn the_console_socket_gets_a_terminal_that_works() {
    let (_c, pid, mut terminal) = started(with_terminal("tty; read line; echo got $line"));
    assert!(terminal.read_until("\n").contains("/dev/pts/0"));
    terminal.send("hello\n");
    assert!(terminal.read_until("got hello").contains("got hello"));
    assert_eq!(reap(pid), 0);
}

#[test]
fn all_of_stdio_is_the_terminal() {
    let script = "test -t 0 && test -t 1 && test -t 2 && readlink /proc/self/fd/0 && echo end";
    let (_c, pid, mut terminal) = started(with_terminal(script));
    assert!(terminal.read_until("end").contains("/dev/pts/0"));
    assert_eq!(reap(pid), 0);
}

#[test]
fn the_terminal_controls_the_session() {
    // tpgid, the terminal's foreground group, is the shell's: it is its session's.
    let script = "awk '{print \"session\", $6, \"foreground\", $8}' /proc/1/stat; \
        trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done";
    let (_c, pid, mut terminal) = started(with_terminal(script));
    let text = terminal.read_until("ready");
    assert!(text.contains("session 1 foreground 1"), "{text:?}");
    terminal.send("\u{3}");
    assert!(terminal.read_until("interrupted").contains("interrupted"));
    assert_eq!(reap(pid), 3);
}

#[test]
fn dev_console_is_the_terminal() {
    let (_c, pid, mut terminal) = started(with_terminal("echo to-console > /dev/console"));
    assert!(terminal.read_until("to-console").contains("to-console"));
    assert_eq!(reap(pid), 0);
}

#[test]
fn the_size_of_the_config() {
    let bundle = with_terminal("stty size; echo end");
    let bundle = bundle.set("/process/consoleSize", json!({ "height": 30, "width": 100 }));
    let (_c, pid, mut terminal) = started(bundle);
    assert!(terminal.read_until("end").contains("30 100"));
    assert_eq!(reap(pid), 0);
}

#[test]
fn the_master_changes_the_size() {
    let script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done";
    let (_c, pid, mut terminal) = started(with_terminal(script));
    terminal.read_until("ready");
    let size = Winsize { ws_row: 44, ws_col: 133, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal.master, size).unwrap();
    assert!(terminal.read_until("44 133").contains("44 133"));
    assert_eq!(reap(pid), 0);
}

#[test]
fn the_terminal_is_the_users() {
    let bundle = with_terminal("stat -c %u /proc/self/fd/0 -L; echo x > $(tty) && echo end");
    let bundle = bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let (_c, pid, mut terminal) = started(bundle);
    let text = terminal.read_until("end");
    assert!(text.contains("1000"), "{text:?}");
    assert_eq!(reap(pid), 0);
}

#[test]
fn a_terminal_in_a_user_namespace() {
    let bundle = with_terminal("tty; echo x > $(tty) && echo end").user_namespace(200_000);
    let (_c, pid, mut terminal) = started(bundle);
    assert!(terminal.read_until("end").contains("/dev/pts/0"));
    assert_eq!(reap(pid), 0);
}

#[test]
fn detached_run_sends_the_terminal() {
    let bundle = with_terminal("tty; sleep 100");
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = bundle.container();
    c.run_cli(&["-d", "--console-socket", socket.path()]).output().ok();
    let mut terminal = socket.accept();
    assert!(terminal.read_until("pts").contains("/dev/pts/0"));
}

#[test]
fn a_console_socket_that_is_not_there() {
    let c = with_terminal("true").container();
    c.create_cli(&["--console-socket", "/no/such/console.sock"]).output().fails(&["console.sock"]);
    c.assert_nothing_left();
}

#[test]
fn a_console_socket_that_nobody_listens_on() {
    kiln_only!("the error names no path");
    let bundle = with_terminal("true");
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let path = socket.path().to_owned();
    drop(socket);
    let c = bundle.container();
    c.create_cli(&["--console-socket", &path]).output().fails(&[&path, "refused"]);
    c.assert_nothing_left();
}

#[test]
fn detach_with_a_terminal_needs_a_console_socket() {
    let c = with_terminal("true").container();
    c.detach().fails(&["console"]);
    c.assert_nothing_left();
}

#[test]
fn run_relays_the_callers_terminal() {
    let (mut terminal, slave) = Terminal::with_slave();
    let size = Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal.master, size).unwrap();
    let c = with_terminal("tty; stty size; read line; echo got $line; exit 5").container();
    let mut command = c.run_cli(&[]).command();
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    let mut child = reaper::spawn(command.stdin(stdio()).stdout(stdio()).stderr(stdio()));
    drop(command);
    let text = terminal.read_until("31 97");
    assert!(text.contains("/dev/pts/0") && text.contains("31 97"), "{text:?}");
    terminal.send("hello\n");
    assert!(terminal.read_until("got hello").contains("got hello"));
    let status = command::wait_child(&mut child, std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(5));
    // The caller's terminal is as it was: sane, and of the same size.
    assert_eq!(tcgetwinsize(&slave).unwrap().ws_row, 31);
    let modes = rustix::termios::tcgetattr(&slave).unwrap();
    assert!(modes.local_modes.contains(rustix::termios::LocalModes::ECHO));
    c.assert_nothing_left();
}

#[test]
fn input_that_ends_ends_on_the_terminal() {
    kiln_only!("runc wants a terminal, and crun goes on");
    for input in ["", "a line\n", "half a line"] {
        let c = with_terminal("cat; echo end").container();
        c.run_cli(&[]).stdin(input).output().ok().shows(input).shows("end");
        c.assert_nothing_left();
    }
}

#[test]
fn newlines_stay_newlines_in_a_file_and_not_on_a_terminal() {
    kiln_only!("crun leaves the carriage returns in");
    let c = with_terminal("echo one; echo two").container();
    c.run().ok().prints("one\ntwo\n");

    let (mut terminal, slave) = Terminal::with_slave();
    let mut command = c.run_cli(&[]).command();
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    let mut child = reaper::spawn(command.stdin(stdio()).stdout(stdio()).stderr(stdio()));
    drop(command);
    assert!(terminal.read_until("two\r\n").contains("one\r\ntwo\r\n"));
    command::wait_child(&mut child, std::time::Duration::from_secs(10)).unwrap();
}

#[test]
fn interrupting_run_on_a_terminal_reaches_the_container() {
    let (mut terminal, slave) = Terminal::with_slave();
    let script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done";
    let c = with_terminal(script).container();
    let mut command = c.run_cli(&[]).command();
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    let mut child = reaper::spawn(command.stdin(stdio()).stdout(stdio()).stderr(stdio()));
    drop(command);
    terminal.read_until("ready");
    terminal.send("\u{3}");
    assert!(terminal.read_until("interrupted").contains("interrupted"));
    let status = command::wait_child(&mut child, std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(3));
}

/// A process that outlives init, and has its terminal, is not waited for; what init has written
/// is all there.
#[test]
fn run_ends_with_init_even_if_others_have_the_terminal() {
    kiln_only!("runc 1.1 waits for them");
    let (mut terminal, slave) = Terminal::with_slave();
    let script = "trap '' HUP; (trap '' HUP; exec sleep 20) & seq 1 300; echo last; exit 6";
    let c = with_terminal(script).without_namespace("pid").container();
    let mut command = c.run_cli(&["--keep"]).command();
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    let mut child = reaper::spawn(command.stdin(stdio()).stdout(stdio()).stderr(stdio()));
    drop(command);
    assert!(terminal.read_until("last").contains("300"));
    let status = command::wait_child(&mut child, std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(6));
}

/// Whoever listens there would wait for a terminal that never comes.
#[test]
fn a_console_socket_without_a_terminal_is_not_connected_to() {
    kiln_only!("crun does not look");
    let bundle = Bundle::new();
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = bundle.container();
    c.create_cli(&["--console-socket", socket.path()]).output().fails(&["process.terminal"]);
    assert!(!socket.was_called());
}
