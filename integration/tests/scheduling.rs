//! process.scheduler, process.ioPriority and linux.personality.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, Value, command, json, kiln_only, refused, skip};

const WHY: &str = "not in spec 1.0.2";

fn scheduler(script: &str, scheduler: Value) -> Bundle {
    Bundle::sh(script).set("/process/scheduler", scheduler)
}

#[test]
fn every_policy_is_set() {
    kiln_only!("{WHY}");
    // Nice value, real-time priority and policy.
    let show = "awk '{print $19, $40, $41}' /proc/self/stat";
    for (section, shown) in [
        (json!({ "policy": "SCHED_OTHER", "nice": 7 }), "7 0 0\n"),
        (json!({ "policy": "SCHED_BATCH", "nice": 5 }), "5 0 3\n"),
    ] {
        scheduler(show, section).container().run().ok().prints(shown);
    }
    // Real-time priority and policy: the nice value is the caller's, and means nothing.
    let show = "awk '{print $40, $41}' /proc/self/stat";
    scheduler(show, json!({ "policy": "SCHED_IDLE" })).container().run().ok().prints("0 5\n");
    // A cgroup v1 may have no real-time budget for it; then the error names the field.
    for (policy, number) in [("SCHED_FIFO", 1), ("SCHED_RR", 2)] {
        let outcome = scheduler(show, json!({ "policy": policy, "priority": 9 })).container().run();
        match outcome.status.success() {
            true => drop(outcome.prints(&format!("9 {number}\n"))),
            false => drop(outcome.fails(&["process.scheduler"])),
        }
    }
}

#[test]
fn deadline_and_flags_reach_the_kernel() {
    kiln_only!("{WHY}");
    if !command::exists("strace") {
        skip!("no strace");
    }
    let traced = |section: Value| {
        let c = scheduler("true", section).container();
        let trace = c.bundle.home().join("trace");
        let wrapper = ["strace", "-f", "-qq", "-e", "trace=sched_setattr", "-o"];
        let wrapper: Vec<_> = wrapper.into_iter().chain(trace.to_str()).collect();
        c.run_cli(&[]).under(&wrapper).output();
        std::fs::read_to_string(&trace).unwrap()
    };
    let deadline = traced(json!({
        "policy": "SCHED_DEADLINE", "runtime": 42000, "deadline": 1000000, "period": 2000000,
        "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"],
    }));
    for part in [
        "SCHED_DEADLINE",
        "SCHED_FLAG_RESET_ON_FORK|SCHED_FLAG_RECLAIM|SCHED_FLAG_DL_OVERRUN",
        "sched_runtime=42000, sched_deadline=1000000, sched_period=2000000",
    ] {
        assert!(deadline.contains(part), "no {part:?} in {deadline}");
    }
    let keep = traced(json!({
        "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_KEEP_POLICY", "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MAX"],
    }));
    let part = "SCHED_FLAG_KEEP_POLICY|SCHED_FLAG_KEEP_PARAMS|SCHED_FLAG_UTIL_CLAMP_MIN|\
        SCHED_FLAG_UTIL_CLAMP_MAX";
    assert!(keep.contains(part), "no {part:?} in {keep}");
}

#[test]
fn wrong_schedulers_are_named() {
    kiln_only!("{WHY}");
    let wrong = |section| scheduler("true", section);
    refused(wrong(json!({ "policy": "SCHED_ISO" })), &["process.scheduler.policy"]);
    refused(wrong(json!({ "policy": "SCHED_OTHER", "nice": 20 })), &["process.scheduler.nice"]);
    refused(wrong(json!({ "policy": "SCHED_RR" })), &["process.scheduler.priority"]);
    refused(wrong(json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_X"] })), &["FLAG_X"]);
}

#[test]
fn io_priorities_are_set() {
    kiln_only!("{WHY}");
    if !command::exists("ionice") {
        skip!("no ionice");
    }
    for (class, shown) in [
        ("IOPRIO_CLASS_RT", "realtime: prio 4"),
        ("IOPRIO_CLASS_BE", "best-effort: prio 4"),
        ("IOPRIO_CLASS_IDLE", "idle"),
    ] {
        let bundle = Bundle::new().args(&["sleep", "60"]);
        let priority = json!({ "class": class, "priority": 4 });
        let c = bundle.set("/process/ioPriority", priority).container();
        c.detach().ok();
        let pid = c.pid().to_string();
        let ionice = kiln_integration::Cli::new(["-p", &pid]).binary("ionice");
        assert_eq!(ionice.output().ok().stdout.trim(), shown);
    }
    let wrong = json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 });
    refused(Bundle::new().set("/process/ioPriority", wrong), &["process.ioPriority.priority"]);
}

#[test]
fn personalities_are_set() {
    let personality = |domain: &str| {
        let bundle = Bundle::sh("uname -m; cat /proc/self/personality");
        bundle.set("/linux/personality", json!({ "domain": domain }))
    };
    personality("LINUX32").container().run().ok().prints("i686\n00000008\n");
    personality("LINUX").container().run().ok().prints("x86_64\n00000000\n");
    refused(personality("SVR4"), &["SVR4"]);
}

#[test]
fn personality_flags_are_a_warning() {
    kiln_only!("runc 1.1 ignores them");
    let section = json!({ "domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"] });
    let c = Bundle::sh("cat /proc/self/personality").set("/linux/personality", section);
    let outcome = c.container().run().ok().prints("00000008\n");
    assert!(outcome.stderr.contains("linux.personality.flags"), "{outcome}");
}
