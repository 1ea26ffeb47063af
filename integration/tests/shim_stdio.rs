//! Standard streams under containerd-shim-kiln-v1, without a terminal: the container gets the pipes
//! themselves.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::ttrpc::proto::Code;
use kiln_integration::ctr::Ctr;
use kiln_integration::shim::{Fifo, Shim, process};
use kiln_integration::ttrpc::refused;
use kiln_integration::{Bundle, eventually, needs_shim, proc};
use rustix::fs::OFlags;

/// A request with FIFOs for what is to be read, and a FIFO each.
fn with_outputs(shim: &Shim) -> (CreateTaskRequest, Fifo, Fifo) {
    let (out, err) = (shim.fifo(), shim.fifo());
    let request =
        CreateTaskRequest { stdout: out.name(), stderr: err.name(), ..shim.request(&shim.id) };
    (request, out, err)
}

/// What a process has read and written so far, of whatever files: proc(5), `/proc/PID/io`.
fn moved(pid: i32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    ["rchar: ", "wchar: "].map(|name| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().parse().unwrap()
    })
}

/// The files behind a process's first three descriptors.
fn streams(pid: i32) -> [(u64, u64); 3] {
    [0, 1, 2].map(|number| {
        let file = fs::metadata(format!("/proc/{pid}/fd/{number}")).unwrap();
        (file.dev(), file.ino())
    })
}

#[test]
fn by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    let outcome = ctr.run(&[], &["sh", "-c", "echo out; echo err >&2"]).ok().prints("out\n");
    assert_eq!(outcome.stderr, "err\n");
    // From a file, whose end is the container's: `ctr` tells the shim.
    let text = "line\n".repeat(50_000);
    ctr.run_cli(&["--rm"], &["md5sum"]).stdin(&text).output().ok().shows("  -");
    let outcome = ctr.run_cli(&["--rm"], &["cat"]).stdin(&text).output().ok();
    assert_eq!(outcome.stdout.len(), text.len());
    let task = ctr.detach(&["--null-io"], &["sleep", "1000"]);
    let outcome = task.exec_cli(&[], &["cat"]).stdin("to an exec\n").output();
    outcome.ok().prints("to an exec\n");
}

/// All that was written before the end is there after it, though nobody has read it by then.
#[test]
fn output_is_whole_at_the_end() {
    needs_shim!();
    for _ in 0..kiln_integration::rounds(5) {
        let shim = Shim::start(Bundle::sh("seq 10000; echo error >&2"));
        let (request, mut out, mut err) = with_outputs(&shim);
        assert_eq!(shim.client().run(&request), 0);
        let text: String = (1..=10_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8(out.read_to_end()).unwrap(), text);
        assert_eq!(err.read_to_end(), b"error\n");
    }
}

#[test]
fn no_byte_passes_through_the_shim() {
    needs_shim!();
    // It ends afterwards: what a child has moved is added to its parent's account.
    let script = "read line; dd if=/dev/zero bs=1M count=10 2>/dev/null; echo $line >&2; read end";
    let shim = Shim::start(Bundle::sh(script));
    let (mut request, mut out, mut err) = with_outputs(&shim);
    let stdin = shim.fifo();
    request.stdin = stdin.name();
    let mut client = shim.client();
    let pid = client.create(&request).unwrap().cast_signed();
    let inode = |fifo: &Fifo| {
        let file = fs::metadata(fifo.name()).unwrap();
        (file.dev(), file.ino())
    };
    client.start(&shim.id, "").unwrap();
    assert_eq!(streams(pid), [inode(&stdin), inode(&out), inode(&err)], "the FIFOs themselves");
    assert!(client.state(&shim.id, "").is_ok());
    let before = moved(shim.pid);
    stdin.writer().write_all(b"the last word\n").unwrap();
    let reader = std::thread::spawn(move || out.read_to_end().len());
    assert_eq!(err.read_until("word"), "the last word\n");
    assert!(client.state(&shim.id, "").is_ok());
    for (before, after) in before.into_iter().zip(moved(shim.pid)) {
        // A request and its answer.
        assert!(after - before < 1024, "{before} and then {after}");
    }
    stdin.writer().write_all(b"\n").unwrap();
    assert_eq!(reader.join().unwrap(), 10 << 20);
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
}

/// As when containerd is restarted: the container waits, it does not die of SIGPIPE.
#[test]
fn it_outlives_whoever_reads() {
    needs_shim!();
    let script = "while read line; do echo $line; done; echo end";
    let shim = Shim::start(Bundle::sh(script));
    let (mut request, mut out, err) = with_outputs(&shim);
    let stdin = shim.fifo();
    request.stdin = stdin.name();
    let mut client = shim.client();
    let pid = client.create(&request).unwrap().cast_signed();
    client.start(&shim.id, "").unwrap();
    let mut writer = stdin.writer();
    writer.write_all(b"first\n").unwrap();
    assert_eq!(out.read_until("first"), "first\n");
    let name = PathBuf::from(out.name());
    drop((out, writer, err));
    // Nobody has the other ends now but the shim.
    stdin.writer().write_all(b"second\n").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(proc::alive(pid));
    let mut reader = Fifo::open(&name, OFlags::RDONLY);
    let mut text = [0; 7];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"second\n");
    client.close_stdin(&shim.id, "").unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end\n");
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
}

/// What a container says before its end is there when containerd comes back after it.
#[test]
fn the_last_words_wait_for_a_reader() {
    needs_shim!();
    for terminal in [false, true] {
        let bundle = Bundle::new().args(&["echo", "the last words"]);
        let shim = Shim::start(bundle.set("/process/terminal", kiln_integration::json!(terminal)));
        let (mut request, out, err) = with_outputs(&shim);
        let path = PathBuf::from(out.name());
        drop((out, err));
        request.terminal = terminal;
        assert_eq!(shim.client().run(&request), 0);
        let mut text = String::new();
        Fifo::open(&path, OFlags::RDONLY).read_to_string(&mut text).unwrap();
        assert_eq!(text.trim_end(), "the last words");
        let before = shim.descriptors();
        shim.client().delete(&shim.id, "").unwrap();
        eventually("the FIFOs to be closed", || shim.descriptors() < before);
    }
}

/// containerd opens a FIFO in the background, which may be after the end of a process that had
/// nothing to say; its open(2) waits for a writer.
#[test]
fn whoever_comes_late_hears_the_end() {
    needs_shim!();
    for terminal in [false, true] {
        let bundle = Bundle::new().args(&["true"]);
        let shim = Shim::start(bundle.set("/process/terminal", kiln_integration::json!(terminal)));
        let (mut request, out, err) = with_outputs(&shim);
        let path = PathBuf::from(out.name());
        drop((out, err));
        request.terminal = terminal;
        assert_eq!(shim.client().run(&request), 0);
        let (sender, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(fs::read(path)));
        let read = end.recv_timeout(kiln_integration::patience(10)).expect("an end");
        assert_eq!(read.unwrap(), b"");
    }
}

/// Nothing is lost with a FIFO that has nothing in it, so nobody is waited for.
#[test]
fn silence_puts_no_deletion_off() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["true"]));
    let (request, out, err) = with_outputs(&shim);
    drop((out, err));
    let mut client = shim.client();
    assert_eq!(client.run(&request), 0);
    let (before, since) = (shim.descriptors(), Instant::now());
    client.delete(&shim.id, "").unwrap();
    assert!(since.elapsed() < kiln_integration::patience(1) / 2, "{:?}", since.elapsed());
    eventually("the FIFOs to be closed", || shim.descriptors() < before);
}

#[test]
fn close_io_ends_stdin() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["cat"]));
    let (mut request, mut out, _err) = with_outputs(&shim);
    let stdin = shim.fifo();
    request.stdin = stdin.name();
    let mut client = shim.client();
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    // Whoever writes may come and go.
    for text in ["one\n", "two\n"] {
        stdin.writer().write_all(text.as_bytes()).unwrap();
        assert_eq!(out.read_until("\n"), text);
    }
    client.exec(&shim.id, "e", &process(&["cat"]), |_| {}).unwrap();
    client.close_stdin(&shim.id, "e").unwrap();
    let mut last = stdin.writer();
    client.close_stdin(&shim.id, "").unwrap();
    client.close_stdin(&shim.id, "").unwrap();
    // What is on its way arrives.
    last.write_all(b"three\n").unwrap();
    drop(last);
    assert_eq!(out.read_to_end(), b"three\n");
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
}

/// `/dev/stdout` and the others are opened anew by many programs: the user must be allowed to.
#[test]
fn a_user_may_open_its_streams() {
    needs_shim!();
    let script = "echo out >/dev/stdout; echo err >/dev/stderr; read line </dev/stdin; echo $line";
    let bundle = Bundle::sh(script)
        .set("/process/user", kiln_integration::json!({"uid": 1000, "gid": 1000}));
    let shim = Shim::start(bundle);
    let (mut request, mut out, mut err) = with_outputs(&shim);
    let stdin = shim.fifo();
    request.stdin = stdin.name();
    let mut client = shim.client();
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    stdin.writer().write_all(b"typed\n").unwrap();
    assert_eq!(out.read_to_end(), b"out\ntyped\n");
    assert_eq!(err.read_to_end(), b"err\n");
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
    let ctr = Ctr::new();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    let script = "echo a >/dev/stdout; echo b >/dev/stderr";
    let outcome = task.exec(&["--user", "1000:1000"], &["sh", "-c", script]);
    assert_eq!(outcome.ok().prints("a\n").stderr, "b\n");
}

#[test]
fn streams_that_are_not_there() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["true"]));
    let mut client = shim.client();
    assert!(client.state(&shim.id, "").is_err());
    let before = shim.descriptors();
    for (name, code, part) in [
        ("/no/such/fifo", Code::UNKNOWN, "/no/such/fifo: no such file or directory"),
        ("tcp://host:1", Code::INVALID_ARGUMENT, "scheme tcp is not supported"),
        ("file:///%zz", Code::INVALID_ARGUMENT, "is no URI"),
        ("file:///proc/nowhere/file", Code::UNKNOWN, "/proc/nowhere"),
        ("binary:///no/such/logger", Code::UNKNOWN, "/no/such/logger: no such file or directory"),
        ("binary:///etc/passwd", Code::UNKNOWN, "/etc/passwd: permission denied"),
    ] {
        let request = CreateTaskRequest { stdout: name.to_owned(), ..shim.request(&shim.id) };
        refused(client.create(&request), code, &[part]);
        refused(client.state(&shim.id, ""), Code::NOT_FOUND, &[]);
    }
    eventually("what has ended to be reaped", || shim.zombies().is_empty());
    eventually("the descriptors of before", || shim.descriptors() == before);
    // And then it is created all the same.
    assert_eq!(client.run(&shim.request(&shim.id)), 0);
}

#[test]
fn a_log_file() {
    needs_shim!();
    let ctr = Ctr::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new folder/the log");
    let uri = format!("file://{}", file.display()).replace(' ', "%20");
    for _ in 0..2 {
        // In the background, as there is nothing to attach to.
        let task = ctr.detach(&["--log-uri", &uri], &["sh", "-c", "echo out; echo err >&2"]);
        task.await_status("STOPPED");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "out\nerr\nout\nerr\n", "appended to");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
}

/// A logging program that writes what it gets, and what it is told, into files of its folder.
fn logger(dir: &Path) -> (PathBuf, String) {
    let program = dir.join("log ger");
    let script = format!(
        "#!/bin/sh\ncd {}\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >told\n\
         ls -l /proc/$$/fd >descriptors\ncat <&3 >out 5>&- & cat <&4 >err 5>&- &\nexec 5>&-\nwait\necho >end\n",
        dir.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?--to=a+b&--quiet", program.display()).replace(' ', "%20");
    (program, uri)
}

#[test]
fn a_logging_program() {
    needs_shim!();
    let ctr = Ctr::new();
    let dir = tempfile::tempdir().unwrap();
    let (_, uri) = logger(dir.path());
    let task = ctr.detach(&["--log-uri", &uri], &["sh", "-c", "echo out; echo err >&2"]);
    task.await_status("STOPPED");
    eventually("the end of the logging program", || dir.path().join("end").exists());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("told"), format!("{} {} --to a b --quiet\n", task.id, ctr.namespace));
    assert_eq!((read("out"), read("err")), ("out\n".to_owned(), "err\n".to_owned()));
    // Nothing of the shim's: its three streams, three pipes, and what the shell has.
    let open = read("descriptors");
    let pipes = open.lines().filter(|line| line.contains("pipe:[")).count();
    assert!(pipes == 3 && !open.contains("socket:["), "{open}");
    let outcome = ctr.run_cli(&["--log-uri", "binary:///no/such/program"], &["true"]).output();
    outcome.fails(&["/no/such/program: no such file or directory"]);
}

/// An exec may have its own.
#[test]
fn the_log_of_an_exec() {
    needs_shim!();
    let ctr = Ctr::new();
    let dir = tempfile::tempdir().unwrap();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    let file = dir.path().join("log");
    let uri = format!("file://{}", file.display());
    let exec = ctr.ctr_cli(&["tasks", "exec", "--exec-id", "e", "--log-uri", &uri, &task.id]);
    exec.args(&["echo", "said"]).output().ok();
    assert_eq!(fs::read_to_string(file).unwrap(), "said\n");
}

/// What its parent leaves in the background keeps the pipes, and is heard.
#[test]
fn whoever_is_left_is_heard() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["sleep", "1000"]));
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.start(&shim.id, "").unwrap();
    let mut out = shim.fifo();
    let script = "(while ! test -e /tmp/go; do sleep 0.01; done; echo late) & echo early";
    client
        .exec(&shim.id, "e", &process(&["sh", "-c", script]), |request| request.stdout = out.name())
        .unwrap();
    client.start(&shim.id, "e").unwrap();
    assert_eq!(client.wait(&shim.id, "e"), Ok(0));
    client.delete(&shim.id, "e").unwrap();
    assert_eq!(out.read_until("early\n"), "early\n");
    File::create(shim.bundle(&shim.id).join("rootfs/tmp/go")).unwrap();
    assert_eq!(out.read_to_end(), b"late\n");
    assert!(Path::new(&out.name()).exists());
}
