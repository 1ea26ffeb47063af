//! `pause`, `resume` and `ps`.

use std::fs;
use std::time::Duration;

use kiln_integration::{Bundle, Container, eventually};

/// A container that writes to /counter without end.
fn counting() -> (Container, impl Fn() -> u64) {
    let c = Bundle::sh("while :; do echo x >> /counter; sleep 0.01; done").writable().container();
    c.detach().ok();
    let file = c.bundle.rootfs().join("counter");
    let count = move || fs::metadata(&file).map_or(0, |file| file.len());
    eventually("the first lines", || count() > 4);
    (c, count)
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let (c, count) = counting();
    c.on_id("pause", &[]).ok();
    assert_eq!(c.status(), "paused");
    let before = count();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(count(), before);
    c.on_id("resume", &[]).ok();
    assert_eq!(c.status(), "running");
    eventually("more lines", || count() > before);
}

#[test]
fn what_is_not_running_is_not_paused() {
    let (c, _) = counting();
    c.on_id("resume", &[]).fails(&["container not paused"]);
    c.on_id("pause", &[]).ok();
    c.on_id("pause", &[]).fails(&["paused"]);
    c.kill("KILL").ok();
    c.await_status("stopped");
    c.on_id("pause", &[]).fails(&["container not running"]);
    c.on_id("resume", &[]).fails(&["container not paused"]);
}

#[test]
fn killing_all_of_a_paused_container_ends_it() {
    let (c, _) = counting();
    c.on_id("pause", &[]).ok();
    c.cli(&["kill", "--all", &c.id, "KILL"]).output().ok();
    c.await_status("stopped");
}

#[test]
fn a_paused_container_is_deleted_by_force() {
    let (c, _) = counting();
    c.on_id("pause", &[]).ok();
    c.delete().fails(&["paused"]);
    c.delete_force().ok();
    c.assert_nothing_left();
}

#[test]
fn a_created_container_is_not_started_while_it_is_paused() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.create().ok();
    c.on_id("pause", &[]).ok();
    assert_eq!(c.status(), "paused");
    c.start().fails(&["paused"]);
    c.on_id("resume", &[]).ok();
    assert_eq!(c.status(), "created");
    c.start().ok();
}

#[test]
fn ps_lists_the_containers_processes() {
    let (c, _) = counting();
    let json = c.on_id("ps", &["--format", "json"]).ok();
    let pids: Vec<i32> = serde_json::from_str(&json.stdout).unwrap();
    assert!(pids.contains(&c.pid()), "{json}");
    let table = c.on_id("ps", &[]).ok();
    let mut lines = table.stdout.lines();
    assert!(lines.next().unwrap().contains("PID"), "{table}");
    let pid = c.pid().to_string();
    let own = |line: &str| line.split_whitespace().nth(1) == Some(&*pid);
    assert!(lines.any(own), "{table}");
    c.on_id("ps", &["-o", "pid,comm"]).ok().shows("sh");
    // Not a flag of kiln's that lacks a dash.
    c.on_id("ps", &["-ef"]).ok().shows("sh");
    c.on_id("ps", &["-o", "comm"]).fails(&["no PID column"]);
}
