//! `kill -9` of the runtime at points all through an operation, after which
//! `delete --force` must leave nothing: the and DESIGN.md's promise.
//!
//! strace stops the command at a system call and kills it there. A first,
//! undisturbed run lists the calls, so that the points cover the operation from
//! its first call to its last.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use kiln_integration::{
    Bundle, Cli, Container, command, eventually, json, kiln_only, leftovers, reaper, skip,
};

/// At how many calls each operation is killed; spread evenly over all of them.
const POINTS: usize = 60;

/// A call in the order of the list: its name, and the how manieth of that name.
type Point = (String, usize);

/// The system calls that the command's first thread makes.
fn points_of(cli: Cli, c: &Container) -> Vec<Point> {
    let log = c.bundle.scratch().join("strace");
    cli.under(&["strace", "-qq", "-o", log.to_str().unwrap()]).output();
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut points = Vec::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let Some((name, _)) = line.split_once('(') else {
            continue;
        };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || name == "execve" {
            continue;
        }
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        points.push((name.to_owned(), *count));
    }
    assert!(points.len() > 10, "strace saw {} calls", points.len());
    points
}

/// At most `POINTS` of them, evenly spread, the last included.
fn spread(points: Vec<Point>) -> Vec<Point> {
    let step = points.len().div_ceil(POINTS).max(1);
    points.into_iter().rev().step_by(step).collect()
}

/// Runs the command and kills it when it enters that call; whether it did, and
/// did not end before.
fn killed_at(cli: Cli, (name, count): &Point) -> bool {
    let trace = format!("trace={name}");
    let inject = format!("inject={name}:signal=KILL:when={count}");
    let wrapper = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    // strace ends by the signal that ended what it traced.
    cli.under(&wrapper).output().status.signal() == Some(9)
}

/// Kills `cli` at calls spread over it, each time on a container that `prepare`
/// made, and asserts that `delete --force` then leaves nothing.
fn survives(c: &Container, cli: &dyn Fn() -> Cli, prepare: &dyn Fn()) {
    prepare();
    let points = spread(points_of(cli(), c));
    c.delete_force();
    let mut killed = 0;
    for point in &points {
        prepare();
        killed += usize::from(killed_at(cli(), point));
        let outcome = c.delete_force();
        assert!(outcome.status.success(), "killed at {point:?}: {outcome}");
        let left = leftovers::find(&c.id, &c.root(), c.bundle.home());
        assert!(left.is_empty(), "killed at {point:?}: {left:#?}");
    }
    // A call that depends on time may not come a second time.
    assert!(killed * 4 > points.len() * 3, "only {killed} of {} were killed", points.len());
    // And the id is free.
    c.create().ok();
}

#[test]
fn create_killed_at_any_call() {
    kiln_only!("1.1.5 at times leaves the cgroup of a hierarchy behind");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let c = Bundle::new().args(&["sleep", "100"]).container();
    survives(&c, &|| c.create_cli(&[]), &|| ());
}

#[test]
fn create_with_everything_killed_at_any_call() {
    kiln_only!("1.1.5 at times leaves the cgroup of a hierarchy behind");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let bundle = Bundle::new().args(&["sleep", "100"]).user_namespace(200_000);
    let hook = json!([{ "path": "/bin/true" }]);
    let bundle = bundle.set("/hooks/createRuntime", hook.clone());
    let bundle = bundle.set("/hooks/createContainer", hook).namespace("cgroup", None);
    let c = bundle.set("/linux/resources/pids", json!({ "limit": 50 })).container();
    survives(&c, &|| c.create_cli(&[]), &|| ());
}

#[test]
fn run_killed_at_any_call() {
    kiln_only!("1.1.5 at times leaves the cgroup of a hierarchy behind");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let c = Bundle::sh("exit 0").container();
    survives(&c, &|| c.run_cli(&[]), &|| ());
}

#[test]
fn start_and_delete_killed_at_any_call() {
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    for operation in [&["start"][..], &["delete", "--force"]] {
        let c = Bundle::new().args(&["sleep", "100"]).container();
        survives(&c, &|| c.cli(operation).arg(&c.id), &|| drop(c.create().ok()));
    }
}

/// The command lives, the init that it made dies: `create` must say so and undo.
#[test]
fn the_init_killed_during_create() {
    kiln_only!("1.1.5's init is started by re-executing /proc/self/exe, which strace -f slows");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let c = Bundle::new().args(&["sleep", "100"]).container();
    for name in
        ["mount", "move_mount", "pivot_root", "mknodat", "umount2", "prctl", "capset", "setsid"]
    {
        let trace = format!("trace={name}");
        let inject = format!("inject={name}:signal=KILL:when=1");
        let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let running = c.create_cli(&[]).under(&wrapper).spawn();
        let pid = running.pid();
        // strace follows the init too: it ends when both have, or never if the
        // call is not made, and then the container is there.
        eventually(&format!("an end at {name}"), || {
            let ended = !kiln_integration::proc::alive(pid);
            ended || c.on_id("state", &[]).stdout.contains("\"created\"")
        });
        let ended = !kiln_integration::proc::alive(pid);
        if ended {
            c.assert_nothing_left();
        }
        c.delete_force().ok();
        let outcome = running.wait();
        assert!(!ended || !outcome.status.success(), "{name}: {outcome}");
        c.assert_nothing_left();
    }
}

#[test]
fn create_killed_after_random_times() {
    kiln_only!("1.1.5 at times leaves the cgroup of a hierarchy behind");
    let c = Bundle::new().args(&["sleep", "100"]).container();
    let whole = c.create().ok().elapsed;
    c.delete_force().ok();
    for step in 0..40 {
        let mut child = reaper::spawn(&mut c.create_cli(&[]).command());
        std::thread::sleep(whole * step / 40 + Duration::from_micros(137));
        reaper::end(&mut child);
        let outcome = c.delete_force();
        assert!(outcome.status.success(), "killed at {step}/40: {outcome}");
        let left = leftovers::find(&c.id, &c.root(), c.bundle.home());
        assert!(left.is_empty(), "killed at {step}/40 of {whole:?}: {left:#?}");
    }
}

/// The foreground command is gone, the container is not: it can be seen and ended.
#[test]
fn a_container_outlives_its_run() {
    let c = Bundle::sh("echo up > /up; sleep 100").writable().container();
    let running = c.run_cli(&[]).spawn();
    c.await_file("/up");
    running.signal(rustix::process::Signal::KILL);
    running.wait().killed_by(9);
    assert_eq!(c.status(), "running");
    c.delete_force().ok();
    c.assert_nothing_left();
}
