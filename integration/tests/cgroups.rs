//! Limits: read back from the kernel, and provoked where that can be done.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Container, cgroup, eventually, json, kiln_only, proc, skip};

const MIB: i64 = 1 << 20;

/// A sleeping container with these resources.
fn sleeping(resources: kiln_integration::Value) -> Container {
    let mut bundle = Bundle::new().args(&["sleep", "100"]);
    for (name, value) in resources.as_object().unwrap() {
        bundle = bundle.set(&format!("/linux/resources/{name}"), value.clone());
    }
    let c = bundle.container();
    c.detach().ok();
    c
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

#[test]
fn the_container_is_in_its_cgroup_in_every_hierarchy() {
    let c = sleeping(json!({}));
    let text = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    for line in text.lines().filter(|line| !line.starts_with("0::")) {
        let name = line.split(':').nth(1).unwrap().split(',').next().unwrap();
        let name = name.strip_prefix("name=").unwrap_or(name);
        // A hierarchy without a mount is nobody's to be put in.
        let mounted = proc::mounts("self").iter().any(|mount| mount.point.ends_with(name));
        assert!(!mounted || line.contains(&c.id), "{line}");
    }
}

#[test]
fn memory_limit() {
    needs!("memory");
    let c = sleeping(json!({ "memory": { "limit": 64 * MIB, "reservation": 32 * MIB } }));
    reads(&c, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"));
    reads(&c, "memory", ("memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432"));
}

#[test]
fn memory_and_swap_limit() {
    needs!("memory");
    let c = sleeping(json!({ "memory": { "limit": 64 * MIB, "swap": 96 * MIB } }));
    let v1 = ("memory.memsw.limit_in_bytes", "100663296");
    if cgroup::setting(c.pid(), "memory", v1.0, "memory.swap.max").is_none() {
        skip!("the kernel does not account swap");
    }
    reads(&c, "memory", v1, ("memory.swap.max", "33554432"));
}

#[test]
fn unlimited_memory() {
    needs!("memory");
    let c = sleeping(json!({ "memory": { "limit": -1, "swap": -1 } }));
    let value = cgroup::setting(c.pid(), "memory", "memory.limit_in_bytes", "memory.max").unwrap();
    assert!(value == "max" || value.parse::<u64>().unwrap() > 1 << 60, "{value}");
}

#[test]
fn swappiness_and_oom_control() {
    needs!("memory");
    if cgroup::is_v2() {
        skip!("cgroup v2 has neither");
    }
    let memory = json!({ "limit": 64 * MIB, "swappiness": 17, "disableOOMKiller": true });
    let c = sleeping(json!({ "memory": memory }));
    let setting = |file| cgroup::setting(c.pid(), "memory", file, file).unwrap();
    assert_eq!(setting("memory.swappiness"), "17");
    assert!(setting("memory.oom_control").contains("oom_kill_disable 1"));
}

#[test]
fn too_much_memory_is_an_oom_kill() {
    needs!("memory");
    // dd's buffer is what grows; the shell does not do as much.
    let c = Bundle::sh("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    let c = c.set("/linux/resources/memory", json!({ "limit": 32 * MIB, "swap": 32 * MIB }));
    let c = c.container();
    c.run().exits(137);
    c.assert_nothing_left();
}

#[test]
fn a_tmpfs_counts_as_memory() {
    needs!("memory");
    let c = Bundle::sh("dd if=/dev/zero of=/mnt/x bs=1M count=100; exit 1");
    let c = c.mount("/mnt", "tmpfs", "tmpfs", &[]);
    let c = c.set("/linux/resources/memory", json!({ "limit": 32 * MIB, "swap": 32 * MIB }));
    let outcome = c.container().run();
    assert!(
        !outcome.status.success() && !outcome.stderr.contains("100+0 records out"),
        "{outcome}"
    );
}

#[test]
fn pids_limit() {
    needs!("pids");
    let c = sleeping(json!({ "pids": { "limit": 42 } }));
    reads(&c, "pids", ("pids.max", "42"), ("pids.max", "42"));
}

#[test]
fn too_many_processes_are_refused() {
    needs!("pids");
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all; exit 0";
    let c = Bundle::sh(script).set("/linux/resources/pids", json!({ "limit": 8 })).container();
    let outcome = c.run();
    assert!(!outcome.stdout.contains("all"), "{outcome}");
    assert!(outcome.stderr.contains("fork"), "{outcome}");
    c.assert_nothing_left();
}

#[test]
fn cpu_quota_and_shares() {
    needs!("cpu");
    let cpu = json!({ "shares": 512, "quota": 20000, "period": 50000 });
    let c = sleeping(json!({ "cpu": cpu }));
    if cgroup::is_v2() {
        reads(&c, "cpu", ("", ""), ("cpu.max", "20000 50000"));
        let weight = cgroup::setting(c.pid(), "cpu", "cpu.weight", "cpu.weight").unwrap();
        // 20 by runc's old formula, 59 by the one of spec 1.3.
        assert!(weight == "20" || weight == "59", "{weight}");
    } else {
        reads(&c, "cpu", ("cpu.cfs_quota_us", "20000"), ("", ""));
        reads(&c, "cpu", ("cpu.cfs_period_us", "50000"), ("", ""));
        reads(&c, "cpu", ("cpu.shares", "512"), ("", ""));
    }
}

#[test]
fn a_cpu_quota_without_a_period() {
    needs!("cpu");
    let c = sleeping(json!({ "cpu": { "quota": 30000 } }));
    reads(&c, "cpu", ("cpu.cfs_quota_us", "30000"), ("cpu.max", "30000 100000"));
}

#[test]
fn a_busy_container_is_throttled() {
    needs!("cpu");
    let cpu = json!({ "quota": 10000, "period": 100_000 });
    let c = Bundle::sh("while :; do :; done").set("/linux/resources/cpu", cpu).container();
    c.detach().ok();
    let pid = c.pid();
    eventually("the container to be throttled", || {
        let stat = cgroup::setting(pid, "cpu", "cpu.stat", "cpu.stat").unwrap();
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        line.is_some_and(|count| count.parse::<u64>().unwrap() > 2)
    });
}

#[test]
fn cpuset_is_what_the_process_may_use() {
    needs!("cpuset");
    let c = sleeping(json!({ "cpu": { "cpus": "0", "mems": "0" } }));
    reads(&c, "cpuset", ("cpuset.cpus", "0"), ("cpuset.cpus", "0"));
    assert_eq!(proc::status_field(c.pid(), "Cpus_allowed_list").unwrap(), "0");
    assert_eq!(proc::status_field(c.pid(), "Mems_allowed_list").unwrap(), "0");
}

#[test]
fn a_cpu_that_does_not_exist_is_an_error() {
    needs!("cpuset");
    let c = Bundle::new().set("/linux/resources/cpu", json!({ "cpus": "4000" })).container();
    c.create().fails(&["cpuset.cpus"]);
    c.assert_nothing_left();
}

#[test]
fn a_value_that_the_kernel_refuses_is_an_error() {
    needs!("cpu");
    let cpu = json!({ "quota": 5, "period": 100_000 });
    let c = Bundle::new().set("/linux/resources/cpu", cpu).container();
    c.create().fails_any(&["cpu.cfs_quota_us", "cpu.max"]);
    c.assert_nothing_left();
}

#[test]
fn block_io_weight_and_throttle() {
    let controller = if cgroup::is_v2() { "io" } else { "blkio" };
    if !cgroup::has(controller) {
        skip!("this machine has no {controller} controller");
    }
    let number = fs::read_to_string("/sys/block/vda/dev").or_else(|_| {
        fs::read_dir("/sys/block").and_then(|mut dir| {
            let first = dir.next().ok_or(std::io::ErrorKind::NotFound)??;
            fs::read_to_string(first.path().join("dev"))
        })
    });
    let Ok(number) = number else { skip!("this machine has no block device") };
    let (major, minor) = number.trim().split_once(':').unwrap();
    let (major, minor): (i64, i64) = (major.parse().unwrap(), minor.parse().unwrap());
    let device = |rate: i64| json!([{ "major": major, "minor": minor, "rate": rate }]);
    let block_io = json!({
        "throttleReadBpsDevice": device(1_048_576), "throttleWriteBpsDevice": device(2_097_152),
        "throttleReadIOPSDevice": device(100), "throttleWriteIOPSDevice": device(200),
    });
    let c = sleeping(json!({ "blockIO": block_io }));
    let number = number.trim();
    for (file, rate) in [
        ("blkio.throttle.read_bps_device", 1_048_576),
        ("blkio.throttle.write_bps_device", 2_097_152),
        ("blkio.throttle.read_iops_device", 100),
        ("blkio.throttle.write_iops_device", 200),
    ] {
        let value = cgroup::setting(c.pid(), controller, file, "io.max").unwrap();
        // v2: `8:0 rbps=1048576 wbps=2097152 riops=100 wiops=200`
        let v2 = value.starts_with(number) && value.contains(&format!("ps={rate}"));
        assert!(value.contains(&format!("{number} {rate}")) || v2, "{file}: {value}");
    }
}

#[test]
fn block_io_weight() {
    let controller = if cgroup::is_v2() { "io" } else { "blkio" };
    if !cgroup::has(controller) {
        skip!("this machine has no {controller} controller");
    }
    let idle = sleeping(json!({}));
    let files = ["blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight"];
    let read = |c: &Container, file: &str| cgroup::setting(c.pid(), controller, file, file);
    let Some(file) = files.into_iter().find(|file| read(&idle, file).is_some()) else {
        skip!("the kernel has no weight for block devices");
    };
    let c = sleeping(json!({ "blockIO": { "weight": 300 } }));
    // iocost's scale is another.
    let expected = if file == "io.weight" { "2930" } else { "300" };
    let value = read(&c, file);
    assert!(value.as_deref().is_some_and(|value| value.contains(expected)), "{file}: {value:?}");
}

#[test]
fn hugetlb_limit() {
    needs!("hugetlb");
    kiln_only!("writes hugetlb limits on v1 only");
    let limits = json!([{ "pageSize": "2MB", "limit": 4 * MIB }]);
    let c = sleeping(json!({ "hugepageLimits": limits }));
    let v1 = ("hugetlb.2MB.limit_in_bytes", "4194304");
    let value = cgroup::setting(c.pid(), "hugetlb", v1.0, "hugetlb.2MB.max");
    assert_eq!(value.as_deref(), Some("4194304"));
}

#[test]
fn a_limit_that_no_controller_can_keep_is_an_error() {
    if cgroup::has("hugetlb") {
        let limits = json!([{ "pageSize": "3MB", "limit": 4 * MIB }]);
        let c = Bundle::new().set("/linux/resources/hugepageLimits", limits).container();
        kiln_only!("1.1.5 drops what it cannot write on v2");
        c.create().fails(&["3MB"]);
        c.assert_nothing_left();
    } else {
        skip!("this machine has no hugetlb controller");
    }
}

#[test]
fn unified_settings() {
    if !cgroup::is_v2() {
        skip!("linux.resources.unified needs cgroup v2 for the controllers");
    }
    let c = sleeping(json!({ "unified": { "memory.high": "50331648", "pids.max": "33" } }));
    reads(&c, "memory", ("", ""), ("memory.high", "50331648"));
    reads(&c, "pids", ("", ""), ("pids.max", "33"));
}

#[test]
fn an_absolute_cgroups_path() {
    let parent = cgroup::Parent(format!("parent{}", kiln_integration::fresh_id()));
    let bundle = Bundle::new().args(&["sleep", "100"]);
    let path = format!("/{}/deep/{}-leaf", parent.0, parent.0);
    let c = bundle.set("/linux/cgroupsPath", json!(path)).container();
    c.detach().ok();
    let text = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    let memory = text.lines().find(|line| line.contains(":pids:") || line.starts_with("0::"));
    assert!(memory.unwrap().ends_with(&path), "{text}");
    c.delete_force().ok();
    let left = cgroup::directories_of(&format!("{}-leaf", parent.0));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_relative_cgroups_path() {
    let parent = cgroup::Parent(format!("parent{}", kiln_integration::fresh_id()));
    let bundle = Bundle::new().args(&["sleep", "100"]);
    let path = format!("{}/leaf", parent.0);
    let c = bundle.set("/linux/cgroupsPath", json!(path)).container();
    c.detach().ok();
    let text = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    let line = text.lines().find(|line| line.contains(":pids:") || line.starts_with("0::"));
    assert!(line.unwrap().ends_with(&path), "{text}");
    c.delete_force().ok();
}

/// runc cleans such a path, kiln refuses it; nobody may climb out.
#[test]
fn a_cgroups_path_that_climbs_stays_inside() {
    kiln_only!("cleans the path instead");
    for path in ["/../escape", "../escape", "/a/../../escape", "..", "/a/..", "/./x/../../y"] {
        let c = Bundle::new().set("/linux/cgroupsPath", json!(path)).container();
        c.create().fails(&["cgroupsPath"]);
        c.assert_nothing_left();
    }
    assert!(cgroup::directories_of("escape").is_empty());
}

#[test]
fn processes_of_the_container_stay_in_its_cgroup() {
    let c = Bundle::sh("sleep 101 & sleep 102 & echo up > /up; wait").writable().container();
    c.detach().ok();
    c.await_file("/up");
    assert_eq!(cgroup::members(c.pid()).len(), 3);
}

#[test]
fn a_cgroup_that_is_not_empty_is_refused() {
    kiln_only!("1.1.5 only warns");
    let holder = sleeping(json!({}));
    let text = fs::read_to_string(format!("/proc/{}/cgroup", holder.pid())).unwrap();
    let line = text.lines().find(|line| line.ends_with(&holder.id)).unwrap();
    let path = line.splitn(3, ':').last().unwrap();
    let c = Bundle::new().set("/linux/cgroupsPath", json!(path)).container();
    c.create().fails(&[&holder.id]);
    assert_eq!(holder.status(), "running");
}

#[test]
fn delete_removes_cgroups_below_the_containers() {
    let c = sleeping(json!({}));
    let dir = cgroup::directory(c.pid(), "pids").unwrap();
    fs::create_dir_all(dir.join("below/deeper")).unwrap();
    c.delete_force().ok();
    c.assert_nothing_left();
}

#[test]
fn processes_in_cgroups_below_are_ended() {
    let script = "sleep 101 & echo up > /up; wait";
    let c = Bundle::sh(script).writable().without_namespace("pid").container();
    c.detach().ok();
    c.await_file("/up");
    let dir = cgroup::directory(c.pid(), "pids").unwrap().join("below");
    fs::create_dir_all(&dir).unwrap();
    let members = cgroup::members(c.pid());
    let child = members.iter().find(|&&pid| pid != c.pid()).unwrap();
    fs::write(dir.join("cgroup.procs"), child.to_string()).unwrap();
    c.delete_force().ok();
    assert!(!proc::alive(*child));
    c.assert_nothing_left();
}

#[test]
fn the_freezer_does_not_stop_delete() {
    let c = sleeping(json!({}));
    let pid = c.pid();
    let (file, value) = match cgroup::directory(pid, "freezer") {
        Some(dir) => (dir.join("freezer.state"), "FROZEN"),
        None => (cgroup::directory(pid, "unified").unwrap().join("cgroup.freeze"), "1"),
    };
    fs::write(&file, value).unwrap();
    assert_eq!(c.status(), "paused");
    c.delete_force().ok();
    assert!(!proc::alive(pid));
    c.assert_nothing_left();
}

/// A container that may write its own cgroups can freeze a part of itself, or all. On v1 that stays
/// frozen when the container's cgroup is thawed, and frozen processes do not die.
fn delete_with_frozen(bundle: Bundle, init: bool) {
    let c = bundle.container();
    c.detach().ok();
    c.await_file("/up");
    let (controller, file, value) = match cgroup::directory(c.pid(), "freezer") {
        Some(_) => ("freezer", "freezer.state", "FROZEN"),
        None => ("unified", "cgroup.freeze", "1"),
    };
    let dir = cgroup::directory(c.pid(), controller).unwrap().join("below/deeper");
    fs::create_dir_all(&dir).unwrap();
    let members = cgroup::members(c.pid());
    let frozen = *members.iter().find(|&&pid| (pid == c.pid()) == init).unwrap();
    fs::write(dir.join("cgroup.procs"), frozen.to_string()).unwrap();
    fs::write(dir.join(file), value).unwrap();
    c.delete_force().ok();
    assert!(!proc::alive(frozen));
    c.assert_nothing_left();
}

#[test]
fn a_frozen_cgroup_below_does_not_stop_delete() {
    let bundle = || Bundle::sh("sleep 101 & echo up > /up; wait").writable();
    for init in [false, true] {
        delete_with_frozen(bundle(), init);
        delete_with_frozen(bundle().without_namespace("pid"), init);
    }
}

#[test]
fn a_cgroup_that_has_gone_already_does_not_stop_delete() {
    let c = sleeping(json!({}));
    let dirs = cgroup::directories_of(&c.id);
    assert!(!dirs.is_empty());
    c.kill("KILL").ok();
    c.await_status("stopped");
    eventually("the cgroups to be empty", || {
        dirs.iter().all(|dir| fs::remove_dir(dir).is_ok() || !dir.exists())
    });
    c.delete().ok();
    c.assert_nothing_left();
}
