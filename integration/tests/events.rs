//! `events`: statistics and OOM events.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use kiln_integration::command::Running;
use kiln_integration::{Bundle, Container, Value, cgroup, eventually, json, kiln_only, skip};

const MIB: i64 = 1 << 20;

macro_rules! needs {
    ($controller:literal) => {
        if !cgroup::has($controller) {
            skip!("this machine has no {} controller", $controller);
        }
    };
}

/// What `events --stats` prints, which must be one line.
#[track_caller]
fn stats(c: &Container) -> Value {
    let outcome = c.cli(&["events", "--stats", &c.id]).output().ok();
    assert_eq!(outcome.stdout.lines().count(), 1, "{outcome}");
    let event: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(c.id)));
    event["data"].clone()
}

/// The events printed so far, of one kind or all.
fn printed(events: &mut Running, kind: &str) -> Vec<Value> {
    let lines = events.stdout();
    let parse = |line: &str| serde_json::from_str::<Value>(line).ok();
    let all = lines.lines().filter_map(parse);
    all.filter(|event| kind.is_empty() || event["type"] == kind).collect()
}

/// Starts `events` and waits until it is at work.
fn watch(c: &Container) -> Running {
    let mut events = c.cli(&["events", "--interval", "20ms", &c.id]).spawn();
    eventually("the first statistics", || !printed(&mut events, "stats").is_empty());
    events
}

#[test]
fn statistics_of_a_busy_container() {
    needs!("memory");
    let script = "dd if=/dev/zero of=/mnt/x bs=1M count=8; echo up > /up; while :; do :; done";
    let c = Bundle::sh(script).writable().mount("/mnt", "tmpfs", "tmpfs", &[]);
    let c = c.set("/linux/resources/memory", json!({ "limit": 64 * MIB }));
    let c = c.set("/linux/resources/cpu", json!({ "quota": 10000, "period": 100_000 }));
    let c = c.set("/linux/resources/pids", json!({ "limit": 42 })).container();
    c.detach().ok();
    c.await_file("/up");
    eventually("the container to be throttled", || {
        stats(&c)["cpu"]["throttling"]["throttledTime"].as_u64() > Some(1_000_000)
    });
    let data = stats(&c);
    let number = |path: &str| data.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    assert!(number("/cpu/usage/total") > 1_000_000, "{data:#}");
    assert!(number("/cpu/throttling/throttledPeriods") > 0, "{data:#}");
    assert_eq!(number("/memory/usage/limit"), 64 << 20);
    let usage = number("/memory/usage/usage");
    assert!((8 << 20..64 << 20).contains(&usage), "{data:#}");
    assert!(number("/memory/raw/pgfault") > 0, "{data:#}");
    assert_eq!((number("/pids/current"), number("/pids/limit")), (1, 42));
    assert!(data["intel_rdt"].is_object() && data["hugetlb"].is_object(), "{data:#}");
    if cgroup::is_v2() {
        assert!(number("/memory/cache") >= 8 << 20, "{data:#}");
        assert!(number("/cpu/usage/user") + number("/cpu/usage/kernel") > 0, "{data:#}");
    } else {
        assert_eq!(number("/memory/cache"), number("/memory/raw/cache"));
        let percpu = data["cpu"]["usage"]["percpu"].as_array().unwrap();
        let sum: u64 = percpu.iter().filter_map(Value::as_u64).sum();
        assert_eq!(sum, number("/cpu/usage/total"));
        assert_eq!(data["cpuset"]["sched_load_balance"], 1);
    }
}

/// Every name that runc's JSON has, where the machine has what it is about.
#[test]
fn the_names_are_runcs() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    let data = stats(&c);
    let names = |value: &Value| -> Vec<String> {
        value.as_object().map_or(Vec::new(), |object| object.keys().cloned().collect())
    };
    let all =
        ["blkio", "cpu", "cpuset", "hugetlb", "intel_rdt", "memory", "network_interfaces", "pids"];
    assert_eq!(names(&data), all);
    for (value, expected) in [
        (&data["cpu"], &["throttling", "usage"][..]),
        (&data["cpu"]["usage"], &["kernel", "total", "user"]),
        (&data["cpuset"], &["cpu_exclusive", "memory_pressure", "sched_relax_domain_level"]),
        (&data["memory"], &["kernel", "kernelTCP", "swap", "usage"]),
        (&data["memory"]["usage"], &["failcnt", "limit", "usage"]),
        (&data["pids"], &["current"]),
    ] {
        let names = names(value);
        for name in expected {
            assert!(names.iter().any(|other| other == name), "{name}: {names:?}");
        }
    }
}

#[test]
fn statistics_come_at_intervals_until_the_container_ends() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    let mut events = watch(&c);
    eventually("three of them", || printed(&mut events, "stats").len() > 2);
    c.kill("KILL").ok();
    let outcome = events.wait().ok();
    assert!(outcome.stderr.is_empty(), "{outcome}");
    assert!(outcome.stdout.lines().all(|line| line.contains(r#""type":"stats""#)), "{outcome}");
}

/// A program that waits for a signal and then takes more memory than it may.
fn greedy() -> Bundle {
    // dd's buffer is what grows; the shell lives on to say how it ended.
    let script = "trap 'go=1' USR1; echo up > /up; until [ $go ]; do sleep 0.02; done; \
                  dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?";
    let memory = json!({ "limit": 32 * MIB, "swap": 32 * MIB });
    Bundle::sh(script).writable().set("/linux/resources/memory", memory)
}

/// What the container was killed for must be told once.
#[track_caller]
fn one_oom(events: Running, c: &Container) {
    let outcome = events.wait().ok();
    let ooms =
        outcome.stdout.lines().filter(|line| line.contains(r#""oom""#) && !line.contains("stats"));
    let expected = format!(r#"{{"type":"oom","id":"{}"}}"#, c.id);
    assert_eq!(ooms.collect::<Vec<_>>(), [expected], "{outcome}");
}

#[test]
fn an_oom_is_told_once() {
    needs!("memory");
    let c = greedy().container();
    c.detach().ok();
    c.await_file("/up");
    let events = watch(&c);
    c.kill("USR1").ok();
    one_oom(events, &c);
    c.await_status("stopped");
}

/// `run` takes the cgroup away as soon as init has ended; the event gets through all the same.
#[test]
fn an_oom_at_run_is_137_and_one_event() {
    needs!("memory");
    kiln_only!("tells it once per announcement");
    let c = greedy().container();
    let run = c.run_cli(&[]).spawn();
    c.await_file("/up");
    let events = watch(&c);
    c.kill("USR1").ok();
    run.wait().exits(137);
    one_oom(events, &c);
    c.assert_nothing_left();
}

#[test]
fn each_of_several_ooms_is_told() {
    needs!("memory");
    kiln_only!("tells it once per announcement");
    let script = "trap 'go=1' USR1; echo up > /up; until [ $go ]; do sleep 0.02; done; \
                  for i in 1 2 3; do dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 0.5; done; \
                  echo done > /done; sleep 100";
    let memory = json!({ "limit": 32 * MIB, "swap": 32 * MIB });
    let c = Bundle::sh(script).writable().set("/linux/resources/memory", memory).container();
    c.detach().ok();
    c.await_file("/up");
    let mut events = watch(&c);
    c.kill("USR1").ok();
    c.await_file("/done");
    eventually("three events", || printed(&mut events, "oom").len() >= 3);
    assert_eq!(printed(&mut events, "oom").len(), 3);
    c.kill("KILL").ok();
    let outcome = events.wait().ok();
    assert_eq!(outcome.stdout.matches(r#"{"type":"oom""#).count(), 3, "{outcome}");
}

/// v1 can stop those who want more memory instead of killing somebody.
#[test]
fn an_oom_without_a_kill_is_told() {
    needs!("memory");
    if cgroup::is_v2() {
        skip!("cgroup v2 has no disableOOMKiller");
    }
    let c = greedy().set("/linux/resources/memory/disableOOMKiller", json!(true)).container();
    c.detach().ok();
    c.await_file("/up");
    let mut events = watch(&c);
    c.kill("USR1").ok();
    eventually("the event", || !printed(&mut events, "oom").is_empty());
    assert_eq!(c.status(), "running");
    c.delete_force().ok();
    events.wait().ok();
}

#[test]
fn interfaces_are_those_of_the_containers_own_network() {
    kiln_only!("knows no interfaces of a bundle");
    let shared = Bundle::new().args(&["sleep", "100"]).without_namespace("network").container();
    shared.detach().ok();
    assert_eq!(stats(&shared)["network_interfaces"], Value::Null);
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    assert_eq!(stats(&c)["network_interfaces"], Value::Null);
    let pid = c.pid().to_string();
    let add = |kind: &str| {
        let words = ["-t", &pid, "-n", "ip", "link", "add", "kt0", "type", kind];
        Command::new("nsenter").args(words).output().is_ok_and(|output| output.status.success())
    };
    if !["dummy", "bridge", "veth"].into_iter().any(add) {
        skip!("this machine cannot make a network interface");
    }
    let interfaces = stats(&c)["network_interfaces"].clone();
    let first = &interfaces.as_array().unwrap()[0];
    assert!(interfaces.to_string().contains("kt0"), "{interfaces}");
    assert_eq!(first["RxBytes"], 0);
    assert!(first["TxDropped"].is_u64(), "{interfaces}");
    assert!(!interfaces.to_string().contains("\"lo\""), "{interfaces}");
}

#[test]
fn a_stopped_container_has_no_events() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.create().ok();
    assert!(stats(&c)["pids"].is_object());
    c.kill("KILL").ok();
    c.await_status("stopped");
    for flags in [&["--stats"][..], &[]] {
        let outcome = c.cli(&["events"]).args(flags).arg(&c.id).output();
        outcome.fails(&[&format!("container with id {} is not running", c.id)]);
    }
    c.cli(&["events", "--stats", "nobody"]).output().fails(&["does not exist"]);
}

#[test]
fn a_paused_container_has_statistics() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    c.on_id("pause", &[]).ok();
    assert!(stats(&c)["cpu"].is_object());
    c.on_id("resume", &[]).ok();
}

#[test]
fn the_interval_is_a_duration_of_go() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    c.cli(&["events", "--interval", "0s", &c.id]).output().fails(&["greater than 0"]);
    c.cli(&["events", "--interval", "soon", &c.id]).output().fails(&["interval"]);
    c.cli(&["events", "--interval", "1m0.5s", "--stats", &c.id]).output().ok();
}

/// Nobody reads any more: not an error, and not a process that stays.
#[test]
fn a_closed_pipe_ends_it() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    let mut command = c.cli(&["events", "--interval", "20ms", &c.id]).command();
    command.stdout(std::process::Stdio::piped());
    let mut child = kiln_integration::reaper::spawn(&mut command);
    drop(child.stdout.take());
    let ended =
        kiln_integration::command::wait_child(&mut child, std::time::Duration::from_secs(30));
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

#[test]
fn descendants_count_on_v2() {
    if !cgroup::is_v2() {
        skip!("cgroup v1 adds up by controller");
    }
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    let dir = cgroup::directory(c.pid(), "pids").unwrap();
    fs::create_dir(dir.join("below")).unwrap();
    assert_eq!(stats(&c)["pids"]["current"], 1);
}
