//! What grows when much is done: nothing.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;

use kiln_integration::faults::rounds;
use kiln_integration::{Bundle, Cli, cgroup, command, eventually, kiln_only, proc, reaper};

/// What the kernel counts, machine-wide; other tests and programs share it, so a growth counts only
/// if it is as large as what was done.
fn counts() -> BTreeMap<String, i64> {
    let lines = |path: &str| fs::read_to_string(path).unwrap_or_default().lines().count() as i64;
    let mut counts = BTreeMap::new();
    for (name, path) in [
        ("mounts", "/proc/self/mountinfo"),
        ("message queues", "/proc/sysvipc/msg"),
        ("semaphores", "/proc/sysvipc/sem"),
        ("shared memory", "/proc/sysvipc/shm"),
        ("keys", "/proc/keys"),
    ] {
        counts.insert(name.to_owned(), lines(path));
    }
    let cgroups = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    for line in cgroups.lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        counts.insert(format!("cgroups with {}", fields[0]), fields[2].parse().unwrap());
    }
    let terminals = fs::read_dir("/dev/pts").map_or(0, |entries| entries.count() as i64);
    counts.insert("terminals".to_owned(), terminals);
    counts
}

/// Asserts that no count has grown by half of `times`, once the kernel has tidied up.
fn assert_no_growth(before: &BTreeMap<String, i64>, times: i64) {
    let mut grown = Vec::new();
    let mut tries = 0;
    eventually("what has grown to be tidied up", || {
        let after = counts();
        grown = before
            .iter()
            .filter(|(name, count)| after.get(*name).is_some_and(|now| now - **count > times / 2))
            .map(|(name, count)| format!("{name}: {count} to {}", after[name]))
            .collect();
        tries += 1;
        grown.is_empty() || tries > 2000
    });
    assert!(grown.is_empty(), "{grown:?}");
}

/// Three hundred; what the names of the tests say.
fn times() -> i64 {
    rounds(300) as i64
}

#[test]
fn three_hundred_containers_leave_nothing_with_the_kernel() {
    let c = Bundle::new().args(&["sleep", "100"]).user_namespace(200_000).container();
    let before = counts();
    for _ in 0..times() {
        c.create().ok();
        c.delete_force().ok();
    }
    c.assert_nothing_left();
    assert_no_growth(&before, times());
}

#[test]
fn three_hundred_runs_that_make_ipc_leave_none() {
    let script = "mknod /dev/mqueue/q p 2>/dev/null; echo x > /dev/shm/x; exit 0";
    let c = Bundle::sh(script).container();
    let before = counts();
    for _ in 0..times() {
        c.run().ok();
    }
    assert_no_growth(&before, times());
}

/// Descriptors of a process, and its memory in KiB.
fn size(pid: i32) -> (usize, u64) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // VmRSS lags behind by what the kernel has not added up yet.
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let memory = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    (descriptors, memory.split_whitespace().next().unwrap().parse().unwrap())
}

/// Each leaves a child behind that keeps its stdio open: `exec` does not wait for that, and
/// neither init nor a `run` in the foreground is larger afterwards.
#[test]
fn three_hundred_execs_whose_children_keep_stdio_open() {
    kiln_only!("Go's memory grows by itself");
    let c = Bundle::sh("while :; do wait; sleep 1; done").container();
    let run: Cli = c.run_cli(&[]);
    let mut running = reaper::spawn(command::no_stdio(&mut run.command()));
    eventually("the container", || c.on_id("state", &[]).stdout.contains("running"));
    let init = c.pid();
    let kiln = running.id().cast_signed();
    // What is touched once is not growth.
    (0..5).for_each(|_| drop(c.exec(&["true"]).ok()));
    let (before_init, before_kiln, before) = (size(init), size(kiln), counts());
    for number in 0..times() {
        // What they leave behind at most at a time: thirty.
        let outcome = c.exec(&["sh", "-c", "sleep 1.5 & echo $!"]).ok();
        assert!(outcome.stdout.trim().parse::<i32>().is_ok(), "exec {number}: {outcome}");
    }
    eventually("init alone", || {
        cgroup::members(init).into_iter().filter(|&pid| proc::alive(pid)).count() <= 2
    });
    let (after_init, after_kiln) = (size(init), size(kiln));
    assert_eq!(after_init.0, before_init.0, "init's descriptors");
    assert_eq!(after_kiln.0, before_kiln.0, "kiln's descriptors");
    assert!(after_init.1 <= before_init.1 + 256, "init: {before_init:?} {after_init:?}");
    assert!(after_kiln.1 <= before_kiln.1 + 256, "kiln: {before_kiln:?} {after_kiln:?}");
    assert_no_growth(&before, times());
    c.delete_force().ok();
    reaper::wait(&mut running);
    c.assert_nothing_left();
}
