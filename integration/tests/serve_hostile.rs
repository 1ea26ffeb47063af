//! `kiln serve` with modules and clients that mean no good: what they do ends with their request.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, Instant};

use kiln_integration::http::Request;
use kiln_integration::serve::{Server, Serving};
use kiln_integration::{eventually, json, needs_wasm, proc};
use rustix::process::{Pid, Signal, kill_process};

/// A module of which one worker alone answers, so that each request follows the last.
fn one(example: &str, flags: &str) -> Server {
    Serving::example(example).flags("--max 1").flags(flags).start()
}

/// A server of `meddle` with two directories.
fn meddling(compiled: bool) -> Server {
    let serving = Serving::example("meddle").flags("--max 1");
    let serving = if compiled { serving.compiled() } else { serving };
    let (one, two) = (serving.home().join("one"), serving.home().join("two"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    let flag = |name: &str, dir: &std::path::Path| format!("--dir={}:/{name}", dir.display());
    let (one, two) = (flag("one", &one), flag("two", &two));
    serving.flag(&one).flag(&two).start()
}

#[test]
fn nothing_is_left_for_the_next_request() {
    needs_wasm!();
    for compiled in [false, true] {
        let server = meddling(compiled);
        // The worker is there once it has answered.
        assert_eq!(server.lines(&["nothing", "2"]), ["clean"]);
        let before = Descriptors::of(&server);
        for what in ["memory", "environment", "files", "flags", "rights", "close", "renumber"] {
            // The second of the same kind sees what the first has done.
            for _ in 0..2 {
                assert_eq!(server.lines(&[what, "2"]), ["clean"], "{what}");
            }
            let body = json!({ "args": [what, "2"], "stdin": "x" }).to_string();
            let verbose = Request::new("POST", "/?verbose=1").body(body);
            let answer = server.address.ask(&verbose).is(200).json();
            assert_eq!(answer["output"], json!(["clean"]), "{what}: {answer}");
        }
        assert_eq!(server.lines(&["nothing", "2"]), ["clean"]);
        assert_eq!((server.stat("lost"), server.stat("started")), (0, 1), "one worker served all");
        assert_eq!(Descriptors::of(&server), before);
    }
}

/// A module that imports so little of WASI that it is not made anew for each instance.
#[test]
fn streams_that_were_closed_are_open_for_the_next() {
    needs_wasm!();
    let server = one("show", "");
    for number in 0..5 {
        let word = number.to_string();
        assert_eq!(server.lines(&["-c", &word]), [word.as_str()]);
        let body = json!({ "args": ["-s", "heard"], "stdin": word }).to_string();
        let verbose = Request::new("POST", "/?verbose=1").body(body);
        let answer = server.address.ask(&verbose).is(200).json();
        assert_eq!(answer["output"], json!([word]));
        assert_eq!(answer["stderr"], "heard");
    }
    assert_eq!((server.stat("lost"), server.stat("started")), (0, 1));
}

/// What a worker and the server have open, and the flags of the server's standard error.
#[derive(Debug, PartialEq)]
struct Descriptors {
    worker: Vec<String>,
    stderr: String,
}

impl Descriptors {
    #[track_caller]
    fn of(server: &Server) -> Self {
        let mut workers = Vec::new();
        eventually("one worker", || {
            workers = proc::children(server.parent());
            workers.len() == 1
        });
        let pid = workers[0];
        let open = |pid: i32| {
            let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let mut names: Vec<String> = entries
                .map(|entry| {
                    let target = fs::read_link(entry.path()).unwrap_or_default();
                    target.display().to_string()
                })
                .collect();
            names.sort();
            names
        };
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/2", server.pid())).unwrap();
        let stderr = info.lines().find(|line| line.starts_with("flags:")).unwrap().to_owned();
        // The next instance is made behind the answer, and has the directories.
        let mut worker = open(pid);
        eventually("the worker to be still", || {
            let now = open(pid);
            let made =
                ["/one", "/two"].iter().all(|dir| now.iter().any(|name| name.ends_with(dir)));
            std::mem::replace(&mut worker, now) == worker && made
        });
        Descriptors { worker, stderr }
    }
}

#[test]
fn a_timeout_stops_whatever_runs() {
    needs_wasm!();
    for serving in [Serving::example("loop"), Serving::example("loop").compiled()] {
        let server = serving.flags("--max 1 --timeout 300ms").start();
        for number in 1..=3 {
            let since = Instant::now();
            let answer = server.call(&[]).is(504).json();
            assert!(since.elapsed() >= Duration::from_millis(300));
            assert_eq!(answer["error"], "no answer within 300ms");
            assert_eq!(server.stat("lost"), number);
        }
        eventually("the worker to be back", || server.stat("warm") == 1);
    }
    let server = one("sleep", "--timeout 300ms");
    server.call(&["1000"]).is(504);
    assert_eq!(server.call(&["0"]).is(200).json()["status"], 0, "the worker is back");
}

#[test]
fn a_body_that_never_ends_does_not_hold_the_worker() {
    needs_wasm!();
    let server = one("cgi", "--protocol cgi --timeout 400ms");
    let mut connection = server.address.connect().unwrap();
    let head = "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n";
    connection.send(head).unwrap();
    connection.send("some").unwrap();
    // The head was sent with the first bytes, so the answer breaks off.
    let said = String::from_utf8_lossy(&connection.rest()).into_owned();
    assert!(said.starts_with("HTTP/1.1 200") && !said.ends_with("0\r\n\r\n"), "{said}");
    server.address.get("/?status=201").is(201);
    // A program that waits for it before it says anything.
    let server = one("cat", "--protocol cgi --timeout 400ms");
    for number in 1..=2 {
        let mut connection = server.address.connect().unwrap();
        let head = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nA: b";
        connection.send(head).unwrap();
        assert_eq!(connection.answer(false).unwrap().status, 504);
        assert_eq!(server.stat("lost"), number);
        let whole = Request::new("POST", "/").body("A: b\n\nbody");
        assert_eq!(server.address.ask(&whole).is(200).text(), "body");
    }
    // By the other protocol it waits for the whole body before a worker is taken at all.
    let server = one("cat", "--timeout 400ms");
    let mut connection = server.address.connect().unwrap();
    connection.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{").unwrap();
    connection.read_until("HTTP/1.1 ");
    assert_eq!(server.call(&[]).is(200).json()["status"], 0);
    assert_eq!(server.stat("lost"), 0);
}

#[test]
fn a_client_that_goes_takes_its_request_along() {
    needs_wasm!();
    let server = one("loop", "");
    for number in 1..=3 {
        let mut connection = server.address.connect().unwrap();
        connection.send(Request::new("POST", "/").body("{}").bytes()).unwrap();
        eventually("the request to run", || server.stat("busy") == 1);
        drop(connection);
        eventually("the worker to be killed", || server.stat("lost") == number);
    }
    eventually("the worker to be back", || server.stat("warm") == 1);
    let server = one("cgi", "--protocol cgi");
    for (number, query) in (1..).zip(["bytes=100000000", "lines=1000000&pause=1", "sleep=20000"]) {
        let mut connection = server.address.connect().unwrap();
        connection.send(format!("GET /?{query} HTTP/1.1\r\nhost: test\r\n\r\n")).unwrap();
        if !query.starts_with("sleep") {
            connection.read_until("HTTP/1.1 200");
        }
        eventually("the request to run", || server.stat("busy") == 1);
        drop(connection);
        eventually("the worker to be killed", || server.stat("lost") == number);
        server.address.get("/?status=201").is(201);
    }
    // In the middle of its body.
    let mut connection = server.address.connect().unwrap();
    let head = "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\nbegin";
    connection.send(head).unwrap();
    connection.read_until("begin");
    drop(connection);
    eventually("the worker to be killed", || server.stat("lost") == 4);
    server.address.get("/?status=201").is(201);
    eventually("what was killed to be gone", || server.processes().len() == 3);
}

#[test]
fn recursion_without_end_costs_one_request() {
    needs_wasm!();
    for serving in [Serving::example("trap"), Serving::example("trap").compiled()] {
        let server = serving.flags("--max 2 --memory 64M").start();
        for _ in 0..3 {
            let answer = server.call(&["stack"]).is(500).json();
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains("stack") || error.contains("memory"), "{error}");
            server.call(&["divide"]).is(500).shows("divide by zero");
        }
        assert_eq!(server.stat("requests"), 6);
    }
}

#[test]
fn memory_is_bounded() {
    needs_wasm!();
    for (limit, most) in [("20M", 20), ("100M", 100)] {
        let server = one("meddle", &format!("--memory {limit}"));
        for _ in 0..2 {
            let lines = server.lines(&["greedy"]);
            let mib: u64 = lines[1].strip_suffix(" MiB").unwrap().parse().unwrap();
            assert!((most / 2..=most).contains(&mib), "{mib} MiB of {limit}");
        }
    }
    // What it needs to begin with is too much already.
    let server = one("meddle", "--memory 64K");
    server.call(&[]).is(500);
    server.admin.get("/healthz").is(200);
}

/// (module (memory 65536) (func (export "_start")
///   (memory.fill (i32.const 0) (i32.const 1) (i32.const -1))))
const FOUR_GIB: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x04\x01\x60\0\0\
    \x03\x02\x01\0\
    \x05\x05\x01\0\x80\x80\x04\
    \x07\x0a\x01\x06_start\0\0\
    \x0a\x0d\x01\x0b\0\x41\0\x41\x01\x41\x7f\xfc\x0b\0\x0b";

#[test]
fn memory_that_a_module_begins_with_is_bounded() {
    needs_wasm!();
    let server = Serving::module("huge.wasm", FOUR_GIB).flags("--max 1 --memory 64M").start();
    for _ in 0..2 {
        server.call(&[]).is(500);
    }
    server.admin.get("/healthz").is(200);
}

#[test]
fn open_files_are_bounded() {
    needs_wasm!();
    let serving = Serving::example("meddle").flags("--max 1 --files 50");
    let flag = format!("--dir={}:/data", serving.home().display());
    let server = serving.flag(&flag).start();
    for _ in 0..3 {
        let lines = server.lines(&["open", "1"]);
        assert_eq!(lines[0], "clean");
        let opened = lines[1].strip_prefix("opened ").unwrap().split(':').next().unwrap();
        assert!((45..=55).contains(&opened.parse::<u64>().unwrap()), "{}", lines[1]);
        assert!(
            lines[1].to_lowercase().contains("files open") || lines[1].contains("No file"),
            "{}",
            lines[1]
        );
    }
    assert_eq!(server.stat("lost"), 0);
}

/// As a pod with many volumes has.
#[test]
fn many_directories_are_not_among_them() {
    needs_wasm!();
    let mut serving = Serving::example("meddle").flags("--max 1 --files 5");
    for number in 0..40 {
        let dir = serving.home().join(format!("dir{number}"));
        fs::create_dir(&dir).unwrap();
        let flag = format!("--dir={}:/dir{number}", dir.display());
        serving = serving.flag(&flag);
    }
    let server = serving.start();
    for _ in 0..3 {
        assert_eq!(server.lines(&["open", "40"])[0], "clean");
    }
    let lines = server.lines(&["open", "40"]);
    let opened = lines[1].strip_prefix("opened ").unwrap().split(':').next().unwrap();
    assert!((3..=10).contains(&opened.parse::<u64>().unwrap()), "{}", lines[1]);
}

#[test]
fn a_full_queue_refuses_at_once() {
    needs_wasm!();
    let server = one("loop", "--queue 2 --timeout 60s");
    let ask = Request::new("POST", "/").body("{}").bytes();
    let running: Vec<_> = (0..3)
        .map(|number| {
            let mut connection = server.address.connect().unwrap();
            connection.send(&ask).unwrap();
            eventually("the request to run or wait", || {
                server.stat("busy") + server.stat("queued") == number + 1
            });
            connection
        })
        .collect();
    assert_eq!((server.stat("busy"), server.stat("queued")), (1, 2));
    let since = Instant::now();
    for _ in 0..5 {
        let answer = server.call(&[]).is(503);
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.json(), json!({ "status": 1, "error": "too many requests wait" }));
    }
    assert!(since.elapsed() < Duration::from_secs(10), "not after a timeout");
    // Who waits goes by itself, and makes room.
    let mut running = running.into_iter();
    let first = running.next();
    drop(running);
    eventually("the queue to be empty", || server.stat("queued") == 0);
    drop(first);
    eventually("nothing to run", || server.stat("busy") == 0);
}

#[test]
fn never_more_than_max_run() {
    needs_wasm!();
    let server = Serving::example("loop").flags("--max 3 --warm 1 --timeout 60s").start();
    let ask = Request::new("POST", "/").body("{}").bytes();
    let connections: Vec<_> = (0..12)
        .map(|_| {
            let mut connection = server.address.connect().unwrap();
            connection.send(&ask).unwrap();
            connection
        })
        .collect();
    eventually("all to have come", || server.stat("busy") + server.stat("queued") == 12);
    eventually("three to run", || server.stat("busy") == 3);
    // A worker counts from when it was asked for.
    eventually("three workers", || proc::children(server.parent()).len() == 3);
    drop(connections);
    eventually("all to be gone", || server.stat("busy") == 0 && server.stat("queued") == 0);
}

#[test]
fn a_killed_worker_costs_its_request() {
    needs_wasm!();
    let server = one("cgi", "--protocol cgi");
    let kill_worker = || {
        let mut workers = Vec::new();
        eventually("a worker", || {
            workers = proc::children(server.parent());
            workers.retain(|pid| proc::alive(*pid));
            !workers.is_empty()
        });
        for pid in workers {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            eventually("it to have ended", || !proc::alive(pid));
        }
    };
    let mut connection = server.address.connect().unwrap();
    connection.send("GET /?sleep=20000 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    // One that has not begun would go to another worker.
    eventually("the request to have begun", || server.log().contains("cgi: sleeps"));
    kill_worker();
    assert_eq!(connection.answer(false).unwrap().is(500).status, 500);
    server.address.get("/?status=201").is(201);
    assert_eq!(server.stat("lost"), 1);
    // In the middle of its answer.
    connection.send("GET /?lines=100000&pause=5 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    connection.read_until("line 1\n");
    kill_worker();
    assert!(!connection.rest().ends_with(b"0\r\n\r\n"), "broken off");
    server.address.get("/?status=201").is(201);
    // While it has nothing to do: nobody should notice.
    for _ in 0..5 {
        kill_worker();
        server.address.get("/?status=201").is(201);
    }
}
