//! seccomp: SCMP_ACT_NOTIFY, listenerPath and listenerMetadata, and the flags of
//! seccomp(2).

#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::net::UnixListener;

use kiln_integration::agent::Agent;
use kiln_integration::{Bundle, Value, command, json, kiln_only, skip};

const ENOSPC: i32 = 28;

/// The bundle with these calls notified of to a socket beside it.
fn notified(bundle: Bundle, names: &[&str]) -> Bundle {
    let socket = bundle.scratch().join("agent.sock");
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": socket, "listenerMetadata": "PLACE=here",
        "syscalls": [{ "names": names, "action": "SCMP_ACT_NOTIFY" }],
    });
    bundle.set("/linux/seccomp", seccomp)
}

fn mkdir() -> Bundle {
    notified(Bundle::sh("mkdir /tmp/x"), &["mkdir", "mkdirat"]).writable()
}

#[test]
fn the_agent_answers_and_knows_of_whom() {
    let bundle = mkdir().annotation("com.example.key", "value");
    let agent = Agent::new(&bundle.scratch(), &[("mkdir", ENOSPC), ("mkdirat", ENOSPC)]);
    let c = bundle.container();
    let outcome = c.run().exits(1);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
    let (state, descriptors) = agent.next_state();
    assert_eq!(descriptors, 1);
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "PLACE=here");
    assert_eq!(state["state"]["id"], json!(c.id));
    assert_eq!(state["state"]["bundle"], json!(c.bundle.path()));
    assert_eq!(state["state"]["pid"], state["pid"]);
    assert_eq!(state["state"]["annotations"]["com.example.key"], "value");
    for version in [&state["ociVersion"], &state["state"]["ociVersion"]] {
        assert!(version.as_str().unwrap().starts_with("1."), "{state}");
    }
    // `sh` may make the directory in a child.
    assert!(agent.next_call("mkdir") >= state["pid"].as_u64().unwrap() as u32);
}

#[test]
fn created_and_started() {
    let bundle = notified(Bundle::new().args(&["mkdir", "/tmp/x"]), &["mkdir", "mkdirat"]);
    let agent = Agent::new(&bundle.scratch(), &[("mkdir", ENOSPC), ("mkdirat", ENOSPC)]);
    let c = bundle.writable().container();
    c.create().ok();
    let pid = c.pid();
    c.start().ok();
    let (state, _) = agent.next_state();
    assert_eq!(state["pid"], json!(pid));
    assert_eq!(agent.next_call("mkdir"), pid as u32);
    c.await_status("stopped");
    assert!(!c.bundle.rootfs().join("tmp/x").exists());
}

#[test]
fn exec_tells_the_agent_of_its_process() {
    let bundle = notified(Bundle::new().args(&["sleep", "60"]), &["mkdir", "mkdirat"]);
    let agent = Agent::new(&bundle.scratch(), &[("mkdir", ENOSPC), ("mkdirat", ENOSPC)]);
    let c = bundle.writable().container();
    c.detach().ok();
    let (init, _) = agent.next_state();
    let outcome = c.cli(&["exec", &c.id, "mkdir", "/tmp/x"]).output().exits(1);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
    let (state, descriptors) = agent.next_state();
    assert_eq!((descriptors, &state["fds"]), (1, &json!(["seccompFd"])));
    assert_eq!(state["state"]["pid"], init["pid"], "the container's");
    assert_eq!(state["state"]["status"], "running");
    assert_eq!(state["pid"], json!(agent.next_call("mkdir")));
    // Without an agent it does not begin.
    std::fs::remove_file(&agent.path).unwrap();
    c.cli(&["exec", &c.id, "touch", "/tmp/x"]).output().fails_with(255, &["listenerPath"]);
    assert!(!c.bundle.rootfs().join("tmp/x").exists());
}

#[test]
fn a_user_namespace_and_no_new_privileges() {
    for no_new_privileges in [true, false] {
        let bundle = mkdir().user_namespace(300_000);
        let bundle = bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        let agent = Agent::new(&bundle.scratch(), &[("mkdir", ENOSPC), ("mkdirat", ENOSPC)]);
        bundle.container().run().exits(1);
        agent.next_call("mkdir");
    }
}

#[test]
fn without_an_agent_nothing_is_made() {
    let c = mkdir().container();
    c.create().fails(&["listenerPath", "no such file or directory"]);
    c.run().fails(&["listenerPath", "no such file or directory"]);
    // A socket that nobody listens on any more.
    drop(UnixListener::bind(c.bundle.scratch().join("agent.sock")).unwrap());
    c.run().fails(&["listenerPath", "connection refused"]);
    c.on_id("state", &[]).fails(&["does not exist"]);
}

#[test]
fn an_agent_that_leaves_can_come_back() {
    kiln_only!("talks to the agent at create");
    let bundle = mkdir();
    drop(UnixListener::bind(bundle.scratch().join("agent.sock")).unwrap());
    let c = bundle.container();
    c.create().ok();
    c.start().fails(&["listenerPath", "connection refused"]);
    assert_eq!(c.status(), "created");
    let agent = Agent::new(&c.bundle.scratch(), &[("mkdir", ENOSPC)]);
    c.start().ok();
    agent.next_call("mkdir");
    c.await_status("stopped");
}

/// What the runtime itself may call between the filter and the workload: runc hangs on some.
#[test]
fn no_call_of_the_runtimes_waits_for_ever() {
    kiln_only!("refuses or hangs on some of these");
    let names = [
        "brk",
        "capset",
        "close",
        "close_range",
        "dup",
        "execve",
        "exit",
        "fcntl",
        "futex",
        "getpid",
        "ioctl",
        "madvise",
        "mmap",
        "munmap",
        "nanosleep",
        "prctl",
        "read",
        "recvmsg",
        "rt_sigprocmask",
        "sched_yield",
        "sendmsg",
        "sendto",
        "writev",
    ];
    for no_new_privileges in [true, false] {
        let bundle = notified(Bundle::new().args(&["true"]), &names);
        let agent = Agent::new(&bundle.scratch(), &[]);
        let bundle = bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        bundle.container().run().ok();
        agent.next_call("execve");
    }
}

#[test]
fn what_runc_refuses_is_refused() {
    let write = notified(Bundle::new(), &["write"]);
    let _agent = Agent::new(&write.scratch(), &[]);
    write.container().run().fails(&["SCMP_ACT_NOTIFY cannot be used for the write syscall"]);
    let all = notified(Bundle::new(), &["mkdir"]);
    let all = all.set("/linux/seccomp/defaultAction", json!("SCMP_ACT_NOTIFY"));
    all.container().run().fails(&["SCMP_ACT_NOTIFY cannot be used as default action"]);
    let nowhere = notified(Bundle::new(), &["mkdir"]).unset("/linux/seccomp/listenerPath");
    nowhere.container().run().fails(&["listenerPath"]);
}

#[test]
fn a_listener_path_without_notify_is_ignored() {
    let bundle = mkdir().set("/linux/seccomp/syscalls/0/action", json!("SCMP_ACT_ALLOW"));
    bundle.container().run().ok();
}

#[test]
fn flags_reach_the_kernel() {
    kiln_only!("loads its filter through libseccomp");
    if !command::exists("strace") {
        skip!("no strace");
    }
    let flags = |names: &[&str], notify: bool| {
        let bundle = mkdir().set("/linux/seccomp/flags", json!(names));
        let action = if notify { "SCMP_ACT_NOTIFY" } else { "SCMP_ACT_LOG" };
        let bundle = bundle.set("/linux/seccomp/syscalls/0/action", json!(action));
        let _agent = Agent::new(&bundle.scratch(), &[]);
        let c = bundle.container();
        let trace = c.bundle.home().join("trace");
        let wrapper = ["strace", "-f", "-qq", "-e", "trace=seccomp", "-o"];
        let wrapper = wrapper.iter().map(|word| word.to_string());
        let wrapper: Vec<_> = wrapper.chain([trace.to_str().unwrap().to_owned()]).collect();
        c.run_cli(&[]).under(&wrapper).output().ok();
        std::fs::read_to_string(trace).unwrap()
    };
    let log = flags(&["SECCOMP_FILTER_FLAG_LOG"], false);
    assert!(log.contains("SECCOMP_FILTER_FLAG_LOG, {"), "{log}");
    let allow = flags(&["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"], false);
    assert!(allow.contains("SECCOMP_FILTER_FLAG_SPEC_ALLOW, {"), "{allow}");
    let listed = features()["linux"]["seccomp"]["supportedFlags"].to_string();
    if listed.contains("WAIT_KILLABLE_RECV") {
        let recv = flags(&["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], true);
        // Debian 12's strace does not know its name.
        let known = ["NEW_LISTENER|SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "NEW_LISTENER|0x20"];
        assert!(known.iter().any(|text| recv.contains(text)), "{recv}");
    }
}

fn features() -> Value {
    serde_json::from_str(&kiln_integration::Cli::new(["features"]).output().ok().stdout).unwrap()
}

/// The filter is the container's, so the agent hears of an exec'd process, too.
#[test]
fn an_execd_process() {
    for no_new_privileges in [true, false] {
        let bundle = notified(Bundle::new().args(&["sleep", "1000"]), &["mkdir", "mkdirat"]);
        let agent = Agent::new(&bundle.scratch(), &[("mkdir", ENOSPC), ("mkdirat", ENOSPC)]);
        let bundle = bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        let c = bundle.writable().container();
        c.detach().ok();
        let (state, _) = agent.next_state();
        assert_eq!(state["pid"], json!(c.pid()));
        let outcome = c.exec(&["mkdir", "/tmp/x"]).exits(1);
        assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
        let (state, descriptors) = agent.next_state();
        assert_eq!((descriptors, &state["state"]["status"]), (1, &json!("running")));
        assert_eq!(state["state"]["pid"], json!(c.pid()));
        let pid = agent.next_call("mkdir");
        assert!(state["pid"] == json!(pid) && pid as i32 != c.pid(), "{state}");
    }
}
