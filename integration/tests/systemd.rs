//! The systemd driver: units, their properties, and what becomes of them.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::ExitStatusExt;

use kiln_integration::systemd::{self, knows, property};
use kiln_integration::{
    Bundle, Cli, Container, Outcome, Value, cgroup, command, eventually, json, kiln_only,
    needs_user, skip,
};

const MIB: i64 = 1 << 20;

macro_rules! needs_systemd {
    () => {
        if !systemd::is_running() {
            skip!("systemd does not run this machine");
        }
    };
}

macro_rules! needs_v2 {
    () => {
        if !cgroup::is_v2() {
            skip!("its properties have other names with cgroup v1");
        }
    };
}

/// A command that makes the container, with the driver.
fn with_systemd(c: &Container, command: &str, flags: &[&str]) -> Outcome {
    let cli = c.cli(&["--systemd-cgroup", command, "--bundle"]).arg(c.bundle.path());
    cli.args(flags).arg(&c.id).output()
}

fn detached(bundle: Bundle) -> Container {
    let c = bundle.container();
    with_systemd(&c, "run", &["--detach"]).ok();
    c
}

fn sleeping() -> Bundle {
    Bundle::new().args(&["sleep", "100"])
}

/// The unit of a container without a cgroupsPath.
fn scope(c: &Container) -> String {
    format!("kiln-{}.scope", c.id)
}

/// Sets cgroupsPath, with `ID` for the container's.
fn placed(bundle: Bundle, path: &str) -> Container {
    let mut c = bundle.container();
    c.bundle.config["linux"]["cgroupsPath"] = json!(path.replace("ID", &c.id));
    c.bundle.write();
    c
}

#[track_caller]
fn is_gone(c: &Container, unit: &str) {
    assert!(!knows(unit), "{unit} is {}", property(unit, "ActiveState"));
    c.assert_nothing_left();
}

/// The cgroup that systemd's own hierarchy has the process in.
fn cgroup_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = text.lines().find(|line| line.contains(":name=systemd:"));
    let own = own.or_else(|| text.lines().find(|line| line.starts_with("0::")));
    own.unwrap().splitn(3, ':').nth(2).unwrap().to_owned()
}

#[test]
fn a_container_is_a_scope_in_system_slice() {
    needs_systemd!();
    kiln_only!("the name of its unit");
    let c = detached(sleeping());
    let unit = scope(&c);
    assert_eq!(property(&unit, "ActiveState"), "active");
    assert_eq!(property(&unit, "Slice"), "system.slice");
    assert_eq!(property(&unit, "Description"), format!("kiln container {}", c.id));
    assert_eq!(property(&unit, "Delegate"), "yes");
    assert_eq!(property(&unit, "DefaultDependencies"), "no");
    for accounting in ["Memory", "CPU", "Tasks"] {
        assert_eq!(property(&unit, &format!("{accounting}Accounting")), "yes");
    }
    let expected = format!("/system.slice/{unit}");
    assert_eq!(property(&unit, "ControlGroup"), expected);
    assert_eq!(cgroup_of(c.pid()), expected);
}

#[test]
fn all_hierarchies_have_the_units_path() {
    needs_systemd!();
    let c = detached(sleeping());
    let own = cgroup_of(c.pid());
    let text = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    for line in text.lines() {
        let name = line.split(':').nth(1).unwrap();
        let mounted = name.is_empty() || cgroup::has(name.split(',').next().unwrap());
        assert!(!mounted || line.ends_with(&own), "{line}");
    }
}

#[test]
fn limits_are_properties_and_files() {
    needs_systemd!();
    needs_v2!();
    let resources = json!({
        "memory": { "limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB },
        "cpu": { "shares": 2048, "quota": 20000, "period": 50000, "cpus": "0", "mems": "0" },
        "pids": { "limit": 42 },
        "blockIO": { "weight": 500 },
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    let c = detached(sleeping().set("/linux/resources", resources));
    let unit = scope(&c);
    for (name, value) in [
        ("MemoryMax", "67108864"),
        ("MemoryLow", "33554432"),
        ("MemorySwapMax", "33554432"),
        ("CPUQuotaPeriodUSec", "50ms"),
        ("CPUQuotaPerSecUSec", "400ms"),
        ("TasksMax", "42"),
        ("IOWeight", "4950"),
        ("AllowedCPUs", "0"),
        ("AllowedMemoryNodes", "0"),
        ("DevicePolicy", "strict"),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    let file = |file| cgroup::setting(c.pid(), "memory", file, file).unwrap();
    let before =
        ["memory.max", "memory.low", "cpu.max", "cpu.weight", "pids.max", "cpuset.cpus"].map(file);
    assert_eq!(before[0], "67108864");
    assert_eq!(before[2], "20000 50000");
    assert_eq!(property(&unit, "CPUWeight"), before[3]);
    systemd::reload();
    let after =
        ["memory.max", "memory.low", "cpu.max", "cpu.weight", "pids.max", "cpuset.cpus"].map(file);
    assert_eq!(before, after);
}

#[test]
fn without_a_pids_limit_there_is_none() {
    needs_systemd!();
    kiln_only!("others leave it to systemd's default for all units");
    let c = detached(sleeping().set("/linux/resources", json!({})));
    let max = || cgroup::setting(c.pid(), "pids", "pids.max", "pids.max").unwrap();
    assert_eq!(max(), "max");
    systemd::reload();
    assert_eq!(max(), "max");
}

#[test]
fn the_path_is_slice_prefix_and_name() {
    needs_systemd!();
    let c = placed(sleeping(), "ktsd-a.slice:pre:ID");
    with_systemd(&c, "run", &["--detach"]).ok();
    let unit = format!("pre-{}.scope", c.id);
    assert_eq!(property(&unit, "Slice"), "ktsd-a.slice");
    assert_eq!(cgroup_of(c.pid()), format!("/ktsd.slice/ktsd-a.slice/{unit}"));
    // The driver is remembered.
    c.on_id("pause", &[]).ok();
    assert_eq!(c.status(), "paused");
    c.on_id("resume", &[]).ok();
    c.kill("KILL").ok();
    c.await_status("stopped");
    c.delete().ok();
    is_gone(&c, &unit);
}

#[test]
fn the_root_slice_is_a_dash() {
    needs_systemd!();
    kiln_only!("runc 1.1 takes the name -.slice only");
    let c = placed(sleeping(), "-:pre:ID");
    with_systemd(&c, "run", &["--detach"]).ok();
    assert_eq!(cgroup_of(c.pid()), format!("/pre-{}.scope", c.id));
}

#[test]
fn a_name_that_ends_in_slice_is_a_slice() {
    needs_systemd!();
    kiln_only!("systemd puts no process into a slice by itself: with runc this fails");
    let limits = json!({ "pids": { "limit": 42 } });
    // Its dashes would be levels.
    let mut c = sleeping().set("/linux/resources", limits).container();
    let unit = format!("{}.slice", c.id.replace('-', "_"));
    c.bundle.config["linux"]["cgroupsPath"] = json!(format!("system.slice:ignored:{unit}"));
    c.bundle.write();
    with_systemd(&c, "run", &["--detach"]).ok();
    assert_eq!(property(&unit, "ActiveState"), "active");
    assert_eq!(property(&unit, "TasksMax"), "42");
    assert_eq!(cgroup_of(c.pid()), format!("/{unit}"));
    let max = cgroup::setting(c.pid(), "pids", "pids.max", "pids.max");
    assert_eq!(max.as_deref(), Some("42"));
    c.delete_force().ok();
    assert!(cgroup::directories_of(&c.id.replace('-', "_")).is_empty());
    is_gone(&c, &unit);
}

#[test]
fn a_wrong_path_is_refused_by_name() {
    for path in ["/a/b", "a.slice:b", "a.slice:b:c:d", "a.slice/b.slice:k:x", "a:k:x", ":k:a b"] {
        let c = sleeping().set("/linux/cgroupsPath", json!(path)).container();
        let outcome = with_systemd(&c, "run", &["--detach"]);
        outcome.fails(&[if path.contains(' ') { "unit" } else { path }]);
        c.assert_nothing_left();
    }
}

#[test]
fn without_the_driver_colons_are_part_of_a_path() {
    let c = placed(sleeping(), "/ktsd:pre:ID");
    c.detach().ok();
    let dirs = cgroup::directories_of(&c.id);
    assert!(dirs.iter().all(|dir| dir.ends_with(format!("ktsd:pre:{}", c.id))), "{dirs:?}");
    assert!(!dirs.is_empty());
}

#[test]
fn without_systemd_the_error_says_so() {
    if systemd::is_running() {
        skip!("systemd runs this machine");
    }
    kiln_only!("its words");
    let c = sleeping().container();
    let parts = ["systemd: connect: /run/systemd/private: ", "machine that runs systemd"];
    with_systemd(&c, "run", &["--detach"]).fails(&parts);
    c.assert_nothing_left();
}

#[test]
fn annotations_set_further_properties() {
    needs_systemd!();
    let bundle = sleeping()
        .annotation("org.systemd.property.TimeoutStopSec", "uint64 7")
        .annotation("org.systemd.property.CollectMode", "'inactive-or-failed'")
        .annotation("org.systemd.property.Before", "['ktsd.service']")
        .annotation("org.systemd.property.MemoryHigh", "uint64 33554432");
    let c = placed(bundle, "system.slice:pre:ID");
    with_systemd(&c, "run", &["--detach"]).ok();
    let unit = format!("pre-{}.scope", c.id);
    assert_eq!(property(&unit, "TimeoutStopUSec"), "7s");
    assert_eq!(property(&unit, "CollectMode"), "inactive-or-failed");
    assert!(property(&unit, "Before").contains("ktsd.service"));
    if cgroup::is_v2() {
        assert_eq!(property(&unit, "MemoryHigh"), "33554432");
    }
}

#[test]
fn wrong_properties_are_refused_by_name() {
    for (name, value) in
        [("TasksMax", "many"), ("A", "1"), ("Tasks.Max", "1"), ("TimeoutStopSec", "'x'")]
    {
        let key = format!("org.systemd.property.{name}");
        let c = sleeping().annotation(&key, value).container();
        with_systemd(&c, "run", &["--detach"]).fails(&[&key]);
        c.assert_nothing_left();
        // Without the driver they are nobody's business.
        if name == "A" {
            c.run_cli(&["--detach"]).output().ok();
        }
    }
}

#[test]
fn what_systemd_refuses_leaves_nothing() {
    needs_systemd!();
    let c = sleeping().annotation("org.systemd.property.NoSuchProperty", "true").container();
    with_systemd(&c, "run", &["--detach"]).fails(&["NoSuchProperty"]);
    is_gone(&c, &scope(&c));
    let c = Bundle::new().args(&["/no/such/program"]).container();
    with_systemd(&c, "run", &[]).fails(&["no such file"]);
    is_gone(&c, &scope(&c));
}

#[test]
fn processes_and_the_place_are_not_for_annotations() {
    kiln_only!("runc and crun let a config move any process of the host");
    for (name, value) in [("PIDs", "[uint32 1]"), ("Slice", "'system.slice'")] {
        let key = format!("org.systemd.property.{name}");
        let c = sleeping().annotation(&key, value).container();
        with_systemd(&c, "run", &["--detach"]).fails(&[&key, "set by kiln"]);
    }
}

#[test]
fn an_update_is_kept_by_systemd() {
    needs_systemd!();
    let c = placed(sleeping(), "system.slice:pre:ID");
    with_systemd(&c, "run", &["--detach"]).ok();
    let unit = format!("pre-{}.scope", c.id);
    let update = |flags: &[&str]| c.cli(&["update"]).args(flags).arg(&c.id).output().ok();
    let memory =
        || cgroup::setting(c.pid(), "memory", "memory.limit_in_bytes", "memory.max").unwrap();
    let pids = || cgroup::setting(c.pid(), "pids", "pids.max", "pids.max").unwrap();
    update(&["--memory", "67108864", "--pids-limit", "42"]);
    let name = if cgroup::is_v2() { "MemoryMax" } else { "MemoryLimit" };
    assert_eq!(property(&unit, name), "67108864");
    assert_eq!(property(&unit, "TasksMax"), "42");
    assert_eq!((memory().as_str(), pids().as_str()), ("67108864", "42"));
    systemd::reload();
    assert_eq!((memory().as_str(), pids().as_str()), ("67108864", "42"));
    update(&["--cpu-quota", "30001", "--cpu-period", "100000"]);
    assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "310ms");
    let quota = cgroup::setting(c.pid(), "cpu", "cpu.cfs_quota_us", "cpu.max").unwrap();
    assert!(quota.starts_with("30001"), "{quota}");
}

#[test]
fn device_rules_survive_a_reload() {
    needs_systemd!();
    let script = "until test -e /go; do sleep 0.05; done; \
        head -c 1 /dev/zero >/dev/null && echo zero; mknod /kmsg c 1 11; cat /kmsg; echo end >/done";
    let bundle = Bundle::sh(script).writable();
    let bundle = bundle.capabilities(&["CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYSLOG"]);
    let bundle = bundle.set("/linux/resources", json!({}));
    let c = detached(bundle);
    systemd::reload();
    fs::write(c.bundle.rootfs().join("go"), "").unwrap();
    c.await_file("/done");
    c.await_status("stopped");
    let c2 = Bundle::sh("head -c 1 /dev/zero >/dev/null && echo zero; cat /dev/kmsg").container();
    let outcome = with_systemd(&c2, "run", &[]);
    assert!(outcome.stdout.contains("zero"), "{outcome}");
}

#[test]
fn the_end_of_a_foreground_run_is_the_units_end() {
    needs_systemd!();
    let c = Bundle::sh("exit 7").container();
    with_systemd(&c, "run", &[]).exits(7);
    is_gone(&c, &scope(&c));
}

#[test]
fn an_oom_kill_leaves_no_failed_unit() {
    needs_systemd!();
    let c = Bundle::sh("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    let c = c.set("/linux/resources/memory", json!({ "limit": 32 * MIB, "swap": 32 * MIB }));
    let c = c.container();
    with_systemd(&c, "run", &[]).exits(137);
    is_gone(&c, &scope(&c));
}

#[test]
fn create_start_and_delete() {
    needs_systemd!();
    let c = sleeping().container();
    with_systemd(&c, "create", &[]).ok();
    let unit = scope(&c);
    assert_eq!(c.status(), "created");
    assert!(cgroup_of(c.pid()).ends_with(&unit));
    c.start().ok();
    assert_eq!(c.status(), "running");
    c.delete().fails(&["running"]);
    c.delete_force().ok();
    is_gone(&c, &unit);
    c.delete_force().ok();
}

#[test]
fn two_at_once() {
    needs_systemd!();
    let containers = [sleeping().container(), sleeping().container()];
    let running = containers.each_ref().map(|c| {
        let cli = c.cli(&["--systemd-cgroup", "run", "--detach", "--bundle"]);
        cli.arg(c.bundle.path()).arg(&c.id).spawn()
    });
    for run in running {
        run.wait().ok();
    }
    for c in &containers {
        assert!(cgroup_of(c.pid()).contains(&c.id));
        c.delete_force().ok();
        is_gone(c, &scope(c));
    }
}

#[test]
fn a_taken_name_is_an_error_and_its_owner_stays() {
    needs_systemd!();
    let first = detached(sleeping());
    let unit = scope(&first);
    let path = format!(":kiln:{}", first.id);
    let second = sleeping().set("/linux/cgroupsPath", json!(path)).container();
    with_systemd(&second, "run", &["--detach"]).fails(&[&unit]);
    second.assert_nothing_left();
    assert_eq!(first.status(), "running");
    assert_eq!(property(&unit, "ActiveState"), "active");
}

#[test]
fn the_remains_of_a_failed_unit_are_no_hindrance() {
    needs_systemd!();
    let c = sleeping().container();
    let unit = scope(&c);
    let run = Cli::new(["--scope", "--quiet", "--unit", &unit, "--property"]);
    run.binary("systemd-run").args(&["RuntimeMaxSec=100ms", "sleep", "100"]).output();
    eventually("the unit to fail", || property(&unit, "ActiveState") == "failed");
    with_systemd(&c, "run", &["--detach"]).ok();
    assert_eq!(property(&unit, "ActiveState"), "active");
}

#[test]
fn a_stopped_unit_is_a_stopped_container() {
    needs_systemd!();
    let c = detached(sleeping().annotation("org.systemd.property.TimeoutStopSec", "1"));
    systemd::systemctl(&["stop", &scope(&c)]);
    c.await_status("stopped");
    c.delete().ok();
    is_gone(&c, &scope(&c));
}

#[test]
fn a_container_may_divide_its_cgroup() {
    needs_systemd!();
    needs_v2!();
    let script = "mkdir /sys/fs/cgroup/below && echo 0 >/sys/fs/cgroup/below/cgroup.procs && \
        echo +memory >/sys/fs/cgroup/cgroup.subtree_control && cat /proc/self/cgroup";
    let bundle = Bundle::sh(script).namespace("cgroup", None);
    let bundle = bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw"]);
    let c = bundle.container();
    let outcome = with_systemd(&c, "run", &[]).ok();
    assert!(outcome.stdout.ends_with("0::/below\n"), "{outcome}");
    is_gone(&c, &scope(&c));
}

#[test]
fn disabled_means_where_the_caller_is() {
    kiln_only!("crun's name for it, which runc does not have");
    let bundle = Bundle::sh("cat /proc/self/cgroup; touch /sys/fs/cgroup/x");
    let bundle = bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw"]);
    let c = bundle.set("/linux/resources", json!({})).container();
    let cli = c.cli(&["--cgroup-manager", "disabled", "run", "--bundle"]);
    let outcome = cli.arg(c.bundle.path()).arg(&c.id).output();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(!outcome.stdout.is_empty(), "{outcome}");
    for line in outcome.stdout.lines().filter(|line| !line.starts_with("0::")) {
        assert!(own.contains(line) || line.ends_with(":/"), "{line} of {outcome}");
    }
    assert!(outcome.stderr.to_lowercase().contains("read-only"), "{outcome}");
    c.assert_nothing_left();
}

#[test]
fn two_managers_contradict() {
    kiln_only!("crun lets the last one win");
    let c = sleeping().container();
    let flags = ["--systemd-cgroup", "--cgroup-manager", "cgroupfs", "run", "--bundle"];
    let outcome = c.cli(&flags).arg(c.bundle.path()).arg(&c.id).output();
    outcome.fails(&["--systemd-cgroup contradicts --cgroup-manager"]);
    c.assert_nothing_left();
}

#[test]
fn exec_lands_in_the_scope() {
    needs_systemd!();
    let c = detached(sleeping().without_namespace("cgroup"));
    let init = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    assert!(init.contains(&scope(&c)), "{init}");
    c.exec(&["cat", "/proc/self/cgroup"]).ok().prints(&init);
}

/// Killed in the middle of what it says to systemd, and after it.
#[test]
fn a_killed_runtime_leaves_nothing_that_delete_does_not_find() {
    needs_systemd!();
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let calls = [1, 4, 7, 9, 10, 11, 12, 13, 14, 15].map(|count| ("setsockopt", count));
    let mut killed = 0;
    for (name, count) in calls.into_iter().chain([("symlinkat", 1)]) {
        let c = sleeping().container();
        let inject = format!("inject={name}:signal=KILL:when={count}");
        let trace = format!("trace={name}");
        let cli = c.cli(&["--systemd-cgroup", "run", "--detach", "--bundle"]);
        let cli = cli.arg(c.bundle.path()).arg(&c.id);
        let wrapper = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        killed += u32::from(cli.under(&wrapper).output().status.signal() == Some(9));
        c.delete_force();
        is_gone(&c, &scope(&c));
    }
    assert!(killed > 6, "{killed} were killed");
}

#[test]
fn features_list_it() {
    let document = Cli::new(["features"]).output().ok().stdout;
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["linux"]["cgroup"]["systemd"], json!(true));
    assert_eq!(document["linux"]["cgroup"]["systemdUser"], json!(true));
    let annotations = &document["potentiallyUnsafeConfigAnnotations"];
    assert!(annotations.as_array().unwrap().contains(&json!("org.systemd.property.")));
}

#[test]
fn a_user_has_a_scope_of_the_own_systemd() {
    needs_systemd!();
    needs_v2!();
    let user = needs_user!();
    let Some(wrapper) = user.delegated() else {
        skip!("nobody here has a systemd of the own");
    };
    let limits = json!({ "memory": { "limit": 64 * MIB }, "pids": { "limit": 17 } });
    let bundle = Bundle::rootless(&user, "sleep 100").set("/linux/resources", limits);
    let bundle = bundle.without_namespace("cgroup");
    user.own(&bundle);
    let c = bundle.container().under(&wrapper);
    with_systemd(&c, "run", &["--detach"]).ok();
    let id = user.id;
    let own = format!("/user.slice/user-{id}.slice/user@{id}.service");
    assert_eq!(cgroup_of(c.pid()), format!("{own}/user.slice/{}", scope(&c)));
    let show = |name: &str| {
        let words = ["--user", "show", "--value", "--property", name, "--", &scope(&c)];
        let cli = Cli::new(words).binary("systemctl").under(&wrapper);
        cli.output().ok().stdout.trim().to_owned()
    };
    assert_eq!(show("MemoryMax"), "67108864");
    c.cli(&["update", "--pids-limit", "23", &c.id]).output().ok();
    assert_eq!(show("TasksMax"), "23");
    let pids = cgroup::setting(c.pid(), "pids", "pids.max", "pids.max");
    assert_eq!(pids.as_deref(), Some("23"));
    c.exec(&["cat", "/proc/self/cgroup"]).ok().shows(&scope(&c));
    c.delete_force().ok();
    assert_eq!(show("ActiveState"), "inactive");
    c.assert_nothing_left();
}

#[test]
fn a_user_without_systemd_is_told_so() {
    kiln_only!("its words");
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "true");
    user.own(&bundle);
    let mut wrapper = user.plain();
    let nowhere = bundle.home().display().to_string();
    wrapper.extend([format!("XDG_RUNTIME_DIR={nowhere}"), "DBUS_SESSION_BUS_ADDRESS=".into()]);
    let c = bundle.container().under(&wrapper);
    let bus = format!("{nowhere}/bus: no such file");
    with_systemd(&c, "run", &[]).fails(&["systemd: connect as a user: ", &bus]);
    c.assert_nothing_left();
}
