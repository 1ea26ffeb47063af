//! create, start, state, kill and delete: the statuses of runtime-spec's
//! runtime.md, and what is an error in which of them.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, Cli, kiln_only, proc, reap};
use serde_json::json;

const SLEEP: &[&str] = &["sleep", "100"];

#[test]
fn walks_through_all_statuses() {
    let c = Bundle::new().args(SLEEP).container();
    c.create().ok().prints("");
    assert_eq!(c.status(), "created");
    let pid = c.pid();
    assert!(proc::alive(pid));
    c.start().ok().prints("");
    assert_eq!(c.status(), "running");
    assert_eq!(c.pid(), pid);
    c.kill("KILL").ok().prints("");
    assert_eq!(reap(pid), 137);
    c.await_status("stopped");
    c.delete().ok().prints("");
    c.assert_nothing_left();
}

#[test]
fn created_does_not_run_the_program() {
    let c = Bundle::sh("echo ran > /ran").writable().container();
    c.create().ok();
    assert!(!c.bundle.rootfs().join("ran").exists());
    let pid = c.pid();
    c.start().ok();
    assert_eq!(reap(pid), 0);
    assert!(c.bundle.rootfs().join("ran").exists());
}

#[test]
fn state_has_the_specs_fields() {
    let c = Bundle::new().args(SLEEP).set("/annotations/org.example~1key", json!("value"));
    let c = c.set("/annotations/plain", json!("x")).container();
    c.create().ok();
    let state = c.state();
    assert_eq!(state["id"], json!(c.id));
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], json!(c.bundle.path()));
    assert_eq!(state["rootfs"], json!(c.bundle.rootfs()));
    assert_eq!(state["annotations"]["plain"], "x");
    assert!(state["pid"].as_i64().unwrap() > 1);
    assert!(state["owner"].is_string());
    let version = state["ociVersion"].as_str().unwrap();
    assert!(version.starts_with("1."), "{version}");
    let created = state["created"].as_str().unwrap();
    let shape = created.len() >= 20 && created.as_bytes()[10] == b'T' && created.starts_with("20");
    assert!(shape && (created.ends_with('Z') || created.contains('+')), "{created}");
}

#[test]
fn created_time_does_not_change() {
    let c = Bundle::new().args(SLEEP).container();
    c.create().ok();
    let created = c.state()["created"].clone();
    c.start().ok();
    assert_eq!(c.state()["created"], created);
}

#[test]
fn state_of_a_stopped_container_has_pid_0() {
    let c = Bundle::new().container();
    c.detach().ok();
    c.await_status("stopped");
    assert_eq!(c.state()["pid"], 0);
}

#[test]
fn start_twice_is_an_error() {
    let c = Bundle::new().args(SLEEP).container();
    c.create().ok();
    c.start().ok();
    c.start().fails_any(&["already running", "cannot start", "not in created state"]);
    assert_eq!(c.status(), "running");
}

#[test]
fn start_of_a_stopped_container_is_an_error() {
    let c = Bundle::new().container();
    c.detach().ok();
    c.await_status("stopped");
    c.start().fails_any(&["stopped", "cannot start", "not in created state"]);
}

#[test]
fn start_of_a_container_that_was_killed_before_is_an_error() {
    let c = Bundle::new().container();
    c.create().ok();
    let pid = c.pid();
    c.kill("KILL").ok();
    assert_eq!(reap(pid), 137);
    c.start().fails(&[]);
    assert_eq!(c.status(), "stopped");
}

#[test]
fn delete_of_a_running_container_is_an_error() {
    let c = Bundle::new().args(SLEEP).container();
    c.detach().ok();
    c.delete().fails_any(&["running", "not stopped"]);
    assert_eq!(c.status(), "running");
}

/// runtime.md#delete wants an error; runc, crun and youki delete it, and callers rely on that.
#[test]
fn delete_ends_a_created_container() {
    let c = Bundle::new().args(SLEEP).container();
    c.create().ok();
    let pid = c.pid();
    c.delete().ok();
    assert!(!proc::alive(pid));
    c.assert_nothing_left();
}

#[test]
fn delete_force_ends_a_running_container() {
    let c = Bundle::new().args(SLEEP).container();
    c.detach().ok();
    let pid = c.pid();
    c.delete_force().ok();
    assert!(!proc::alive(pid));
    c.assert_nothing_left();
}

#[test]
fn delete_force_ends_a_created_container() {
    let c = Bundle::new().args(SLEEP).container();
    c.create().ok();
    let pid = c.pid();
    c.delete_force().ok();
    assert!(!proc::alive(pid));
    c.assert_nothing_left();
}

#[test]
fn delete_force_of_an_unknown_id_is_no_error() {
    Bundle::new().container().delete_force().ok();
}

#[test]
fn delete_twice_is_an_error() {
    let c = Bundle::new().container();
    c.detach().ok();
    c.await_status("stopped");
    c.delete().ok();
    c.delete().fails(&["does not exist"]);
}

#[test]
fn kill_of_a_stopped_container_is_an_error() {
    let c = Bundle::new().container();
    c.detach().ok();
    c.await_status("stopped");
    c.kill("KILL").fails_any(&["not running", "stopped"]);
}

#[test]
fn kill_of_a_created_container_ends_it() {
    let c = Bundle::new().args(SLEEP).container();
    c.create().ok();
    let pid = c.pid();
    c.kill("9").ok();
    assert_eq!(reap(pid), 137);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
}

#[test]
fn unknown_ids_are_errors() {
    let c = Bundle::new().container();
    for operation in ["state", "start", "kill", "delete"] {
        c.on_id(operation, &[]).fails(&["does not exist"]);
    }
}

#[test]
fn an_error_names_the_id() {
    kiln_only!("errors do not name the container");
    let c = Bundle::new().container();
    for operation in ["state", "start", "kill", "delete"] {
        c.on_id(operation, &[]).fails(&[&c.id]);
    }
}

#[test]
fn create_of_an_existing_id_is_an_error() {
    let c = Bundle::new().args(SLEEP).container();
    c.create().ok();
    let before = c.state();
    c.create().fails(&["exist"]);
    c.run().fails(&["exist"]);
    assert_eq!(c.state(), before, "the first one is untouched");
    c.start().ok();
    assert_eq!(c.status(), "running");
}

#[test]
fn an_id_can_be_used_again() {
    let c = Bundle::new().container();
    for _ in 0..3 {
        c.create().ok();
        c.start().ok();
        c.await_status("stopped");
        c.delete().ok();
    }
}

#[test]
fn signals_by_name_and_number() {
    for (signal, number) in [("TERM", 15), ("SIGUSR1", 10), ("12", 12), ("hup", 1)] {
        let c = Bundle::sh(
            "for s in 1 2 10 12 15; do trap \"exit $((s + 50))\" $s; done; \
            echo up > /up; while :; do sleep 0.01; done",
        );
        let c = c.writable().container();
        c.detach().ok();
        c.await_file("/up");
        let pid = c.pid();
        c.kill(signal).ok();
        assert_eq!(reap(pid), number + 50, "kill {signal}");
    }
}

#[test]
fn kill_without_a_signal_sends_term() {
    let c = Bundle::sh("trap 'exit 66' TERM; echo up > /up; while :; do sleep 0.01; done");
    let c = c.writable().container();
    c.detach().ok();
    c.await_file("/up");
    let pid = c.pid();
    c.on_id("kill", &[]).ok();
    assert_eq!(reap(pid), 66);
}

#[test]
fn signal_0_probes_only() {
    let c = Bundle::new().args(SLEEP).container();
    c.detach().ok();
    c.kill("0").ok();
    assert_eq!(c.status(), "running");
}

#[test]
fn unknown_signals_are_errors() {
    let c = Bundle::new().args(SLEEP).container();
    c.detach().ok();
    c.kill("FOO").fails(&["FOO"]);
    c.kill("SIGSIG").fails(&["SIGSIG"]);
    c.kill("99").fails(&[]);
    c.kill("-1").fails(&[]);
    assert_eq!(c.status(), "running");
}

/// Without a pid namespace the kernel does not kill the rest with the init.
#[test]
fn kill_all_reaches_every_process() {
    let c = Bundle::sh("sleep 101 & sleep 102 & sleep 103 & echo up > /up; wait").writable();
    let c = c.without_namespace("pid").container();
    c.detach().ok();
    c.await_file("/up");
    let init = c.pid();
    let all = kiln_integration::cgroup::members(init);
    assert_eq!(all.len(), 4, "{all:?}");
    c.cli(&["kill", "--all", &c.id, "KILL"]).output().ok();
    kiln_integration::eventually("all to end", || !all.iter().any(|&pid| proc::alive(pid)));
}

#[test]
fn sigkill_without_a_pid_namespace_ends_every_process() {
    kiln_only!("crun and older runc leave the others");
    let c = Bundle::sh("sleep 101 & sleep 102 & echo up > /up; wait").writable();
    let c = c.without_namespace("pid").container();
    c.detach().ok();
    c.await_file("/up");
    let all = kiln_integration::cgroup::members(c.pid());
    c.kill("KILL").ok();
    kiln_integration::eventually("all to end", || !all.iter().any(|&pid| proc::alive(pid)));
}

/// https://github.com/opencontainers/runc/issues/4047
#[test]
fn sigkill_without_a_pid_namespace_ends_what_init_has_left() {
    kiln_only!("crun and older runc leave them");
    let c = Bundle::sh("sleep 101 & sleep 102 & echo up > /up; wait").writable();
    let c = c.without_namespace("pid").container();
    c.detach().ok();
    c.await_file("/up");
    let all = kiln_integration::cgroup::members(c.pid());
    let init = rustix::process::Pid::from_raw(c.pid()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    c.await_status("stopped");
    assert!(all.iter().any(|&pid| proc::alive(pid)));
    c.kill("TERM").fails(&["container not running"]);
    c.kill("KILL").ok();
    kiln_integration::eventually("all to end", || !all.iter().any(|&pid| proc::alive(pid)));
    kiln_integration::eventually("nothing to kill", || !c.kill("KILL").status.success());
}

#[test]
fn kill_all_of_a_stopped_container_is_no_error() {
    let c = Bundle::new().container();
    c.detach().ok();
    c.await_status("stopped");
    c.cli(&["kill", "--all", &c.id, "KILL"]).output().ok();
}

#[test]
fn delete_force_without_a_pid_namespace_ends_every_process() {
    let c = Bundle::sh("sleep 101 & sleep 102 & sleep 103 & echo up > /up; wait").writable();
    let c = c.without_namespace("pid").container();
    c.detach().ok();
    c.await_file("/up");
    let all = kiln_integration::cgroup::members(c.pid());
    c.delete_force().ok();
    assert!(!all.iter().any(|&pid| proc::alive(pid)));
    c.assert_nothing_left();
}

#[test]
fn the_bundle_defaults_to_the_working_directory() {
    let c = Bundle::sh("exit 3").container();
    c.cli(&["run", &c.id]).dir(c.bundle.path()).output().exits(3);
}

#[test]
fn a_relative_bundle_is_stored_absolute() {
    let c = Bundle::new().args(SLEEP).container();
    c.cli(&["create", "-b", "bundle", &c.id]).dir(c.bundle.home()).output().ok();
    assert_eq!(c.state()["bundle"], json!(c.bundle.path()));
}

#[test]
fn config_may_change_after_create() {
    let mut c = Bundle::sh("exit 5").container();
    c.create().ok();
    let pid = c.pid();
    c.bundle.config["process"]["args"] = json!(["false"]);
    c.bundle.write();
    c.start().ok();
    assert_eq!(reap(pid), 5, "runtime-spec: changes to config.json have no effect");
}

#[test]
fn missing_and_surplus_arguments_are_errors() {
    for words in [vec!["create"], vec!["create", "a", "b"], vec!["state"], vec!["start"]] {
        let outcome = Cli::new(&words).output();
        assert!(!outcome.status.success(), "{outcome}");
        assert!(!outcome.stderr.is_empty() && !outcome.stderr.contains("panicked"), "{outcome}");
    }
    for words in [vec!["--no-such-flag", "list"], vec!["list", "--no-such-flag"]] {
        Cli::new(&words).output().fails(&["no-such-flag"]);
    }
}
