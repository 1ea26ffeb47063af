//! Limits that are too small, and a container that takes all it can get.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::faults::{assert_deletable, one_error};
use kiln_integration::{Bundle, cgroup, eventually, json, kiln_only, proc, skip};

macro_rules! needs {
    ($controller:literal) => {
        if !cgroup::has($controller) {
            skip!("this machine has no {} controller", $controller);
        }
    };
}

/// When the kernel charges what init touches is up to the kernel: at the latest the program dies.
/// Where it is before that the error says what it may be.
#[test]
fn a_memory_limit_too_small_for_init() {
    kiln_only!("1.1.5 says less");
    needs!("memory");
    let mut refused = 0;
    for limit in [1, 4096, 65_536] {
        let bundle = Bundle::new().args(&["sleep", "100"]);
        let c = bundle.set("/linux/resources/memory", json!({ "limit": limit })).container();
        for run in [false, true] {
            let outcome = if run { c.detach() } else { c.create() };
            if !outcome.status.success() {
                refused += 1;
                one_error(&outcome.fails(&["memory", "limit"]));
                c.assert_nothing_left();
                continue;
            }
            let started = if run { outcome } else { c.start() };
            if !started.status.success() {
                one_error(&started);
            }
            c.await_status("stopped");
            assert_deletable(&c, &format!("a memory limit of {limit}"));
        }
    }
    assert!(refused > 0, "none of the limits kept a container from being made");
}

#[test]
fn out_of_memory_is_a_kill() {
    needs!("memory");
    // tail keeps what has no end of line in memory.
    let bundle = Bundle::new().args(&["tail", "/dev/zero"]);
    let memory = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    let c = bundle.set("/linux/resources/memory", memory).container();
    c.run().exits(137);
    c.assert_nothing_left();
}

#[test]
fn no_pid_left_for_exec() {
    kiln_only!("1.1.5 says less");
    needs!("pids");
    let bundle = Bundle::sh("sleep 100 & sleep 100 & wait").capabilities(&[]);
    let c = bundle.set("/linux/resources/pids", json!({ "limit": 3 })).container();
    c.detach().ok();
    let init = c.pid();
    eventually("three processes", || cgroup::members(init).len() == 3);
    for flags in [&[][..], &["--detach"]] {
        let outcome = c.exec_cli(flags, &["true"]).output();
        let outcome = outcome.fails_with(255, &["resource temporarily unavailable"]);
        one_error(&outcome);
    }
    assert_eq!(cgroup::members(init).len(), 3, "no process of exec's is left");
    assert_eq!(c.status(), "running");
    assert_deletable(&c, "with all its pids used");
}

#[test]
fn no_pid_left_for_init() {
    needs!("pids");
    let bundle = Bundle::sh("ls; ls");
    let c = bundle.set("/linux/resources/pids", json!({ "limit": 1 })).container();
    let outcome = c.run();
    assert!(!outcome.status.success() && !outcome.stderr.contains("panicked"), "{outcome}");
    c.assert_nothing_left();
}

/// One that does not end by itself, as a shell does where it cannot fork.
fn bomb() -> Bundle {
    Bundle::new()
        .args(&["awk", "BEGIN { while (1) system(\"sleep 60 &\") }"])
        .capabilities(&[])
        .set("/linux/resources/pids", json!({ "limit": 200 }))
}

#[test]
fn a_fork_bomb_is_ended() {
    needs!("pids");
    for shared in [false, true] {
        let bundle = if shared { bomb().without_namespace("pid") } else { bomb() };
        let c = bundle.container();
        c.detach().ok();
        let init = c.pid();
        eventually("many processes", || cgroup::members(init).len() > 100);
        if !shared {
            c.kill("KILL").ok();
            eventually("its end", || !proc::alive(init));
            assert_eq!(c.status(), "stopped");
        }
        assert_deletable(&c, "a fork bomb");
    }
}

#[test]
fn a_paused_fork_bomb_is_ended() {
    kiln_only!("1.1.5 waits for ever");
    needs!("pids");
    let c = bomb().container();
    c.detach().ok();
    let init = c.pid();
    eventually("many processes", || cgroup::members(init).len() > 100);
    c.on_id("pause", &[]).ok();
    assert_deletable(&c, "a paused fork bomb");
}
