//! What crun has and runc has not: `--config`, `--regex`, `spec --file`, its annotations.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsRawFd;

use kiln_integration::agent::Agent;
use kiln_integration::console::ConsoleSocket;
use kiln_integration::{Bundle, Cli, Container, Runtime, Value, binary, json, kiln_only, skip};

/// Skips the calling test for runc.
macro_rules! not_runc {
    () => {
        if binary::runtime() == Runtime::Runc {
            skip!("runc has no such thing");
        }
    };
}

#[test]
fn another_file_may_be_the_config() {
    not_runc!();
    let c = Bundle::sh("exit 3").container();
    let elsewhere = c.bundle.scratch().join("other.json");
    let mut config = c.bundle.config.clone();
    config["process"]["args"] = json!(["sh", "-c", "exit 4"]);
    fs::write(&elsewhere, config.to_string()).unwrap();
    c.run_cli(&["--config", elsewhere.to_str().unwrap()]).output().exits(4);
    c.run_cli(&["-f", elsewhere.to_str().unwrap()]).output().exits(4);
    // Relative to the working directory, not to the bundle.
    c.run_cli(&["--config=other.json"]).dir(c.bundle.scratch()).output().exits(4);
    c.run().exits(3);
    c.run_cli(&["--config", "/no/such.json"]).output().fails(&["/no/such.json"]);
    c.create_cli(&["--config", elsewhere.to_str().unwrap()]).output().ok();
}

#[test]
fn spec_writes_another_file() {
    not_runc!();
    let dir = tempfile::tempdir().unwrap();
    Cli::new(["spec", "-b"]).arg(dir.path()).args(&["-f", "x.json"]).output().ok();
    let config: Value =
        serde_json::from_slice(&fs::read(dir.path().join("x.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert!(!dir.path().join("config.json").exists());
}

/// Three containers in one root, whose ids begin differently.
fn three() -> [Container; 3] {
    let first = Bundle::new().args(&["sleep", "100"]).container();
    let [second, third] =
        [(); 2].map(|()| Bundle::new().args(&["sleep", "100"]).container().in_root_of(&first));
    // The owner of the root is dropped last.
    let mut all = [third, second, first];
    for (container, name) in all.iter_mut().zip(["web-a", "web-2", "db"]) {
        container.id = format!("{name}.{}", container.id);
        container.detach().ok();
    }
    all
}

fn statuses(containers: &[Container]) -> Vec<String> {
    containers.iter().map(Container::status).collect()
}

#[test]
fn kill_and_delete_all_that_match() {
    not_runc!();
    let all = three();
    let web = r"^(web|none)-[0-9]+\.";
    all[0].cli(&["kill", "--regex", web, "KILL"]).output().ok();
    all[1].await_status("stopped");
    assert_eq!(statuses(&all), ["running", "stopped", "running"]);
    all[0].cli(&["delete", "--regex", web]).output().ok();
    all[1].on_id("state", &[]).fails(&[]);
    all[0].cli(&["delete", "--force", "-r", "kt"]).output().ok();
    all.iter().for_each(Container::assert_nothing_left);
}

#[test]
fn what_fails_for_one_does_not_stop_the_others() {
    kiln_only!("crun warns and succeeds");
    let all = three();
    all[2].kill("KILL").ok();
    all[2].await_status("stopped");
    let outcome = all[0].cli(&["delete", "--regex", "[[:alpha:]]"]).output();
    let outcome = outcome.fails(&[&all[0].id, &all[1].id, "container is running"]);
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome}");
    all[2].on_id("state", &[]).fails(&["does not exist"]);
    all[0].cli(&["kill", "-r", "(", "KILL"]).output().fails(&["--regex \"(\""]);
    all[0].cli(&["kill", "-r", "no-such-thing", "KILL"]).output().ok();
    assert_eq!(statuses(&all[..2]), ["running", "running"]);
}

/// Classic BPF in base64 for x86_64: everything is allowed but mkdir (83) and mkdirat (258), which
/// give ENOSPC.
const NO_MKDIR: &str = "IAAAAAAAAAAVAAEAUwAAABUAAAECAQAABgAAABwABQAGAAAAAAD/fw==";

#[test]
fn a_filter_may_come_compiled() {
    not_runc!();
    let bundle = Bundle::sh("mkdir /x; echo still here").writable();
    let bundle = bundle.annotation("run.oci.seccomp_bpf_data", NO_MKDIR);
    let outcome = bundle.container().run().ok().prints("still here\n");
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
    let bundle = Bundle::new().args(&["sleep", "100"]).writable();
    let c = bundle.annotation("run.oci.seccomp_bpf_data", NO_MKDIR).container();
    c.detach().ok();
    c.on_id("exec", &["mkdir", "/x"]).fails(&["No space left on device"]);
}

#[test]
fn unknown_system_calls_may_be_an_error() {
    not_runc!();
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["getpid", "no_such_call"], "action": "SCMP_ACT_ERRNO" }],
    });
    let with = |value| {
        let bundle = Bundle::new().set("/linux/seccomp", seccomp.clone());
        bundle.annotation("run.oci.seccomp_fail_unknown_syscall", value).container()
    };
    with("0").run().ok();
    with("1").run().fails(&["no_such_call"]);
}

#[test]
fn hooks_may_write_to_files() {
    not_runc!();
    let mut bundle = Bundle::new();
    let (out, err) = (bundle.scratch().join("out"), bundle.scratch().join("err"));
    fs::write(&out, "before\n").unwrap();
    // The container's root has its own shell.
    for stage in ["createRuntime", "createContainer", "startContainer", "poststop"] {
        let script = format!("echo {stage}; echo {stage} failed >&2");
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        bundle = bundle.push(&format!("/hooks/{stage}"), hook);
    }
    let bundle = bundle.annotation("run.oci.hooks.stdout", out.to_str().unwrap());
    let c = bundle.annotation("run.oci.hooks.stderr", err.to_str().unwrap()).container();
    c.run().ok();
    let text = fs::read_to_string(out).unwrap();
    assert_eq!(text, "before\ncreateRuntime\ncreateContainer\nstartContainer\npoststop\n");
    assert_eq!(fs::read_to_string(err).unwrap().lines().count(), 4);
}

/// Podman's `--group-add keep-groups`.
#[test]
fn the_callers_groups_may_be_kept() {
    not_runc!();
    let with = |value| {
        let bundle = Bundle::sh("id -G").set("/process/user/additionalGids", json!([7]));
        bundle.annotation("run.oci.keep_original_groups", value).container()
    };
    let groups = |value| {
        let c = with(value);
        let caller = ["setpriv", "--groups", "1234,5678"];
        let outcome = c.run_cli(&[]).under(&caller).output().ok();
        let mut groups: Vec<u32> =
            outcome.stdout.split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        groups.sort_unstable();
        groups
    };
    assert_eq!(groups("1"), [0, 1234, 5678]);
    assert_eq!(groups("0"), [0, 7]);
}

#[test]
fn a_socket_may_get_the_pidfd() {
    kiln_only!("crun 1.8 has it not yet");
    let bundle = Bundle::new().args(&["sleep", "100"]);
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = bundle.annotation("run.oci.pidfd_receiver", socket.path()).container();
    c.create().ok();
    // The same way as a terminal comes.
    let pidfd = socket.accept().master;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim();
    assert_eq!(pid, c.pid().to_string());
    let nobody = Bundle::new().annotation("run.oci.pidfd_receiver", "/no/such.sock").container();
    nobody.create().fails(&["/no/such.sock"]);
    nobody.assert_nothing_left();
}

#[test]
fn an_agent_may_be_named_by_annotation() {
    kiln_only!("crun sends its own format");
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
    let bundle = Bundle::sh("mkdir /x").writable().set("/linux/seccomp", seccomp);
    let agent = Agent::new(&bundle.scratch(), &[("mkdir", 28), ("mkdirat", 28)]);
    let socket = bundle.scratch().join("agent.sock");
    let c = bundle.annotation("run.oci.seccomp.receiver", socket.to_str().unwrap()).container();
    let outcome = c.run().exits(1);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
    assert_eq!(agent.next_state().0["state"]["id"], json!(c.id));
}

#[test]
fn annotations_that_are_not_supported_are_named() {
    kiln_only!("crun has them");
    for (name, value) in [
        ("run.oci.delegate-cgroup", "x"),
        ("run.oci.mount_context_type", "rootcontext"),
        ("run.oci.seccomp.plugins", "plugin.so"),
        ("run.oci.seccomp_bpf_data", "?"),
        ("run.oci.systemd.force_cgroup_v1", "/sys/fs/cgroup"),
        ("run.oci.timens_offset", "monotonic 1 0"),
    ] {
        let c = Bundle::new().annotation(name, value).container();
        c.run().fails(&[&format!("annotation {name}: ")]);
        c.assert_nothing_left();
    }
    // Of another version's crun: not for us.
    let outcome = Bundle::new().annotation("run.oci.later", "x").container().run().ok();
    assert!(outcome.stderr.contains("run.oci.later"), "{outcome}");
}
