//! Docker Engine with kiln as its runtime (`--add-runtime`).
//!
//! Debian 12's has no annotations for containers (`docker run --annotation` came with 24), so no
//! module runs in it; tests/containerd_runc_shim.rs has what lies below a newer one.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use kiln_integration::console::on_terminal;
use kiln_integration::docker::{BUSYBOX, Docker};
use kiln_integration::{
    Outcome, cgroup, command, eventually, fresh_id, json, kiln_only, needs_cgroup_library,
    patience, proc, within,
};

/// Ends with 3 on SIGTERM, and says so when it has begun.
const OBEDIENT: [&str; 3] =
    ["sh", "-c", "trap 'echo asked; exit 3' TERM; echo begun; while :; do sleep 0.02; done"];

#[track_caller]
fn await_log(docker: &Docker, name: &str, text: &str) {
    eventually(&format!("{text:?} in the log"), || {
        docker.docker(&["logs", name]).ok().stdout.contains(text)
    });
}

#[test]
fn it_is_kiln_that_runs_it() {
    kiln_only!("it is not");
    let docker = Docker::shared();
    docker.docker(&["info", "--format", "{{.DefaultRuntime}}"]).ok().prints("kiln\n");
    let format = "{{range .Server.Components}}{{.Name}} {{.Version}}\n{{end}}";
    docker.docker(&["version", "--format", format]).ok().shows("kiln 0.");
    let name = docker.detach(&[], &["sleep", "100"]);
    assert_eq!(docker.inspect(&name)["HostConfig"]["Runtime"], "kiln");
    docker.remove(&name);
}

#[test]
fn exit_statuses_arrive() {
    let docker = Docker::shared();
    docker.run(&[], &["true"]).ok();
    docker.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]).exits(7).prints("out\n");
    let name = docker.detach(&[], &["sh", "-c", "exit 5"]);
    docker.docker(&["wait", &name]).ok().prints("5\n");
    docker.remove(&name);
    let init = docker.run(&["--init"], &["sh", "-c", "cat /proc/1/comm; kill -9 $$"]);
    init.exits(137).prints("docker-init\n");
    let piped = docker.run_cli(&["--rm", "--interactive"], &[BUSYBOX, "cat"]);
    piped.stdin("through a pipe\n").output().ok().prints("through a pipe\n");
}

/// What the engine makes of the errors' texts: 127 for what is not there, 126 for what may not be
/// executed; both for `exec`.
#[test]
fn what_cannot_be_executed_is_126_or_127() {
    let docker = Docker::shared();
    let name = docker.detach(&[], &["sleep", "100"]);
    for (program, code, text) in [
        ("no-such", 127, "executable file not found in"),
        ("/no/such", 127, "no such file or directory"),
        ("/etc", 126, "permission denied"),
    ] {
        let check = |outcome: Outcome, code| {
            // `exec` has its error on stdout.
            let said = outcome.stdout.clone() + &outcome.stderr;
            assert!(said.contains(program) && said.contains(text), "{outcome}");
            outcome.exits(code);
        };
        check(docker.run(&[], &[program]), code);
        check(docker.docker(&["exec", &name, program]), 126);
    }
    docker.remove(&name);
    let folder = docker.home().join("folder");
    fs::create_dir_all(&folder).unwrap();
    let volume = format!("{}:/bin/busybox", folder.display());
    let outcome = docker.run(&["--volume", &volume], &["true"]);
    outcome
        .fails_with(125, &["not a directory", "Are you trying to mount a directory onto a file"]);
}

#[test]
fn a_container_from_run_to_rm() {
    let docker = Docker::shared();
    let name = docker.detach(&[], &OBEDIENT);
    await_log(&docker, &name, "begun");
    docker.docker(&["pause", &name]).ok();
    assert_eq!(docker.inspect(&name)["State"]["Status"], "paused");
    docker.docker(&["exec", &name, "true"]).fails(&["paused"]);
    docker.docker(&["unpause", &name]).ok();
    docker.docker(&["stop", "--time", "20", &name]).ok();
    await_log(&docker, &name, "asked");
    let state = docker.inspect(&name)["State"].take();
    assert_eq!((&state["Status"], &state["ExitCode"]), (&json!("exited"), &json!(3)));
    docker.docker(&["start", &name]).ok();
    let before = docker.pid(&name);
    docker.docker(&["restart", "--time", "20", &name]).ok();
    assert_ne!(docker.pid(&name), before);
    docker.docker(&["kill", &name]).ok();
    docker.docker(&["wait", &name]).ok().prints("137\n");
    docker.docker(&["kill", &name]).fails(&["is not running"]);
    docker.docker(&["rm", &name]).ok();
    let deaf = docker.detach(&[], &["sh", "-c", "trap '' TERM; echo begun; sleep 100"]);
    await_log(&docker, &deaf, "begun");
    let outcome = docker.docker(&["stop", "--time", "1", &deaf]).ok();
    assert!(outcome.elapsed < patience(9), "{outcome}");
    assert_eq!(docker.inspect(&deaf)["State"]["ExitCode"], 137);
    docker.remove(&deaf);
}

#[test]
fn exec_in_all_its_ways() {
    let docker = Docker::shared();
    let name = docker.detach(&[], &["sleep", "100"]);
    let exec = |flags: &[&str], command: &[&str]| {
        docker.cli(&["exec"]).args(flags).arg(&name).args(command).output()
    };
    exec(&[], &["sh", "-c", "echo out; exit 9"]).exits(9).prints("out\n");
    exec(&["--user", "12:34"], &["sh", "-c", "id -u; id -g"]).ok().prints("12\n34\n");
    let script = ["sh", "-c", "echo $X; pwd"];
    exec(&["--env", "X=1", "--workdir", "/tmp"], &script).ok().prints("1\n/tmp\n");
    let piped = docker.cli(&["exec", "--interactive", &name, "cat"]).stdin("through a pipe\n");
    piped.output().ok().prints("through a pipe\n");
    exec(&["--detach"], &["sh", "-c", "echo done > /tmp/mark; sleep 100"]).ok();
    eventually("the detached one to write", || exec(&[], &["cat", "/tmp/mark"]).stdout == "done\n");
    let top = docker.docker(&["top", &name, "-o", "pid,args"]).ok();
    assert_eq!(top.stdout.matches("sleep 100").count(), 2, "{top}");
    docker.remove(&name);
}

#[test]
fn statistics() {
    needs_cgroup_library!();
    let docker = Docker::shared();
    let name = docker.detach(&[], &["sh", "-c", "sleep 100 & exec sleep 100"]);
    let stats = ["stats", "--no-stream", "--format", "{{.PIDs}}", &name];
    // On a machine that is busy there are none at first.
    eventually("statistics", || docker.docker(&stats).ok().stdout == "2\n");
    docker.remove(&name);
}

#[test]
fn a_terminal() {
    let docker = Docker::shared();
    let outcome = docker.run(&["--tty"], &["sh", "-c", "tty; ls -l /dev/console"]).ok();
    outcome.shows("/dev/pts/0\r\n").shows("/dev/console\r\n");
    let cli = docker.run_cli(&["--rm", "--tty", "--interactive"], &[BUSYBOX]);
    let (mut terminal, mut child) = on_terminal(&cli, 40, 100);
    // The size comes after the start.
    terminal.send("until stty size | grep '40 100'; do :; done; exit 4\n");
    let text = terminal.read_until("\n40 100");
    assert!(text.contains("\n40 100"), "{text:?}");
    let status = command::wait_child(&mut child, patience(20)).unwrap();
    assert_eq!(status.code(), Some(4));
    let name = docker.detach(&[], &["sleep", "100"]);
    let cli = docker.cli(&["exec", "--tty", "--interactive", &name, "sh"]);
    let (mut terminal, mut child) = on_terminal(&cli, 40, 100);
    terminal.send("tty; exit 6\n");
    let text = terminal.read_until("/dev/pts/0");
    assert!(text.contains("/dev/pts/0"), "{text:?}");
    let status = command::wait_child(&mut child, patience(20)).unwrap();
    assert_eq!(status.code(), Some(6));
    docker.remove(&name);
}

#[test]
fn limits_and_their_update() {
    let docker = Docker::shared();
    let flags = ["--memory", "64m", "--pids-limit", "30", "--cpus", "0.5", "--cpu-shares", "512"];
    let name = docker.detach(&flags, &["sleep", "100"]);
    let pid = docker.pid(&name);
    let memory = || cgroup::setting(pid, "memory", "memory.limit_in_bytes", "memory.max").unwrap();
    let pids = || cgroup::setting(pid, "pids", "pids.max", "pids.max").unwrap();
    assert_eq!((memory(), pids()), ((64 << 20).to_string(), "30".to_owned()));
    let quota = cgroup::setting(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").unwrap();
    assert!(quota.starts_with("50000"), "{quota}");
    let more = ["--memory", "80m", "--memory-swap", "160m", "--pids-limit", "50"];
    docker.cli(&["update"]).args(&more).arg(&name).output().ok();
    assert_eq!((memory(), pids()), ((80 << 20).to_string(), "50".to_owned()));
    docker.remove(&name);
    let fork = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait";
    let outcome = docker.run(&["--pids-limit", "4"], &["sh", "-c", fork]);
    assert!(outcome.stderr.contains("can't fork"), "{outcome}");
}

#[test]
fn out_of_memory_is_told() {
    needs_cgroup_library!();
    let docker = Docker::shared();
    // containerd's shim comes to listen for it after the start, when is not to be seen.
    let told = [1, 5, 25].into_iter().any(|seconds| {
        let name = fresh_id();
        let container = format!("container={name}");
        let filters = ["--filter", "event=oom", "--filter", &container];
        let events =
            docker.cli(&["events", "--since", "10m", "--format", "{{.Action}}"]).args(&filters);
        let mut events = events.spawn();
        let flags = ["--memory", "24m", "--memory-swap", "24m", "--name", &name];
        let script = format!("sleep {seconds}; exec dd if=/dev/zero of=/dev/null bs=100M count=1");
        docker.run_cli(&flags, &[BUSYBOX, "sh", "-c", &script]).output().exits(137);
        let told = within(Duration::from_secs(seconds), || {
            docker.inspect(&name)["State"]["OOMKilled"] == json!(true)
        });
        if told {
            eventually("the event", || events.stdout() == "oom\n");
        }
        docker.remove(&name);
        told
    });
    assert!(told, "the state does not say it");
}

#[test]
fn users_capabilities_and_mounts() {
    let docker = Docker::shared();
    let who = docker.run(&["--user", "77:88", "--group-add", "99"], &["sh", "-c", "id -u; id -G"]);
    who.ok().prints("77\n88 99\n");
    let status = |flags: &[&str]| {
        let fields = "CapInh|CapEff|CapBnd|NoNewPrivs|Seccomp:";
        docker.run(flags, &["grep", "-E", fields, "/proc/self/status"]).ok().stdout
    };
    let one = status(&["--cap-drop", "all", "--cap-add", "net_raw"]);
    assert!(one.contains("CapEff:\t0000000000002000\nCapBnd:\t0000000000002000\n"), "{one}");
    assert!(one.contains("Seccomp:\t2"), "{one}");
    let strict = status(&["--security-opt", "no-new-privileges"]);
    assert!(strict.contains("NoNewPrivs:\t1"), "{strict}");
    let limits = ["--ulimit", "nofile=100:200"];
    docker.run(&limits, &["sh", "-c", "ulimit -n; ulimit -Hn"]).ok().prints("100\n200\n");
    let script = "touch /x 2> /dev/null || echo read-only; touch /t/x; pwd";
    let flags = ["--read-only", "--tmpfs", "/t:size=1m", "--workdir", "/t"];
    docker.run(&flags, &["sh", "-c", script]).ok().prints("read-only\n/t\n");
    let volume = format!("{}:/v", fresh_id());
    docker.run(&["--volume", &volume], &["sh", "-c", "echo kept > /v/file"]).ok();
    docker.run(&["--volume", &volume], &["cat", "/v/file"]).ok().prints("kept\n");
    docker.docker(&["volume", "rm", volume.split(':').next().unwrap()]).ok();
}

/// What a root without CAP_SYS_RESOURCE can grant is granted; runc 1.1 fails.
#[test]
fn privileged() {
    kiln_only!("fails without all capabilities");
    let docker = Docker::shared();
    let status = docker.run(&["--privileged"], &["grep", "Seccomp:", "/proc/self/status"]);
    status.ok().shows("Seccomp:\t0");
    let name = docker.detach(&[], &["sleep", "100"]);
    let exec = ["exec", "--privileged", &name, "grep", "CapEff", "/proc/self/status"];
    docker.docker(&exec).ok().shows("ff\n");
    docker.remove(&name);
}

#[test]
fn namespaces_of_the_host_and_of_another() {
    let docker = Docker::shared();
    let namespaces = "for kind in net pid ipc; do readlink /proc/self/ns/$kind; done";
    let name = docker.detach(&["--ipc", "shareable"], &["sleep", "100"]);
    let pid = docker.pid(&name);
    let of = |pid: &dyn Fn(&str) -> String| {
        ["net", "pid", "ipc"].map(pid).map(|link| link + "\n").concat()
    };
    let with = format!("container:{name}");
    let joined = ["--network", &with, "--pid", &with, "--ipc", &with];
    let joined = docker.run(&joined, &["sh", "-c", namespaces]).ok();
    assert_eq!(joined.stdout, of(&|kind| proc::namespace(pid, kind)));
    let hosts = ["--network", "host", "--pid", "host", "--ipc", "host"];
    let hosts = docker.run(&hosts, &["sh", "-c", namespaces]).ok();
    assert_eq!(hosts.stdout, of(&proc::own_namespace));
    docker.remove(&name);
}

#[test]
fn restarted_on_failure() {
    let docker = Docker::shared();
    let name = docker.detach(&["--restart", "on-failure:2"], &["sh", "-c", "echo once; exit 5"]);
    eventually("three runs", || {
        docker.docker(&["logs", &name]).ok().stdout == "once\nonce\nonce\n"
    });
    eventually("the end", || docker.inspect(&name)["State"]["Status"] == "exited");
    assert_eq!(docker.inspect(&name)["RestartCount"], 2);
    docker.remove(&name);
}

/// The classic builder runs each RUN by the default runtime.
#[test]
fn an_image_is_built() {
    let docker = Docker::shared();
    let folder = docker.home().join("build");
    fs::create_dir_all(&folder).unwrap();
    let text =
        format!("FROM {BUSYBOX}\nRUN echo built > /built && id -u\nCMD [\"cat\", \"/built\"]\n");
    fs::write(folder.join("Dockerfile"), text).unwrap();
    let name = format!("kiln-test/{}:1", fresh_id());
    let build = docker.cli(&["build", "--network", "none", "--tag", &name]).arg(folder);
    build.output().ok().shows("Successfully built");
    docker.run_cli(&["--rm"], &[&name]).output().ok().prints("built\n");
}

#[test]
fn many_at_once() {
    let docker = Docker::shared();
    let command = |number: i32| format!("exit {number}");
    let flags = ["--rm", BUSYBOX, "sh", "-c"];
    let runs = (1..=10).map(|number| (number, docker.run_cli(&flags, &[&command(number)]).spawn()));
    let runs: Vec<_> = runs.collect();
    runs.into_iter().for_each(|(number, run)| drop(run.wait().exits(number)));
}
