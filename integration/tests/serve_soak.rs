//! One function under load with traps, timeouts and clients that go: nothing grows. Ten minutes with
//! `KILN_TEST_LONG=1`, else ten seconds.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln_integration::chaos::{descriptors, is_long, memory};
use kiln_integration::http::Request;
use kiln_integration::needs_wasm;
use kiln_integration::serve::{Server, Serving};

/// A process in figures.
#[derive(Clone, Copy, Debug)]
struct Size {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    /// What is no file's, in KiB.
    anonymous: u64,
}

impl Size {
    fn of(pid: i32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        Size {
            descriptors: descriptors(pid),
            threads: count("task"),
            mappings: fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().count(),
            anonymous: memory(pid).anonymous,
        }
    }

    fn grown(self, since: Size) -> bool {
        self.descriptors > since.descriptors
            || self.threads > since.threads
            || self.mappings > since.mappings + 8
            || self.anonymous > since.anonymous + 2048
    }
}

/// A process that may still have to close what the last clients have left.
fn shrunk(pid: i32, before: Size) -> Size {
    let begun = Instant::now();
    loop {
        let size = Size::of(pid);
        if !size.grown(before) || begun.elapsed() > Duration::from_secs(30) {
            return size;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// As many clients as may run at once, and some more.
const CLIENTS: u64 = 12;

#[test]
fn nothing_grows() {
    needs_wasm!();
    let flags = "--timeout 300ms --max 8 --warm 2";
    let server = Serving::example("mixed").flags(flags).compiled().start();
    load(&server, Duration::from_secs(3));
    settle(&server);
    let before = [Size::of(server.pid()), Size::of(server.parent())];
    let answered = load(&server, Duration::from_secs(if is_long() { 600 } else { 10 }));
    settle(&server);
    let after = [shrunk(server.pid(), before[0]), shrunk(server.parent(), before[1])];
    println!("{before:?}, then {after:?}");
    for (before, after) in before.into_iter().zip(after) {
        assert!(!after.grown(before), "{before:?}, then {after:?}, after {answered} requests");
    }
    assert_eq!(server.lines(&["still right"]), ["still right"]);
}

/// Until no more workers than are kept warm are left, and none is at work.
fn settle(server: &Server) {
    let begun = Instant::now();
    loop {
        let stats = server.stats();
        if stats["warm"] == 2 && stats["busy"] == 0 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{stats}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// How many requests were answered, each as it should be: hardly any too late, which is for a machine
/// that has other things to do.
fn load(server: &Server, time: Duration) -> u64 {
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let late = AtomicU64::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (stop, answered, late) = (&stop, &answered, &late);
            scope.spawn(move || {
                for round in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if !one(server, client, round) {
                        if is_long() {
                            println!("late: {client}-{round}, {:?}", std::time::SystemTime::now());
                        }
                        late.fetch_add(1, Ordering::Relaxed);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    let (answered, late) = (answered.into_inner(), late.into_inner());
    println!("{answered} requests, {late} of them too late");
    assert!(late * 100 <= answered, "{late} of {answered} came too late");
    answered
}

/// False if its answer was that there is none in time.
fn one(server: &Server, client: u64, round: u64) -> bool {
    let body = |word: &str| format!(r#"{{"args":["{word}"]}}"#);
    match (client + round * 7) % 200 {
        0 => {
            let answer = server.address.post(body("trap")).is(500).text();
            assert!(answer.contains("unreachable"), "{answer}");
        }
        1 => {
            let answer = server.address.post(body("exit")).is(500).text();
            assert!(answer.contains("exit status 3"), "{answer}");
        }
        // Never so many at once that none is left for the others.
        2 if client < 6 && round.is_multiple_of(3) => {
            server.address.post(body("loop")).is(504);
        }
        3 => {
            // In mid-request, and before the answer.
            let mut connection = server.address.connect().unwrap();
            let request = Request::new("POST", "/").body(body("loop"));
            let bytes = request.bytes();
            let sent = if round.is_multiple_of(2) { bytes.len() - 5 } else { bytes.len() };
            connection.send(&bytes[..sent]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        _ => {
            let word = format!("{client}-{round}");
            let answer = server.address.post(body(&word));
            if answer.status == 504 {
                return false;
            }
            let answer = answer.is(200);
            assert_eq!(answer.text(), format!(r#"{{"status":0,"output":["{word}"]}}"#));
        }
    }
    true
}
