//! `update`: read back from the kernel.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Container, Outcome, cgroup, json, kiln_only, skip};

const MIB: i64 = 1 << 20;

/// A sleeping container with these resources.
fn sleeping(resources: kiln_integration::Value) -> Container {
    let bundle = Bundle::new().args(&["sleep", "100"]);
    let fields = resources.as_object().unwrap().iter();
    let bundle = fields.fold(bundle, |bundle, (name, value)| {
        bundle.set(&format!("/linux/resources/{name}"), value.clone())
    });
    let c = bundle.container();
    c.detach().ok();
    c
}

fn update(c: &Container, flags: &[&str]) -> Outcome {
    c.cli(&["update"]).args(flags).arg(&c.id).output()
}

/// Updates with a JSON on standard input.
fn update_json(c: &Container, resources: &kiln_integration::Value) -> Outcome {
    c.cli(&["update", "--resources=-", &c.id]).stdin(resources.to_string()).output()
}

/// Asserts a setting of the container's cgroup: `v1` and `v2` are file and value.
#[track_caller]
fn reads(c: &Container, controller: &str, v1: (&str, &str), v2: (&str, &str)) {
    let value = cgroup::setting(c.pid(), controller, v1.0, v2.0);
    let expected = if cgroup::is_v2() { v2.1 } else { v1.1 };
    assert_eq!(value.as_deref(), Some(expected), "{controller}");
}

macro_rules! needs {
    ($controller:literal) => {
        if !cgroup::has($controller) {
            skip!("this machine has no {} controller", $controller);
        }
    };
}

fn counts_swap(c: &Container) -> bool {
    cgroup::setting(c.pid(), "memory", "memory.memsw.limit_in_bytes", "memory.swap.max").is_some()
}

#[test]
fn flags_set_what_they_name() {
    needs!("memory");
    let c = sleeping(json!({}));
    let flags = ["--memory", "64M", "--memory-reservation", "33554432", "--pids-limit=42"];
    update(&c, &flags).ok().prints("");
    reads(&c, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"));
    reads(&c, "memory", ("memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432"));
    reads(&c, "pids", ("pids.max", "42"), ("pids.max", "42"));
    update(&c, &["--pids-limit", "0"]).ok();
    reads(&c, "pids", ("pids.max", "42"), ("pids.max", "42"));
    update(&c, &["--pids-limit", "-1"]).ok();
    reads(&c, "pids", ("pids.max", "max"), ("pids.max", "max"));
    reads(&c, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"));
}

#[test]
fn cpu_time() {
    needs!("cpu");
    let c = sleeping(json!({ "cpu": { "quota": 20000, "period": 100_000 } }));
    update(&c, &["--cpu-period", "50000"]).ok();
    if cgroup::is_v2() {
        reads(&c, "cpu", ("", ""), ("cpu.max", "20000 50000"));
    } else {
        reads(&c, "cpu", ("cpu.cfs_period_us", "50000"), ("", ""));
        reads(&c, "cpu", ("cpu.cfs_quota_us", "20000"), ("", ""));
    }
    update(&c, &["--cpu-share", "1024", "--cpu-quota", "-1"]).ok();
    reads(&c, "cpu", ("cpu.shares", "1024"), ("cpu.weight", "100"));
    reads(&c, "cpu", ("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 50000"));
}

/// A burst above the quota is refused by the kernel: whichever is lower must go first.
#[test]
fn burst_and_quota_go_up_and_down_together() {
    needs!("cpu");
    kiln_only!("1.1.5 has no --cpu-burst");
    let c = sleeping(json!({ "cpu": { "quota": 20000, "period": 100_000 } }));
    if cgroup::setting(c.pid(), "cpu", "cpu.cfs_burst_us", "cpu.max.burst").is_none() {
        skip!("the kernel has no burst");
    }
    for (quota, burst) in [("50000", "50000"), ("10000", "5000"), ("90000", "80000")] {
        update(&c, &["--cpu-quota", quota, "--cpu-burst", burst]).ok();
        let max = format!("{quota} 100000");
        reads(&c, "cpu", ("cpu.cfs_quota_us", quota), ("cpu.max", &max));
        reads(&c, "cpu", ("cpu.cfs_burst_us", burst), ("cpu.max.burst", burst));
    }
    update(&c, &["--cpu-burst", "90001"]).fails(&["linux.resources.cpu.burst"]);
}

#[test]
fn idle_goes_on_and_off() {
    needs!("cpu");
    kiln_only!("1.1.5 has no --cpu-idle");
    let c = sleeping(json!({}));
    if cgroup::setting(c.pid(), "cpu", "cpu.idle", "cpu.idle").is_none() {
        skip!("the kernel has no cpu.idle");
    }
    update(&c, &["--cpu-idle", "1"]).ok();
    reads(&c, "cpu", ("cpu.idle", "1"), ("cpu.idle", "1"));
    // An idle group takes no shares, so idle must go off first here, and on last below.
    update(&c, &["--cpu-idle", "0", "--cpu-share", "512"]).ok();
    reads(&c, "cpu", ("cpu.shares", "512"), ("cpu.weight", "59"));
    update(&c, &["--cpu-idle", "1", "--cpu-share", "1024"]).ok();
    reads(&c, "cpu", ("cpu.idle", "1"), ("cpu.idle", "1"));
}

#[test]
fn cpuset() {
    needs!("cpuset");
    let c = sleeping(json!({}));
    update(&c, &["--cpuset-cpus", "0", "--cpuset-mems", "0"]).ok();
    reads(&c, "cpuset", ("cpuset.cpus", "0"), ("cpuset.cpus", "0"));
    reads(&c, "cpuset", ("cpuset.mems", "0"), ("cpuset.mems", "0"));
}

/// v1 wants memory not above memory and swap at any moment.
#[test]
fn memory_and_swap_go_up_and_down_together() {
    needs!("memory");
    let c = sleeping(json!({ "memory": { "limit": 32 * MIB, "swap": 32 * MIB } }));
    if !counts_swap(&c) {
        skip!("the kernel does not account swap");
    }
    for (limit, swap) in [(64, 96), (48, 48), (80, 200), (16, 20)] {
        let (limit, swap) = (limit * MIB, swap * MIB);
        let flags = ["--memory", &limit.to_string(), "--memory-swap", &swap.to_string()];
        update(&c, &flags).ok();
        let limit_text = limit.to_string();
        reads(&c, "memory", ("memory.limit_in_bytes", &limit_text), ("memory.max", &limit_text));
        let (both, alone) = (swap.to_string(), (swap - limit).to_string());
        reads(&c, "memory", ("memory.memsw.limit_in_bytes", &both), ("memory.swap.max", &alone));
    }
    let unlimited = |v1, v2| {
        let value = cgroup::setting(c.pid(), "memory", v1, v2).unwrap();
        assert!(value == "max" || value.parse::<u64>().unwrap() > 1 << 60, "{v1}: {value}");
    };
    update(&c, &["--memory-swap", "-1"]).ok();
    unlimited("memory.memsw.limit_in_bytes", "memory.swap.max");
    update(&c, &["--memory", "-1"]).ok();
    unlimited("memory.limit_in_bytes", "memory.max");
}

#[test]
fn swap_alone_is_beside_the_memory_limit_that_is_there() {
    needs!("memory");
    kiln_only!("wants --memory, too, on v2");
    let c = sleeping(json!({ "memory": { "limit": 32 * MIB, "swap": 32 * MIB } }));
    if !counts_swap(&c) {
        skip!("the kernel does not account swap");
    }
    update(&c, &["--memory-swap", "64M"]).ok();
    let v2 = ("memory.swap.max", "33554432");
    reads(&c, "memory", ("memory.memsw.limit_in_bytes", "67108864"), v2);
    if !cgroup::is_v2() {
        update(&c, &["--memory", "65M"]).fails(&["memory.limit", "67108864"]);
    }
}

#[test]
fn resources_are_read_from_a_file_or_stdin() {
    needs!("memory");
    let c = sleeping(json!({}));
    let resources = json!({
        "memory": { "limit": 64 * MIB }, "cpu": { "shares": 1024 }, "pids": { "limit": 77 },
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    // The devices are not touched: /dev/null still opens.
    update_json(&c, &resources).ok();
    reads(&c, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"));
    reads(&c, "cpu", ("cpu.shares", "1024"), ("cpu.weight", "100"));
    reads(&c, "pids", ("pids.max", "77"), ("pids.max", "77"));
    if let Some(dir) = cgroup::directory(c.pid(), "devices").filter(|_| !cgroup::is_v2()) {
        assert_ne!(fs::read_to_string(dir.join("devices.list")).unwrap().trim(), "");
    }
    let file = c.bundle.home().join("resources.json");
    fs::write(&file, json!({ "pids": { "limit": 78 } }).to_string()).unwrap();
    // As runc: with a file, the other options count for nothing.
    update(&c, &["-r", file.to_str().unwrap(), "--memory", "32M"]).ok();
    reads(&c, "pids", ("pids.max", "78"), ("pids.max", "78"));
    reads(&c, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"));
    c.cli(&["update", "-r", "-", &c.id]).stdin("{\"memory\": 5}").output().fails(&[]);
    c.cli(&["update", "-r", "/no/such/file", &c.id]).output().fails(&["no such file"]);
}

#[test]
fn an_empty_update_changes_nothing() {
    needs!("pids");
    let c = sleeping(json!({ "pids": { "limit": 42 } }));
    update(&c, &[]).ok();
    update_json(&c, &json!({ "pids": {}, "memory": {}, "cpu": {}, "blockIO": {} })).ok();
    reads(&c, "pids", ("pids.max", "42"), ("pids.max", "42"));
}

#[test]
fn block_io() {
    kiln_only!("1.1.5 updates no throttle");
    let controller = if cgroup::is_v2() { "io" } else { "blkio" };
    if !cgroup::has(controller) {
        skip!("this machine has no {controller} controller");
    }
    let Ok(number) = fs::read_to_string("/sys/block/vda/dev") else { skip!("no disk vda") };
    let (major, minor) = number.trim().split_once(':').unwrap();
    let (major, minor): (i64, i64) = (major.parse().unwrap(), minor.parse().unwrap());
    let device = json!([{ "major": major, "minor": minor, "rate": 1_048_576 }]);
    let c = sleeping(json!({}));
    update_json(&c, &json!({ "blockIO": { "throttleReadBpsDevice": device } })).ok();
    let file = "blkio.throttle.read_bps_device";
    let value = cgroup::setting(c.pid(), controller, file, "io.max").unwrap();
    assert!(value.contains("1048576"), "{value}");
}

#[test]
fn unified_files() {
    kiln_only!("1.1.5 does not update them");
    if !cgroup::is_v2() {
        skip!("linux.resources.unified needs cgroup v2 for the controllers");
    }
    let c = sleeping(json!({}));
    update_json(&c, &json!({ "unified": { "memory.high": "50331648", "io.weight": "77" } })).ok();
    reads(&c, "memory", ("", ""), ("memory.high", "50331648"));
}

/// Nothing is half done: what was set before the failure is as it was.
#[test]
fn a_failed_update_leaves_all_as_it_was() {
    needs!("memory");
    kiln_only!("leaves the first ones changed");
    let c = sleeping(json!({
        "memory": { "limit": 64 * MIB }, "cpu": { "quota": 20000, "period": 100_000, "cpus": "0" },
        "pids": { "limit": 42 },
    }));
    let before = snapshot(&c);
    let flags = ["--pids-limit", "7", "--memory", "32M", "--cpu-quota", "30000"];
    let bad = [&flags[..], &["--cpuset-cpus", "4000"]].concat();
    update(&c, &bad).fails(&["linux.resources.cpu.cpus", "4000"]);
    assert_eq!(snapshot(&c), before);
    update(&c, &flags).ok();
    assert_ne!(snapshot(&c), before);
    // What can be known to fail fails before anything is written.
    let before = snapshot(&c);
    let resources = json!({ "pids": { "limit": 8 }, "memory": { "swappiness": 101 } });
    update_json(&c, &resources).fails(&["swappiness"]);
    let resources = json!({ "pids": { "limit": 8 }, "rdma": { "mlx5_0": { "hcaHandles": 1 } } });
    if !cgroup::has("rdma") {
        update_json(&c, &resources).fails(&["no rdma controller"]);
    }
    assert_eq!(snapshot(&c), before);
}

fn snapshot(c: &Container) -> Vec<Option<String>> {
    let pid = c.pid();
    [
        ("pids", "pids.max", "pids.max"),
        ("memory", "memory.limit_in_bytes", "memory.max"),
        ("cpu", "cpu.cfs_quota_us", "cpu.max"),
        ("cpuset", "cpuset.cpus", "cpuset.cpus"),
    ]
    .map(|(controller, v1, v2)| cgroup::setting(pid, controller, v1, v2))
    .into()
}

/// v1 refuses it by itself; v2 would kill.
#[test]
fn a_limit_below_what_is_in_use_is_refused_when_it_is_to_be_checked() {
    needs!("memory");
    kiln_only!("1.1.5 on v2 knows no checkBeforeUpdate");
    let script = "dd if=/dev/zero of=/mnt/x bs=1M count=20; echo up > /up; exec sleep 100";
    let c = Bundle::sh(script).writable().mount("/mnt", "tmpfs", "tmpfs", &[]);
    let memory = json!({ "limit": 64 * MIB, "swap": 64 * MIB, "checkBeforeUpdate": true });
    let c = c.set("/linux/resources/memory", memory).container();
    c.detach().ok();
    c.await_file("/up");
    update(&c, &["--memory", "4M"]).fails(&["memory.limit", "bytes are in use"]);
    reads(&c, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"));
    assert_eq!(c.status(), "running");
    update(&c, &["--memory", "48M"]).ok();
}

#[test]
fn created_and_paused_containers_can_be_updated_but_not_stopped_ones() {
    needs!("pids");
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.create().ok();
    update(&c, &["--pids-limit", "41"]).ok();
    reads(&c, "pids", ("pids.max", "41"), ("pids.max", "41"));
    c.start().ok();
    c.on_id("pause", &[]).ok();
    update(&c, &["--pids-limit", "42"]).ok();
    assert_eq!(c.status(), "paused");
    reads(&c, "pids", ("pids.max", "42"), ("pids.max", "42"));
    c.on_id("resume", &[]).ok();
    c.kill("KILL").ok();
    c.await_status("stopped");
    update(&c, &["--pids-limit", "43"]).fails(&["not running"]);
    c.delete().ok();
    update(&c, &["--pids-limit", "43"]).fails(&["does not exist"]);
}

#[test]
fn bad_values_are_named() {
    let c = sleeping(json!({}));
    for flags in [["--memory", "much"], ["--cpu-quota", "x"], ["--pids-limit", "1.5"]] {
        update(&c, &flags).fails(&[flags[0].trim_start_matches('-')]);
    }
    update(&c, &["--l3-cache-schema", "L3:0=f"]).fails(&["l3"]);
    let outcome = update(&c, &["--kernel-memory", "64M"]).ok();
    assert!(outcome.stderr.contains("kernel-memory"), "{outcome}");
}
