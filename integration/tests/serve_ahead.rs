//! Calls that are sent to a worker before it has ended another one: nobody waits for long behind that,
//! and each call is made once, whatever becomes of workers and clients meanwhile.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kiln_integration::http::{Connection, Request};
use kiln_integration::serve::{Server, Serving};
use kiln_integration::{json, needs_wasm, proc};
use rustix::process::{Pid, Signal, kill_process};

fn request(args: &[&str]) -> Request {
    Request::new("POST", "/").body(json!({ "args": args }).to_string())
}

#[test]
fn nobody_waits_behind_a_slow_call() {
    needs_wasm!();
    let flags = "--warm 1 --max 2 --timeout 30s";
    let server = Serving::example("sleep").flags(flags).compiled().start();
    // So many short ones that it is known that they are.
    let mut connection = server.address.connect().unwrap();
    for _ in 0..200 {
        connection.ask(&request(&["0"])).is(200);
    }
    for _ in 0..5 {
        let mut slow = server.address.connect().unwrap();
        slow.send(request(&["1000"]).bytes()).unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| server.call(&["0"]).is(200));
            }
        });
    }
}

#[test]
fn each_call_is_made_once() {
    needs_wasm!();
    let done = tempfile::tempdir().unwrap();
    let dir = format!("{}:/done", done.path().display());
    for flags in ["--warm 2 --max 4", "--warm 1 --max 1", "--warm 2 --max 8 --timeout 50ms"] {
        let serving = Serving::example("files").flags(flags).flag("--dir").flag(&dir);
        let server = serving.compiled().start();
        let (stop, answers) = (AtomicBool::new(false), Mutex::new(HashMap::new()));
        thread::scope(|scope| {
            for client in 0..16 {
                let (stop, answers, server) = (&stop, &answers, &server);
                scope.spawn(move || {
                    let mut connection = server.address.connect().unwrap();
                    for round in 0_u32.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let id = format!("{client}-{round}");
                        let request = request(&["append", &format!("/done/{id}"), "x"]);
                        if (client + round).is_multiple_of(23) {
                            // Gone before its answer, and mostly before its turn.
                            connection.send(request.bytes()).unwrap();
                            connection = server.address.connect().unwrap();
                            continue;
                        }
                        let status = connection.ask(&request).status;
                        answers.lock().unwrap().insert(id, status);
                    }
                });
            }
            for _ in 0..20 {
                thread::sleep(Duration::from_millis(100));
                let worker = proc::children(server.parent()).into_iter().next();
                worker.and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::KILL));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let made: HashMap<String, usize> = fs::read_dir(done.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let times = fs::read(&path).unwrap().len();
                fs::remove_file(&path).unwrap();
                (path.file_name().unwrap().to_str().unwrap().to_owned(), times)
            })
            .collect();
        let twice: Vec<_> = made.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{flags}: made more than once: {twice:?}");
        let answers = answers.into_inner().unwrap();
        let well = answers.iter().filter(|(_, status)| **status == 200);
        let never: Vec<_> = well.clone().filter(|(id, _)| !made.contains_key(*id)).collect();
        assert!(never.is_empty(), "{flags}: answered, and never made: {never:?}");
        let (well, all) = (well.count(), answers.len());
        assert!(well > 100 && well * 2 > all, "{flags}: {well} of {all} were answered well");
        let strange: Vec<_> =
            answers.iter().filter(|(_, status)| ![200, 500, 504].contains(status)).collect();
        assert!(strange.is_empty(), "{flags}: {strange:?}");
    }
}

/// Has 16 clients, each with a connection of its own, do something so often; `f` gets that, and the
/// client's number and the round's.
fn clients(server: &Server, rounds: u32, f: impl Fn(&mut Connection, u32, u32) + Sync) {
    let connected = &|client| {
        let mut connection = server.address.connect().unwrap();
        (0..rounds).for_each(|round| f(&mut connection, client, round));
    };
    thread::scope(|scope| {
        for client in 0..16 {
            scope.spawn(move || connected(client));
        }
    });
}

/// What is left of a call that nobody waits for any more is not the next one's.
#[test]
fn an_answer_is_the_requests_own() {
    needs_wasm!();
    let flags = "--warm 2 --max 2 --output 1000";
    let server = Serving::example("show").flags(flags).compiled().start();
    clients(&server, 300, |connection, client, round| {
        if (client + round).is_multiple_of(5) {
            let answer = connection.ask(&request(&["-n", "5000"])).is(500).text();
            assert!(answer.contains("more than 1000 bytes of output"), "{answer}");
            return;
        }
        let word = format!("{client}-{round}");
        let answer = connection.ask(&request(&[&word])).is(200).json();
        assert_eq!(answer, json!({ "status": 0, "output": [word] }));
    });
}

/// More output than a pipe holds, by calls that were sent ahead, and whose predecessors' clients go.
#[test]
fn long_answers_among_short_ones() {
    needs_wasm!();
    let server = Serving::example("show").flags("--warm 2 --max 2 --timeout 5s").compiled().start();
    clients(&server, 150, |connection, client, round| match (client + round) % 13 {
        0 => {
            let answer = connection.ask(&request(&["-n", "200000"])).is(200).json();
            let lines = answer["output"].as_array().unwrap().len();
            assert!((2000..=2001).contains(&lines), "{lines}");
        }
        1 => {
            connection.send(request(&["gone"]).bytes()).unwrap();
            *connection = server.address.connect().unwrap();
        }
        _ => {
            let answer = connection.ask(&request(&["short"])).is(200).json();
            assert_eq!(answer["output"], json!(["short"]));
        }
    });
}
