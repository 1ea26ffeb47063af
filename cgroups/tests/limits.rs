//! Limits on real cgroups, read back or provoked. Needs root; works in cgroups
//! called kiln-test-PID-NAME in whatever hierarchies there are.

mod common;

use common::{Layout, Place, Shell, resources, skip};
use kiln_cgroups::Cgroup;

#[test]
fn v1_limits_are_read_back() {
    let Some(place) = Place::new("limits", "", Layout::V1) else {
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    cgroup
        .apply(&resources(
            r#"{"memory": {"limit": 67108864, "swap": 134217728, "reservation": 33554432,
                    "swappiness": 10, "disableOOMKiller": true, "kernelTCP": 16777216},
                "cpu": {"shares": 512, "quota": 20000, "period": 50000, "burst": 10000,
                    "cpus": "0", "mems": "0"},
                "pids": {"limit": 42}}"#,
        ))
        .unwrap();
    let expected = [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "134217728"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("memory", "memory.swappiness", "10"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "20000"),
        ("cpu", "cpu.cfs_period_us", "50000"),
        ("cpu", "cpu.cfs_burst_us", "10000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0"),
        ("pids", "pids.max", "42"),
    ];
    for (controller, file, value) in expected {
        assert_eq!(place.read(controller, file).unwrap(), value, "{file}");
    }
    let oom = place.read("memory", "memory.oom_control").unwrap();
    assert!(oom.starts_with("oom_kill_disable 1"), "{oom}");
}

#[test]
fn v1_memory_and_swap_go_up_and_down_together() {
    let Some(place) = Place::new("swap", "", Layout::V1) else {
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    for (limit, swap) in [(64, 128), (256, 512), (32, 48), (32, 32), (100, 100)] {
        let (limit, swap) = (limit << 20, swap << 20);
        let json = format!(r#"{{"memory": {{"limit": {limit}, "swap": {swap}}}}}"#);
        cgroup.update(&resources(&json)).unwrap();
        let read = |file| place.read("memory", file).unwrap().parse::<u64>().unwrap();
        assert_eq!(read("memory.limit_in_bytes"), limit);
        assert_eq!(read("memory.memsw.limit_in_bytes"), swap);
    }
    cgroup.update(&resources(r#"{"memory": {"limit": -1}}"#)).unwrap();
    let unlimited = place.read("memory", "memory.memsw.limit_in_bytes").unwrap();
    assert!(unlimited.len() > 15, "{unlimited}");
}

#[test]
fn v1_quota_and_period_change_under_a_parents_limit() {
    let Some(parent) = Place::new("quota", "", Layout::V1) else {
        return;
    };
    let paths = parent.paths.clone();
    drop(parent);
    let Some(place) = Place::new("quota", "c", Layout::V1) else {
        return;
    };
    let above = Cgroup::create(&paths).unwrap();
    above.update(&resources(r#"{"cpu": {"quota": 50000, "period": 100000}}"#)).unwrap();
    let cgroup = Cgroup::create(&place.paths).unwrap();
    for (quota, period) in [(50_000, 100_000), (5_000, 10_000), (50_000, 100_000)] {
        let json = format!(r#"{{"cpu": {{"quota": {quota}, "period": {period}}}}}"#);
        cgroup.update(&resources(&json)).unwrap();
        assert_eq!(place.read("cpu", "cpu.cfs_quota_us").unwrap(), quota.to_string());
        assert_eq!(place.read("cpu", "cpu.cfs_period_us").unwrap(), period.to_string());
    }
    let error = cgroup.update(&resources(r#"{"cpu": {"quota": 90000}}"#)).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.cpu.quota: write \"90000\" to /sys/"), "{error}");
    assert!(error.contains("cpu.cfs_quota_us: invalid argument"), "{error}");
}

#[test]
fn v1_idle_and_shares_in_one_go() {
    let Some(place) = Place::new("idle", "", Layout::V1) else {
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    for (idle, shares) in [(1, 100), (0, 200), (1, 300)] {
        let json = format!(r#"{{"cpu": {{"idle": {idle}, "shares": {shares}}}}}"#);
        cgroup.update(&resources(&json)).unwrap();
        assert_eq!(place.read("cpu", "cpu.idle").unwrap(), idle.to_string());
    }
}

#[test]
fn v1_devices_are_the_default_list_or_everything() {
    let Some(place) = Place::new("devices", "", Layout::V1) else {
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    // Twice: a second time changes nothing.
    for _ in 0..2 {
        cgroup.apply(&resources(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#)).unwrap();
        let list = place.read("devices", "devices.list").unwrap();
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), kiln_cgroups::DEFAULT_ALLOWED_DEVICES.len());
        assert_eq!(lines[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
    }
    cgroup.apply(&resources(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#)).unwrap();
    assert_eq!(place.read("devices", "devices.list").unwrap(), "a *:* rwm");
}

#[test]
fn a_fork_beyond_the_pids_limit_fails() {
    let Some(place) = Place::new("pids", "", Layout::V1) else {
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    cgroup.apply(&resources(r#"{"pids": {"limit": 1}}"#)).unwrap();
    let mut shell = Shell::new("(exit 0) && exit 0; exit 1");
    cgroup.attach(shell.pid()).unwrap();
    shell.go();
    assert!(matches!(shell.wait(), Some(code) if code != 0));
    assert!(place.read("pids", "pids.events").unwrap().starts_with("max "));
}

#[test]
fn v1_throttles_a_disk() {
    let Some(place) = Place::new("blkio", "", Layout::V1) else {
        return;
    };
    let Some(disk) = first_disk() else {
        skip::<()>("no block device");
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    let (major, minor) = disk.split_once(':').unwrap();
    let json = format!(
        r#"{{"blockIO": {{"throttleReadBpsDevice": [{{"major": {major}, "minor": {minor}, "rate": 1048576}}]}}}}"#
    );
    cgroup.apply(&resources(&json)).unwrap();
    let read = place.read("blkio", "blkio.throttle.read_bps_device").unwrap();
    assert_eq!(read, format!("{disk} 1048576"));
}

fn first_disk() -> Option<String> {
    let disks = std::fs::read_dir("/sys/block").ok()?;
    let device = |disk: std::fs::DirEntry| std::fs::read_to_string(disk.path().join("dev")).ok();
    disks.flatten().find_map(device).map(|text| text.trim().to_owned())
}

#[test]
fn v1_wants_a_controller_that_is_there() {
    let Some(place) = Place::new("missing", "", Layout::V1) else {
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    for (json, start) in [
        (r#"{"network": {"classID": 5}}"#, "linux.resources.network.classID: no net_cls"),
        (r#"{"rdma": {"mlx5_0": {"hcaHandles": 5}}}"#, "linux.resources.rdma: no rdma"),
        (r#"{"unified": {"memory.high": "5"}}"#, "linux.resources.unified.memory.high: no memory"),
    ] {
        let controller = start.rsplit(' ').next().unwrap();
        let there =
            place.paths.hierarchies().iter().any(|hierarchy| hierarchy.name() == controller);
        if there && controller != "memory" {
            skip::<()>(&format!("this machine has {controller}"));
            continue;
        }
        let error = cgroup.apply(&resources(json)).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn hugetlb_in_the_unified_hierarchy_is_enabled_when_asked_for() {
    for layout in [Layout::Machine, Layout::V2] {
        let Some(place) = Place::new("huge", "p/c", layout) else {
            continue;
        };
        let Some(hierarchy) = place.hierarchy("hugetlb") else {
            continue;
        };
        let v2 = hierarchy.is_v2();
        let cgroup = Cgroup::create(&place.paths).unwrap();
        let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#;
        cgroup.apply(&resources(json)).unwrap();
        let file = if v2 { "hugetlb.2MB.max" } else { "hugetlb.2MB.limit_in_bytes" };
        assert_eq!(place.read("hugetlb", file).unwrap(), "4194304");
        if v2 {
            assert_eq!(place.read("hugetlb", "hugetlb.2MB.rsvd.max").unwrap(), "4194304");
            let json = r#"{"unified": {"hugetlb.2MB.max": "2097152", "cgroup.max.depth": "3"}}"#;
            cgroup.apply(&resources(json)).unwrap();
            assert_eq!(place.read("hugetlb", "hugetlb.2MB.max").unwrap(), "2097152");
            assert_eq!(place.read("hugetlb", "cgroup.max.depth").unwrap(), "3");
        }
        let json = r#"{"hugepageLimits": [{"pageSize": "3MB", "limit": 4194304}]}"#;
        let error = cgroup.apply(&resources(json)).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.hugepageLimits: write \"4194304\""), "{error}");
    }
}

#[test]
fn v2_says_why_a_controller_cannot_be_enabled() {
    let Some(place) = Place::new("internal", "c", Layout::V2) else {
        return;
    };
    let Some(hierarchy) = place.hierarchy("hugetlb") else {
        return;
    };
    let parent = hierarchy.full_path().parent().unwrap().to_owned();
    std::fs::create_dir(&parent).unwrap();
    let shell = Shell::new("");
    std::fs::write(parent.join("cgroup.procs"), shell.pid().to_string()).unwrap();
    let cgroup = Cgroup::create(&place.paths).unwrap();
    let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#;
    let error = cgroup.apply(&resources(json)).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.hugepageLimits: no hugetlb controller"), "{error}");
    let hint = format!("(hint: {} has processes of its own", parent.display());
    assert!(error.contains(&hint), "{error}");
}

#[test]
fn v2_device_filter_denies_and_is_replaced() {
    let Some(place) = Place::new("filter", "", Layout::V2) else {
        return;
    };
    let cgroup = Cgroup::create(&place.paths).unwrap();
    // /dev/full is in the default list; 1:11 (kmsg) is not.
    let node = std::env::temp_dir().join(format!("kiln-test-{}-kmsg", std::process::id()));
    let node = node.to_str().unwrap();
    let made = std::process::Command::new("mknod").args([node, "c", "1", "11"]).status().unwrap();
    assert!(made.success());
    let opens = |path: &str| {
        let mut shell = Shell::new(&format!("exec 3<{path}"));
        cgroup.attach(shell.pid()).unwrap();
        shell.go();
        shell.wait() == Some(0)
    };
    if !opens(node) {
        std::fs::remove_file(node).unwrap();
        skip::<()>("device 1:11 cannot be opened here even without a filter");
        return;
    }
    let deny = resources(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#);
    let allow = resources(
        r#"{"devices": [{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]}"#,
    );
    let all = resources(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#);
    let mut found = Vec::new();
    for rules in [&deny, &allow, &deny, &all] {
        cgroup.apply(rules).unwrap();
        found.push((opens(node), opens("/dev/full")));
    }
    std::fs::remove_file(node).unwrap();
    assert_eq!(found, [(false, true), (true, true), (false, true), (true, true)]);
}
