//! A worker whose guest has taken it over: the server goes on whatever it is told, and other workers
//! are not concerned. The test is that guest: it writes to a worker's pipe, and to the memory that the
//! worker shares with the server.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln_integration::http::Request;
use kiln_integration::serve::{Server, Serving};
use kiln_integration::{eventually, json, needs_wasm, proc};

/// Of a worker that has answered: its pid, and the pipe over which its answers go.
fn worker(server: &Server) -> (i32, File) {
    assert_eq!(server.lines(&["word"]), ["word"]);
    eventually("the worker to be alone", || proc::children(server.parent()).len() == 1);
    let pid = proc::children(server.parent())[0];
    let link = |number: &str| fs::read_link(format!("/proc/{pid}/fd/{number}"));
    let stdout = link("1").unwrap();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut numbers = entries.map(|entry| entry.file_name().into_string().unwrap());
    let is_answers = |number: &String| {
        // What it has open to make its next instance may be gone again.
        link(number)
            .is_ok_and(|target| target != stdout && target.to_string_lossy().starts_with("pipe:"))
    };
    let number = numbers.find(is_answers).unwrap();
    let pipe = OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/{number}"));
    (pid, pipe.unwrap())
}

#[test]
fn what_a_worker_says_is_not_believed() {
    needs_wasm!();
    let server = Serving::example("show").flags("--max 1 --timeout 2s").start();
    let parent = server.parent();
    let long = [&[0xff, 0xff, 0x0f, 0][..], &[7; 60_000]].concat();
    // A length of its own, and (postcard) the call's number, nanoseconds, an exit status of 0, and
    // an output of two bytes.
    let forged = |number: &[u8]| {
        let message = [number, &[1, 0, 0, 2, b'n', b'o']].concat();
        [&[message.len() as u8, 0, 0, 0][..], &message].concat()
    };
    for said in [
        &[0xff; 4096][..],
        &[0, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0x7f],
        &[3, 0, 0, 0, 0xff, 0xff, 0xff],
        // The length of a message of which the rest never comes.
        &[0xff, 0xff, 0x0f, 0],
        &long,
        // Of a call that was never made, and of one that was answered long ago.
        &forged(&[0xff, 0xff, 0xff, 0x3f]),
        &forged(&[0]),
    ] {
        let (_, mut pipe) = worker(&server);
        pipe.write_all(said).unwrap();
        let answer = server.call(&["mine"]);
        match answer.status {
            200 => assert_eq!(answer.json()["output"], json!(["mine"]), "{said:?}"),
            status => assert!([500, 504].contains(&status), "{answer:?} after {said:?}"),
        }
        // It costs no more than that, and its worker.
        assert_eq!(server.lines(&["next"]), ["next"], "after {said:?}");
    }
    assert_eq!(server.parent(), parent);
}

/// Where the memory is that a process shares with others.
fn shared(pid: i32) -> Vec<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let lines = maps.lines().filter(|line| line.contains(" rw-s "));
    lines
        .map(|line| {
            let (begin, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let number = |hex| u64::from_str_radix(hex, 16).unwrap();
            (number(begin), number(end))
        })
        .collect()
}

#[test]
fn what_a_worker_shares_is_its_own() {
    needs_wasm!();
    let server = Serving::example("show").flags("--max 4 --warm 4 --timeout 2s").compiled().start();
    let mut workers = Vec::new();
    eventually("four workers, each with a page that no other has", || {
        workers = proc::children(server.parent());
        let mut places: Vec<_> = workers.iter().map(|&pid| shared(pid)).collect();
        places.sort();
        places.dedup();
        places.len() == 4 && places.iter().all(|place| place.len() == 1)
    });
    let pid = workers[0];
    let (begin, end) = shared(pid)[0];
    let memory = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..8 {
            let (stop, server) = (&stop, &server);
            scope.spawn(move || {
                let mut connection = server.address.connect().unwrap();
                let mut well = 0;
                while !stop.load(Ordering::Relaxed) {
                    let request = Request::new("POST", "/").body(r#"{"args":["word"]}"#);
                    let answer = connection.ask(&request);
                    assert!([200, 500, 503, 504].contains(&answer.status), "{answer:?}");
                    well += u32::from(answer.status == 200);
                }
                assert!(well > 0, "client {client}");
            });
        }
        let begun = Instant::now();
        let mut seed = 1_u64;
        while begun.elapsed() < Duration::from_secs(2) {
            // xorshift: numbers near and far.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let word = [0, u64::MAX, seed, seed & 0xff_0000_00ff][(seed % 4) as usize];
            let place = [begin, begin + seed % (end - begin) / 8 * 8][(seed % 2) as usize];
            if memory.write_at(&word.to_ne_bytes(), place).is_err() {
                // Killed for what it seemed to do.
                break;
            }
        }
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
    });
    eventually("all to be well", || (0..20).all(|_| server.call(&["well"]).status == 200));
}
