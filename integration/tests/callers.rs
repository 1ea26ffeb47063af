//! What callers of runc take for granted, word for word as they ask: containerd's shim (go-runc),
//! conmon, CRI-O, Podman. tests/podman.rs, docker.rs and containerd_runc_shim.rs have the programs.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::console::ConsoleSocket;
use kiln_integration::{
    Bundle, Cli, Container, Outcome, Value, cgroup, eventually, json, kiln_only, needs_wasm, proc,
    reap,
};

const SLEEP: [&str; 2] = ["sleep", "100"];

/// A command as go-runc writes it.
fn go_runc(c: &Container, words: &[&str]) -> Cli {
    let log = c.bundle.scratch().join("log.json");
    let cli = Cli::new(["--root"]).arg(c.root()).arg("--log").arg(log);
    cli.args(&["--log-format", "json"]).args(words)
}

/// The entries of its log; every line must be one.
#[track_caller]
fn entries(c: &Container) -> Vec<Value> {
    let text = fs::read_to_string(c.bundle.scratch().join("log.json")).unwrap_or_default();
    let entry = |line: &str| -> Value {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"));
        let fields = ["level", "msg", "time"].map(|name| entry[name].is_string());
        assert_eq!(fields, [true; 3], "{entry}");
        entry
    };
    text.lines().map(entry).collect()
}

fn pid_in(c: &Container, name: &str) -> i32 {
    fs::read_to_string(c.bundle.scratch().join(name)).unwrap().parse().unwrap()
}

#[test]
fn containerds_shim() {
    let bundle = Bundle::sh("read line; echo got $line").set("/process/terminal", json!(true));
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = bundle.container();
    let (home, pid_file) = (c.bundle.path(), c.bundle.scratch().join("init.pid"));
    let (home, pid_file) = (home.to_str().unwrap(), pid_file.to_str().unwrap());
    let create = ["create", "--bundle", home, "--pid-file", pid_file, "--console-socket"];
    // It dies with the thread that has started it; init does not.
    let cli = go_runc(&c, &create).args(&[socket.path(), &c.id]);
    let cli = cli.under(&["setpriv", "--pdeathsig", "KILL"]);
    std::thread::scope(|scope| scope.spawn(|| cli.output().ok()).join()).unwrap();
    let mut terminal = socket.accept();
    let pid = pid_in(&c, "init.pid");
    let parent = proc::status_field(pid, "PPid").unwrap();
    assert_eq!(parent, std::process::id().to_string());
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    go_runc(&c, &["start", &c.id]).output().ok();
    // The shim has looked before.
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(), cgroups);
    let process = c.bundle.scratch().join("process.json");
    let spec =
        json!({ "args": SLEEP, "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    fs::write(&process, spec.to_string()).unwrap();
    let exec_file = c.bundle.scratch().join("e1.pid");
    let exec = ["exec", "--process", process.to_str().unwrap(), "--detach", "--pid-file"];
    go_runc(&c, &exec).arg(&exec_file).arg(&c.id).output().ok();
    let exec = pid_in(&c, "e1.pid");
    assert_eq!(fs::read_to_string(format!("/proc/{exec}/cgroup")).unwrap(), cgroups);
    let listed = go_runc(&c, &["ps", "--format", "json", &c.id]).output().ok().stdout;
    let mut listed: Vec<i32> = serde_json::from_str(&listed).unwrap();
    listed.sort_unstable();
    let mut both = [pid, exec];
    both.sort_unstable();
    assert_eq!(listed, both);
    let resources = json!({ "pids": { "limit": 20 } }).to_string();
    go_runc(&c, &["update", "--resources=-", &c.id]).stdin(&resources).output().ok();
    go_runc(&c, &["pause", &c.id]).output().ok();
    go_runc(&c, &["resume", &c.id]).output().ok();
    let state: Value =
        serde_json::from_str(&go_runc(&c, &["state", &c.id]).output().ok().stdout).unwrap();
    assert_eq!((&state["id"], &state["pid"]), (&json!(c.id), &json!(pid)));
    terminal.send("it\n");
    assert!(terminal.read_until("got it").contains("got it"));
    assert_eq!(reap(pid), 0);
    let not_running = ["container not running", "no such process"];
    go_runc(&c, &["kill", &c.id, "9"]).output().fails_any(&not_running);
    go_runc(&c, &["kill", "--all", &c.id, "9"]).output();
    go_runc(&c, &["delete", &c.id]).output().ok();
    go_runc(&c, &["delete", &c.id]).output().fails(&["does not exist"]);
    go_runc(&c, &["delete", "--force", &c.id]).output().ok();
    let errors = entries(&c).into_iter().filter(|entry| entry["level"] == "error");
    let errors: Vec<String> = errors.map(|entry| entry["msg"].to_string()).collect();
    let first = errors[0].to_lowercase();
    assert!(not_running.iter().any(|text| first.contains(text)), "{errors:?}");
    assert!(errors.last().unwrap().contains("does not exist"), "{errors:?}");
}

/// `create` of the bundle fails. Warnings and errors, whoever they are of, are an entry a line, and
/// the last error is what went wrong.
#[track_caller]
fn refused(bundle: Bundle, part: &str) {
    let c = bundle.annotation("run.oci.unheard-of", "x").container();
    let home = c.bundle.path();
    let create = ["create", "--bundle", home.to_str().unwrap(), &c.id];
    let outcome: Outcome = go_runc(&c, &create).output().fails(&[part]);
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
    let entries = entries(&c);
    assert_eq!(entries[0]["level"], "warning", "{entries:?}");
    let last = entries.last().unwrap();
    assert_eq!(last["level"], "error");
    let said = last["msg"].as_str().unwrap();
    assert_eq!(outcome.stderr, format!("kiln: {said}\n"));
}

#[test]
fn every_line_of_the_log_is_an_entry() {
    kiln_only!("crun's errors of the command line are not in it");
    refused(Bundle::new().args(&["no-such\nprogram"]), "executable file not found in");
    refused(Bundle::new().bind("/no/such", "/mnt", &["bind"]), "no such file or directory");
    refused(Bundle::new().set("/process/cwd", json!("/bin/busybox")), "not a directory");
    let hook = json!({ "path": "/bin/false" });
    refused(Bundle::new().push("/hooks/createRuntime", hook), "hook");
}

/// The executable that has it takes over the log.
#[test]
fn so_is_every_line_of_the_engines() {
    needs_wasm!();
    refused(Bundle::wasm("hello", &[]).args(&["/no-such.wasm"]), "no such file or directory");
}

#[test]
fn conmon_and_cri_o() {
    let c = Bundle::new().args(&SLEEP).container();
    c.detach().ok();
    let process = c.bundle.scratch().join("process.json");
    let spec =
        json!({ "args": SLEEP, "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    fs::write(&process, spec.to_string()).unwrap();
    let pid_file = c.bundle.scratch().join("exec.pid");
    let exec = ["exec", "--pid-file", pid_file.to_str().unwrap(), "--process"];
    c.cli(&exec).arg(&process).args(&["--detach", &c.id]).output().ok();
    let exec = pid_in(&c, "exec.pid");
    assert!(cgroup::members(c.pid()).contains(&exec));
    let resources = json!({ "pids": { "limit": 20 } }).to_string();
    c.cli(&["update", "--resources", "-", &c.id]).stdin(&resources).output().ok();
    let limit = cgroup::setting(c.pid(), "pids", "pids.max", "pids.max");
    assert!(limit.is_none_or(|limit| limit == "20"));
    c.cli(&["kill", "-a", &c.id, "KILL"]).output().ok();
    c.await_status("stopped");
    eventually("all to end", || !proc::alive(exec));
    c.delete().ok();
    // As it is after a container that was ended in between: a created one.
    c.create().ok();
    c.cli(&["kill", &c.id, "KILL"]).output().ok();
    c.await_status("stopped");
}

/// Asked without an environment, and nothing may come with the answer.
#[test]
fn cri_asks_for_features() {
    kiln_only!("older runc has others");
    let outcome = Cli::new(["features"]).under(&["env", "-i"]).output().ok();
    assert_eq!(outcome.stderr, "");
    let features: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(features.pointer("/linux/mountExtensions/idmap/enabled"), Some(&json!(true)));
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&json!("user")));
    let options = features["mountOptions"].as_array().unwrap();
    for option in ["rro", "idmap", "ridmap", "rbind"] {
        assert!(options.contains(&json!(option)), "{option}");
    }
}

/// By these two Podman finds out what its runtime can do.
#[test]
fn podman_asks_about_checkpoints() {
    kiln_only!("crun has other words");
    Cli::new(["checkpoint", "--help"]).output().ok();
    let option = ["restore", "--lsm-mount-context"];
    Cli::new(option).output().fails(&["flag needs an argument"]);
}
