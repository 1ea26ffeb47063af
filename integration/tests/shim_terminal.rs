//! Terminals under containerd-shim-kiln-v1: `ctr run -t`, `ctr tasks exec -t`, and directly.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, Empty, ResizePtyRequest};
use containerd_shim_protos::ttrpc::proto::Code;
use kiln_integration::console::Terminal;
use kiln_integration::ctr::Ctr;
use kiln_integration::shim::{Fifo, Shim, process};
use kiln_integration::ttrpc::{Client, refused};
use kiln_integration::{Bundle, Cli, command, eventually, json, needs_shim, patience, reaper};
use rustix::process::{Pid, Signal, kill_process};

/// A command that a person has typed in a terminal.
struct Typed {
    terminal: Terminal,
    child: Child,
}

impl Typed {
    fn new(cli: &Cli) -> Self {
        let (terminal, slave) = Terminal::with_slave();
        terminal.resize(99, 33);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut command = cli.command();
        let child = reaper::spawn(command.stdin(stdio()).stdout(stdio()).stderr(stdio()));
        Typed { terminal, child }
    }

    fn ends(mut self) -> Option<i32> {
        let ended = command::wait_child(&mut self.child, patience(20));
        ended.unwrap().code()
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            reaper::end(&mut self.child);
        }
    }
}

#[test]
fn by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    // `ctr` tells the size some time after the start.
    let script = "tty; read line; echo got $line; \
        for size in '33 99' '40 120'; do \
            until test \"$(stty size 2>/dev/null)\" = \"$size\"; do sleep 0.01; done; echo is $size; \
        done; exit 5";
    let mut typed = Typed::new(&ctr.run_cli(&["--rm", "-t"], &["sh", "-c", script]));
    assert!(typed.terminal.read_until("\n").contains("/dev/pts/0"));
    typed.terminal.send("word\n");
    let text = typed.terminal.read_until("is 33 99");
    assert!(text.contains("got word") && text.contains("is 33 99"), "{text:?}");
    typed.terminal.resize(120, 40);
    // Without a session of its own nobody tells it.
    kill_process(Pid::from_child(&typed.child), Signal::WINCH).unwrap();
    assert!(typed.terminal.read_until("is 40 120").contains("is 40 120"));
    assert_eq!(typed.ends(), Some(5));
}

#[test]
fn ctrl_d_is_the_end_of_input_and_ctrl_c_a_signal() {
    needs_shim!();
    let ctr = Ctr::new();
    let mut typed = Typed::new(&ctr.run_cli(&["--rm", "-t"], &["cat"]));
    typed.terminal.send("one\n");
    // By the terminal that it is typed in, by the container's, by cat.
    let mut text = String::new();
    while text.matches("one").count() < 3 {
        text += &typed.terminal.read_until("one");
    }
    typed.terminal.send("\x04");
    assert_eq!(typed.ends(), Some(0));
    let script = "trap 'exit 6' INT; echo ready; while :; do sleep 0.01; done";
    let mut typed = Typed::new(&ctr.run_cli(&["--rm", "-t"], &["sh", "-c", script]));
    typed.terminal.read_until("ready");
    typed.terminal.send("\x03");
    assert_eq!(typed.ends(), Some(6));
}

#[test]
fn large_output() {
    needs_shim!();
    let ctr = Ctr::new();
    // `ctr` itself, with any shim, loses what it has not read when the container ends.
    let script = "yes 1234567 | head -n 100000; echo end; read line";
    let mut typed = Typed::new(&ctr.run_cli(&["--rm", "-t"], &["sh", "-c", script]));
    let text = typed.terminal.read_until("end");
    // The terminal of the person adds its own returns.
    assert_eq!(text.replace('\r', "").matches("1234567\n").count(), 100_000);
    typed.terminal.send("\n");
    assert_eq!(typed.ends(), Some(0));
}

#[test]
fn an_exec_by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    let script = "tty; stty size; read line; echo got $line; exit 4";
    let mut typed = Typed::new(&task.exec_cli(&["-t"], &["sh", "-c", script]));
    assert!(typed.terminal.read_until("\n").contains("/dev/pts/0"));
    typed.terminal.send("word\n");
    assert!(typed.terminal.read_until("got word").contains("got word"));
    assert_eq!(typed.ends(), Some(4));
    // A missing program leaves no terminal behind.
    let mut typed = Typed::new(&task.exec_cli(&["-t"], &["no-such-program"]));
    typed.terminal.read_until("executable file not found");
    assert_eq!(typed.ends(), Some(1));
}

/// `ctr run -t`, whose `ctr` is killed, and `ctr tasks attach`.
#[test]
fn detached_and_attached_again() {
    needs_shim!();
    let ctr = Ctr::new();
    let id = kiln_integration::fresh_id();
    let script = "while read line; do echo got $line; done; exit 7";
    let mut typed = Typed::new(&ctr.run_as(&id, &["-t"], &["sh", "-c", script]));
    typed.terminal.send("one\n");
    typed.terminal.read_until("got one");
    reaper::end(&mut typed.child);
    let task = ctr.adopt(&id);
    assert_eq!(task.status(), "RUNNING");
    let attach = || Typed::new(&ctr.ctr_cli(&["tasks", "attach", &id]));
    let mut typed = attach();
    typed.terminal.send("two\n");
    typed.terminal.read_until("got two");
    typed.terminal.send("\x04");
    assert_eq!(typed.ends(), Some(7));
    assert_eq!(task.status(), "", "attach deletes a task that has ended");
    ctr.ctr(&["containers", "delete", &id]).ok();
}

// --- directly ---

/// A container with a terminal, in a shim of its own, and the terminal's two ends.
fn with_terminal(script: &str) -> (Shim, Client, Fifo, Fifo) {
    let shim = Shim::start(Bundle::sh(script).set("/process/terminal", json!(true)));
    let (stdin, stdout) = (shim.fifo(), shim.fifo());
    let request = CreateTaskRequest {
        terminal: true,
        stdin: stdin.name(),
        stdout: stdout.name(),
        ..shim.request(&shim.id)
    };
    let mut client = shim.client();
    client.create(&request).unwrap();
    (shim, client, stdin, stdout)
}

fn resize(client: &mut Client, id: &str, exec_id: &str, [width, height]: [u32; 2]) {
    let mut request = ResizePtyRequest::new();
    (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
    (request.width, request.height) = (width, height);
    client.call::<Empty>("ResizePty", &request).unwrap();
}

#[test]
fn before_during_and_after() {
    needs_shim!();
    let (shim, mut client, stdin, mut stdout) = with_terminal("stty size; read line; stty size");
    resize(&mut client, &shim.id, "", [81, 25]);
    client.start(&shim.id, "").unwrap();
    assert_eq!(stdout.read_until("25 81\r\n"), "25 81\r\n");
    resize(&mut client, &shim.id, "", [300, 26]);
    stdin.writer().write_all(b"\n").unwrap();
    assert_eq!(String::from_utf8(stdout.read_to_end()).unwrap(), "\r\n26 300\r\n");
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
    resize(&mut client, &shim.id, "", [1, 1]);
    let state = client.state(&shim.id, "").unwrap();
    assert!(state.terminal && state.stdin == stdin.name() && state.stdout == stdout.name());
}

/// A reader that is slow, or not there, costs nobody anything, and loses nothing.
#[test]
fn nobody_reads_for_a_while() {
    needs_shim!();
    let script = "yes 1234567 | head -n 50000; echo end";
    let (shim, mut client, _stdin, mut stdout) = with_terminal(script);
    client.start(&shim.id, "").unwrap();
    assert!(client.state(&shim.id, "").is_ok());
    std::thread::sleep(Duration::from_millis(100));
    let before = shim.cpu_time();
    std::thread::sleep(Duration::from_millis(500));
    let used = shim.cpu_time().saturating_sub(before);
    assert!(used < Duration::from_millis(100), "{used:?} of half a second");
    let text = String::from_utf8(stdout.read_to_end()).unwrap();
    assert_eq!(text.matches("1234567\r\n").count(), 50_000);
    assert!(text.ends_with("end\r\n"));
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
}

/// The terminal's other side is closed, and its last words wait for a reader.
#[test]
fn nobody_reads_the_last_words() {
    needs_shim!();
    let (shim, mut client, _stdin, mut stdout) = with_terminal("echo the last words");
    let (id, before) = (shim.id.clone(), shim.descriptors());
    let filled = stdout.fill();
    client.start(&id, "").unwrap();
    assert_eq!(client.wait(&id, ""), Ok(0));
    let used = shim.cpu_time();
    std::thread::sleep(Duration::from_millis(500));
    let used = shim.cpu_time().saturating_sub(used);
    assert!(used < Duration::from_millis(100), "{used:?} of half a second");
    assert_eq!(client.delete(&id, "").unwrap().exit_status, 0);
    let text = String::from_utf8(stdout.read_to_end()).unwrap();
    assert_eq!(&text[filled..], "the last words\r\n");
    eventually("the terminal to be closed", || shim.descriptors() < before);
}

#[test]
fn nobody_ever_reads() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["sleep", "1000"]));
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.start(&shim.id, "").unwrap();
    assert!(client.state(&shim.id, "").is_ok());
    let before = shim.descriptors();
    let stdout = shim.fifo();
    stdout.fill();
    let script = process(&["echo", "nobody reads this"]);
    client
        .exec(&shim.id, "e", &script, |request| {
            (request.terminal, request.stdout) = (true, stdout.name());
        })
        .unwrap();
    client.start(&shim.id, "e").unwrap();
    assert_eq!(client.wait(&shim.id, "e"), Ok(0));
    client.delete(&shim.id, "e").unwrap();
    drop(stdout);
    eventually("the terminal to be given up", || shim.descriptors() == before);
}

/// What nerdctl does for `run -dt`.
#[test]
fn to_a_logging_program_or_a_file() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["sleep", "1000"]));
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.start(&shim.id, "").unwrap();
    let program = shim.home().join("logger");
    let [log, file] = ["log", "file"].map(|name| shim.home().join(name));
    let script = format!("#!/bin/sh\nexec 5>&-\ncat <&3 >{0}.new\nmv {0}.new {0}\n", log.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for (exec_id, uri, path) in [
        ("binary", format!("binary://{}", program.display()), &log),
        ("file", format!("file://{}", file.display()), &file),
    ] {
        let tty = process(&["sh", "-c", "tty && echo end"]);
        client
            .exec(&shim.id, exec_id, &tty, |request| {
                (request.terminal, request.stdout) = (true, uri);
            })
            .unwrap();
        client.start(&shim.id, exec_id).unwrap();
        assert_eq!(client.wait(&shim.id, exec_id), Ok(0));
        client.delete(&shim.id, exec_id).unwrap();
        eventually("the log", || path.exists());
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("/dev/pts/") && text.ends_with("end\r\n"), "{text:?}");
    }
}

#[test]
fn a_config_that_says_otherwise() {
    needs_shim!();
    let shim = Shim::start(Bundle::new());
    let mut client = shim.client();
    let request = CreateTaskRequest { terminal: true, ..shim.request(&shim.id) };
    refused(client.create(&request), Code::UNKNOWN, &["terminal"]);
    assert_eq!(client.run(&shim.request(&shim.id)), 0);
}
