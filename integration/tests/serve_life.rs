//! `kiln serve`: many clients, its processes' ends, its own end, and compiled code that comes later.

#![allow(missing_docs, clippy::unwrap_used)]

use std::thread;
use std::time::{Duration, Instant};

use kiln_integration::http::{Address, Request};
use kiln_integration::serve::{Server, Serving};
use kiln_integration::{eventually, json, needs_wasm, proc, rounds};
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// Arguments that no other request has: numbers from a generator of Knuth's, by client and request.
fn arguments(client: u64, number: u64) -> Vec<String> {
    let mut state = client << 32 | number;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let count = next() % 5;
    let mut arguments = vec![format!("{client}-{number}")];
    arguments.extend((0..count).map(|_| {
        let length = next() % 50;
        (0..=length).map(|_| char::from(b'a' + (next() % 26) as u8)).collect::<String>()
    }));
    arguments
}

/// Many clients at once; returns the answers that were not those to the request.
fn wrong_answers(server: &Server, clients: u64, requests: u64) -> Vec<String> {
    let client = |client: u64| {
        let address = server.address.clone();
        move || {
            let mut wrong = Vec::new();
            let mut connection = address.connect().unwrap();
            for number in 0..requests {
                let arguments = arguments(client, number);
                let body = json!({ "args": arguments }).to_string();
                let answer = connection.ask(&Request::new("POST", "/").body(body));
                let right = json!({ "status": 0, "output": arguments });
                if answer.status != 200 || answer.json() != right {
                    wrong.push(format!("{arguments:?}: {answer:?}"));
                }
                // Now and then a new connection.
                if number % 7 == 6 {
                    connection = address.connect().unwrap();
                }
            }
            wrong
        }
    };
    let threads: Vec<_> = (0..clients).map(|number| thread::spawn(client(number))).collect();
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn two_hundred_clients_get_their_own_answers() {
    needs_wasm!();
    let server = Serving::example("show").flags("--max 8 --queue 1000").start();
    let requests = u64::from(rounds(20));
    let wrong = wrong_answers(&server, 200, requests);
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(3)]);
    let stats = server.stats();
    assert_eq!(stats["requests"], 200 * requests, "{stats}");
    assert_eq!((&stats["errors"], &stats["lost"]), (&json!(0), &json!(0)), "{stats}");
}

#[test]
fn reused_instances_do_not_mix_them_either() {
    needs_wasm!();
    let server = Serving::example("counter").flags("--reuse --max 4 --queue 1000").start();
    let client = |client: u64| {
        let address = server.address.clone();
        move || {
            for number in 0..20 {
                let word = format!("{client}-{number}");
                let answer = address.post(json!({ "args": [word] }).to_string()).is(200).json();
                let line = answer["output"][0].as_str().unwrap().to_owned();
                assert!(line.starts_with("call ") && line.ends_with(&format!(" {word}")), "{line}");
            }
        }
    };
    let threads: Vec<_> = (0..20).map(|number| thread::spawn(client(number))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(server.stat("requests"), 400);
}

#[test]
fn compiled_code_is_taken_as_it_comes() {
    needs_wasm!();
    let server = Serving::example("show").flags("--max 2 --warm 2").cache().start();
    let pids = || proc::children(server.parent());
    let (pid, before) = (server.pid(), pids());
    let mut number = 0;
    eventually("workers with compiled code", || {
        number += 1;
        let word = number.to_string();
        assert_eq!(server.lines(&[&word]), [word], "also meanwhile");
        server.stat("started") >= 4
    });
    eventually("the workers from before to end", || {
        server.lines(&["x"]);
        pids().iter().all(|pid| !before.contains(pid))
    });
    assert_eq!(wrong_answers(&server, 4, 25), [""; 0]);
    assert_eq!(server.pid(), pid, "not restarted");
    let stats = server.stats();
    assert_eq!((&stats["errors"], &stats["lost"]), (&json!(0), &json!(0)), "{stats}");
}

#[test]
fn the_workers_parent_is_replaced() {
    needs_wasm!();
    // The log's thread is one that the new parent does not have.
    let plain = Serving::example("show").flags("--access-log json");
    for serving in [Serving::example("show").cache(), plain] {
        let server = serving.flags("--max 4 --warm 2").start();
        for _ in 0..3 {
            let parent = server.parent();
            kill(parent);
            eventually("answers again", || {
                let answer = server.address.try_ask(&Request::new("POST", "/").body("{}"));
                answer.is_ok_and(|answer| answer.status == 200)
            });
            eventually(
                "another parent",
                || matches!(proc::children(server.pid())[..], [pid] if pid != parent),
            );
            assert_eq!(wrong_answers(&server, 4, 10), [""; 0]);
        }
        eventually("no more than the server's", || server.processes().len() <= 2 + 4);
    }
}

#[test]
fn a_request_that_runs_when_the_parent_dies_gets_an_answer() {
    needs_wasm!();
    let server = Serving::example("cgi").flags("--protocol cgi --max 1").start();
    let mut connection = server.address.connect().unwrap();
    connection.send("GET /?sleep=20000 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    // One that has not begun would go to another worker.
    eventually("the request to have begun", || server.log().contains("cgi: sleeps"));
    kill(server.parent());
    let answer = connection.answer(false).unwrap();
    assert_eq!(answer.status, 500, "{answer:?}");
    eventually("answers again", || server.address.get("/").status == 200);
}

#[test]
fn a_killed_server_leaves_nothing() {
    needs_wasm!();
    let mut server = Serving::example("sleep").flags("--max 3 --warm 3").start();
    let mut connection = server.address.connect().unwrap();
    connection.send(Request::new("POST", "/").body(r#"{"args":["60"]}"#).bytes()).unwrap();
    eventually("the request to run", || server.stat("busy") == 1);
    eventually("the server, the workers' parent and three workers", || {
        server.processes().len() == 5
    });
    server.signal(Signal::KILL);
    server.wait();
    server.assert_no_process();
    assert!(connection.rest().is_empty());
    let Address::Tcp(address) = server.address else { panic!("{server:?}") };
    let next = Serving::example("show").listen(&address.to_string()).start();
    assert_eq!(next.lines(&["free"]), ["free"]);
}

#[test]
fn at_sigterm_what_runs_may_end() {
    needs_wasm!();
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Serving::example("cgi").flags("--protocol cgi --max 2").start();
        let mut running = server.address.connect().unwrap();
        running.send("GET /?lines=3&pause=150 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        running.read_until("REQUEST_METHOD");
        let mut idle = server.address.connect().unwrap();
        idle.ask(&Request::new("GET", "/")).is(200);
        server.signal(signal);
        eventually("no more connections", || server.address.connect().is_err());
        assert!(running.rest().ends_with(b"0\r\n\r\n"), "whole");
        assert!(idle.rest().is_empty());
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        server.assert_no_process();
    }
}

#[test]
fn what_takes_longer_than_the_grace_period_is_stopped() {
    needs_wasm!();
    for example in ["loop", "sleep"] {
        let mut server = Serving::example(example).flags("--grace 300ms --max 2").start();
        let mut running = server.address.connect().unwrap();
        running.send(Request::new("POST", "/").body(r#"{"args":["60"]}"#).bytes()).unwrap();
        eventually("the request to run", || server.stat("busy") == 1);
        let since = Instant::now();
        server.signal(Signal::TERM);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(since.elapsed() >= Duration::from_millis(300), "{:?}", since.elapsed());
        server.assert_no_process();
        running.rest();
    }
}

#[test]
fn who_asks_twice_does_not_wait() {
    needs_wasm!();
    let mut server = Serving::example("loop").flags("--grace 1h --max 2").start();
    let mut running = server.address.connect().unwrap();
    running.send(Request::new("POST", "/").body("{}").bytes()).unwrap();
    eventually("the request to run", || server.stat("busy") == 1);
    server.signal(Signal::INT);
    eventually("no more connections", || server.address.connect().is_err());
    // Two signals at once are one.
    eventually("to have understood the first", || server.log().contains("SIGINT"));
    server.signal(Signal::INT);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    server.assert_no_process();
    running.rest();
}

#[test]
fn a_unix_socket_is_taken_over_from_a_killed_server() {
    needs_wasm!();
    let home = tempfile::tempdir().unwrap();
    let address = format!("unix:{}/socket", home.path().display());
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let mut server = Serving::example("show").listen(&address).start();
        assert_eq!(server.lines(&["a"]), ["a"]);
        let second = Serving::example("show").listen(&address);
        second.cli().output().fails(&["listen at", &address, "in use"]);
        assert_eq!(server.lines(&["still"]), ["still"]);
        server.signal(signal);
        server.wait();
    }
}

/// Without any worker that waits, and with one that is not needed any more.
#[test]
fn nothing_is_kept_warm_that_is_not_to_be() {
    needs_wasm!();
    let server = Serving::example("show").flags("--warm 0 --max 2").start();
    let parent = server.parent();
    assert_eq!((server.stat("warm"), server.stat("started")), (0, 0));
    assert!(proc::children(parent).is_empty());
    assert_eq!(server.lines(&["a"]), ["a"]);
    assert_eq!((server.stat("cold_starts"), server.stat("started")), (1, 1));
}

#[test]
fn as_an_ordinary_user() {
    needs_wasm!();
    let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
    let server = Serving::example("show").under(&user).start();
    assert_eq!(server.lines(&["a"]), ["a"]);
    for pid in server.processes() {
        assert_eq!(proc::status_field(pid, "Uid").unwrap(), "1000\t1000\t1000\t1000");
    }
}

/// nohup(1), and the end of a terminal.
#[test]
fn a_hangup_is_ignored_if_it_was() {
    needs_wasm!();
    let nohup = ["bash", "-c", "trap '' HUP; exec \"$@\"", "bash"];
    let server = Serving::example("show").flags("--max 1").under(&nohup).start();
    assert_eq!(server.lines(&["a"]), ["a"]);
    for pid in server.processes() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::HUP).unwrap();
    }
    assert_eq!(server.lines(&["b"]), ["b"]);
    assert_eq!(server.stat("lost"), 0);
    let mut other = Serving::example("show").start();
    other.signal(Signal::HUP);
    other.wait();
    other.assert_no_process();
}

#[test]
fn an_idle_server_ends_at_once() {
    needs_wasm!();
    let mut server = Serving::example("show").flags("--grace 60s").start();
    let mut idle = server.address.connect().unwrap();
    idle.ask(&Request::new("POST", "/").body("{}")).is(200);
    let silent = server.address.connect().unwrap();
    let since = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    drop(silent);
}
