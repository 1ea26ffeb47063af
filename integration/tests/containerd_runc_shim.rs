//! kiln in runc's place: containerd's own shim for runc, with kiln as its `BinaryName`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::console::on_terminal;
use kiln_integration::containerd::{Containerd, Shim};
use kiln_integration::ctr::{BUSYBOX, Ctr, Task};
use kiln_integration::image::Image;
use kiln_integration::{
    Value, cgroup, command, eventually, fresh_id, kiln_only, leftovers, needs_cgroup_library,
    needs_wasm, patience, proc, skip,
};
use rustix::process::{Pid, Signal, kill_process};

/// Ends with 3 on SIGTERM, and says so when it has begun.
const OBEDIENT: [&str; 3] =
    ["sh", "-c", "trap 'exit 3' TERM; touch /begun; while :; do sleep 0.02; done"];

#[track_caller]
fn obedient(ctr: &Ctr) -> Task<'_> {
    let task = ctr.detach(&[], &OBEDIENT);
    eventually("the container to begin", || {
        task.exec(&[], &["test", "-e", "/begun"]).status.success()
    });
    task
}

/// Deletes the task, which has ended, and its container; gives the exit status, which `ctr` says in
/// words.
#[track_caller]
fn delete(containerd: &Containerd, id: &str) -> i32 {
    let outcome = containerd.ctr(&["tasks", "delete", id]).ok();
    containerd.ctr(&["containers", "delete", id]).ok();
    let status = outcome.stderr.split("non-zero exit code ").nth(1);
    let digits = status.map(|text| text.chars().take_while(char::is_ascii_digit));
    digits.map_or(0, |digits| digits.collect::<String>().parse().unwrap())
}

/// The log that the shim has kiln write: an object a line, nothing else.
fn entries(ctr: &Ctr, task: &Task<'_>) -> Vec<Value> {
    let log = ctr.bundle(&ctr.namespace, &task.id).join("log.json");
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_task_from_run_to_delete() {
    let ctr = Ctr::of(Shim::Runc);
    ctr.run(&[], &["sh", "-c", "echo out; exit 7"]).exits(7).prints("out\n");
    let task = obedient(&ctr);
    assert_eq!(task.status(), "RUNNING");
    // Init is the shim's, wherever the runtime has gone, and in its cgroup.
    let pid = task.pid();
    let parent = fs::read_to_string(format!("/proc/{}/comm", task.shim_pid())).unwrap();
    assert_eq!(parent, "containerd-shim\n");
    assert!(cgroup::members(pid).contains(&pid));
    task.ctr(&["pause"]).ok();
    assert_eq!(task.status(), "PAUSED");
    task.exec(&[], &["true"]).fails(&["paused"]);
    task.ctr(&["resume"]).ok();
    assert_eq!(task.status(), "RUNNING");
    task.ctr(&["kill", "--signal", "SIGTERM"]).ok();
    task.await_status("STOPPED");
    // What it makes of kiln's "container not running".
    task.ctr(&["kill"]).fails(&["process already finished: not found"]);
    assert_eq!(delete(&ctr, &task.id), 3);
}

#[test]
fn errors_reach_the_caller() {
    let ctr = Ctr::of(Shim::Runc);
    for (program, text) in [
        ("no-such", "exec: \"no-such\": executable file not found in $PATH"),
        ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
        ("/etc", "exec: \"/etc\": permission denied"),
    ] {
        ctr.run(&[], &[program]).fails(&["OCI runtime create failed: ", text]);
    }
    let mount = ["--mount", "type=bind,src=/no/such,dst=/v,options=rbind"];
    ctr.run(&mount, &["true"]).fails(&["OCI runtime create failed: ", "no such file or directory"]);
    let task = ctr.detach(&[], &["sleep", "100"]);
    for (program, text) in [
        ("no-such", "executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/etc", "permission denied"),
    ] {
        task.exec(&[], &[program]).fails(&["OCI runtime exec failed: exec failed: ", text]);
        let entries = entries(&ctr, &task);
        let last = entries.last().unwrap();
        assert!(last["msg"].as_str().unwrap().contains(text), "{last}");
    }
    task.exec(&["--cwd", "/no/such"], &["true"]).fails(&["/no/such", "no such file or directory"]);
}

#[test]
fn exec_in_all_its_ways() {
    let ctr = Ctr::of(Shim::Runc);
    let task = ctr.detach(&[], &["sleep", "100"]);
    task.exec(&[], &["sh", "-c", "echo out; exit 9"]).exits(9).prints("out\n");
    task.exec(&["--user", "12"], &["id", "-u"]).ok().prints("12\n");
    task.exec(&["--cwd", "/tmp"], &["pwd"]).ok().prints("/tmp\n");
    let id = fresh_id();
    task.exec_as(&id, &["--detach"], &["sleep", "100"]).output().ok();
    // Who are there: the file with its process id is the shim's.
    let exec: i32 =
        fs::read_to_string(ctr.bundle(&ctr.namespace, &task.id).join(format!("{id}.pid")))
            .unwrap()
            .parse()
            .unwrap();
    let listed = task.ctr(&["ps"]).ok().stdout;
    let listed: Vec<i32> =
        listed.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    assert_eq!(
        listed.iter().collect::<std::collections::BTreeSet<_>>(),
        [task.pid(), exec].iter().collect()
    );
    task.ctr(&["kill", "--signal", "SIGKILL", "--exec-id", &id]).ok();
    eventually("its end", || !proc::alive(exec));
    assert_eq!(task.status(), "RUNNING");
}

#[test]
fn a_terminal() {
    let ctr = Ctr::of(Shim::Runc);
    let cli = ctr.run_cli(&["--rm", "--tty"], &["sh"]);
    let (mut terminal, mut child) = on_terminal(&cli, 40, 100);
    // The size comes after the start.
    terminal.send("tty; until stty size | grep '40 100'; do :; done; exit 4\n");
    let text = terminal.read_until("\n40 100");
    assert!(text.contains("/dev/pts/0") && text.contains("\n40 100"), "{text:?}");
    let status = command::wait_child(&mut child, patience(20)).unwrap();
    assert_eq!(status.code(), Some(4));
    let task = ctr.detach(&[], &["sleep", "100"]);
    let cli = task.exec_cli(&["--tty"], &["sh"]);
    let (mut terminal, mut child) = on_terminal(&cli, 40, 100);
    terminal.send("tty; exit 6\n");
    let text = terminal.read_until("/dev/pts/0");
    assert!(text.contains("/dev/pts/0"), "{text:?}");
    let status = command::wait_child(&mut child, patience(20)).unwrap();
    assert_eq!(status.code(), Some(6));
}

#[test]
fn statistics() {
    needs_cgroup_library!();
    let ctr = Ctr::of(Shim::Runc);
    let task = ctr.detach(&["--memory-limit", "33554432"], &["sleep", "100"]);
    let metrics = task.ctr(&["metrics"]).ok();
    metrics.shows("pids.current").shows("33554432");
}

#[test]
fn events_come_in_order() {
    needs_cgroup_library!();
    let ctr = Ctr::of(Shim::Runc);
    let mut events = ctr.ctr_cli(&["events"]).spawn();
    // They are there from now on.
    eventually("events", || {
        ctr.run(&[], &["true"]).ok();
        events.stdout().contains("/tasks/delete")
    });
    let script =
        "until [ -e /go ]; do sleep 0.02; done; exec dd if=/dev/zero of=/dev/null bs=100M count=1";
    let task = ctr.detach(&["--memory-limit", "25165824"], &["sh", "-c", script]);
    let id = fresh_id();
    task.exec_as(&id, &[], &["true"]).output().ok();
    task.ctr(&["pause"]).ok();
    task.ctr(&["resume"]).ok();
    task.exec_as("go", &["--detach"], &["touch", "/go"]).output().ok();
    task.await_status("STOPPED");
    assert_eq!(delete(&ctr, &task.id), 137);
    let topics = |text: String| -> Vec<String> {
        let own = |line: &&str| line.contains(&task.id) && line.contains("/tasks/");
        let topic = |line: &str| Some(line.split("/tasks/").nth(1)?.split(' ').next()?.to_owned());
        text.lines().filter(own).filter_map(topic).collect()
    };
    eventually("the last event", || {
        topics(events.stdout()).last().is_some_and(|topic| topic == "delete")
    });
    let told = topics(events.stdout());
    let place = |topic: &str| {
        told.iter()
            .position(|told| told == topic)
            .unwrap_or_else(|| panic!("no {topic} in {told:?}"))
    };
    let order = ["create", "start", "exec-added", "exec-started", "paused", "resumed", "oom"];
    let places: Vec<_> = order.iter().map(|topic| place(topic)).collect();
    assert!(places.is_sorted(), "{told:?}");
    assert_eq!(told.iter().filter(|told| *told == "exit").count(), 3, "{told:?}");
}

/// With the host's pid namespace nothing ends what init leaves but the runtime.
#[test]
fn what_init_leaves_behind_is_ended() {
    let ctr = Ctr::of(Shim::Runc);
    let hosts = format!("pid:/proc/{}/ns/pid", std::process::id());
    // By a signal to all, to init alone, and by its own end: the shim sends SIGKILL to the rest.
    for (script, kill) in [
        ("sleep 1001 & sleep 1002", Some(&["kill", "--all", "--signal", "SIGKILL"][..])),
        ("sleep 1001 & sleep 1002", Some(&["kill", "--signal", "SIGKILL"])),
        ("sleep 1001 & exit 4", None),
    ] {
        let task = ctr.detach(&["--with-ns", &hosts], &["sh", "-c", script]);
        if let Some(words) = kill {
            task.ctr(words).ok();
        }
        task.await_status("STOPPED");
        let status = if kill.is_some() { 137 } else { 4 };
        assert_eq!(delete(&ctr, &task.id), status);
        let dirs = cgroup::directories_of(&task.id);
        assert!(dirs.is_empty(), "{dirs:?}");
    }
}

#[test]
fn a_checkpoint_without_criu_is_refused() {
    if command::exists("criu") {
        skip!("there is CRIU");
    }
    let ctr = Ctr::of(Shim::Runc);
    let task = ctr.detach(&[], &["sleep", "100"]);
    task.ctr(&["checkpoint"]).fails(&["criu"]);
    assert_eq!(task.status(), "RUNNING");
}

/// A shim that was killed: containerd has what is left of it deleted by kiln.
#[test]
fn a_killed_shim_leaves_nothing() {
    let ctr = Ctr::of(Shim::Runc);
    let task = ctr.detach(&[], &["sleep", "100"]);
    let (pid, bundle) = (task.pid(), ctr.bundle(&ctr.namespace, &task.id));
    let socket = fs::read_to_string(bundle.join("address")).unwrap();
    let shim = Pid::from_raw(task.shim_pid()).unwrap();
    kill_process(shim, Signal::KILL).unwrap();
    eventually("the container's end", || !proc::alive(pid));
    eventually("the task to go", || task.status().is_empty() && !bundle.exists());
    let state = ctr.kiln_root().join(&ctr.namespace);
    let left = leftovers::find(&task.id, &state, &bundle);
    assert!(left.is_empty(), "{left:?}");
    // The shim's own, which containerd forgets.
    let _ = fs::remove_file(socket.trim_start_matches("unix://"));
    ctr.ctr(&["containers", "delete", &task.id]).ok();
}

#[test]
fn a_killed_containerd_finds_its_tasks_again() {
    let mut containerd = Containerd::start(false);
    containerd.import(&Image::busybox(BUSYBOX, containerd.home()));
    let fifos = containerd.home().join("f");
    let flags = ["--detach", "--fifo-dir", fifos.to_str().unwrap()];
    let script = "until [ -e /go ]; do sleep 0.02; done; exit 7";
    let id = fresh_id();
    let run = containerd.run_cli(Shim::Runc, &flags, BUSYBOX, &[&id, "sh", "-c", script]);
    run.output().ok();
    containerd.kill_and_restart();
    let status = |containerd: &Containerd| {
        let list = containerd.ctr(&["tasks", "ls"]).ok().stdout;
        let line = list.lines().find(|line| line.starts_with(&id)).unwrap_or_default().to_owned();
        line.split_whitespace().nth(2).unwrap_or_default().to_owned()
    };
    assert_eq!(status(&containerd), "RUNNING");
    let exec = ["tasks", "exec", "--fifo-dir", fifos.to_str().unwrap(), "--exec-id", "go", &id];
    containerd.ctr_cli(&exec).args(&["touch", "/go"]).output().ok();
    eventually("its end", || status(&containerd) == "STOPPED");
    assert_eq!(delete(&containerd, &id), 7);
}

#[test]
fn many_at_once() {
    let ctr = Ctr::of(Shim::Runc);
    let run = |number: i32| {
        let script = format!("exit {number}");
        (number, ctr.run_cli(&["--rm"], &["sh", "-c", &script]).spawn())
    };
    let runs: Vec<_> = (1..=20).map(run).collect();
    runs.into_iter().for_each(|(number, run)| drop(run.wait().exits(number)));
}

#[test]
fn a_module() {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    let ctr = Ctr::of(Shim::Runc);
    let rootfs = tempfile::tempdir_in(ctr.home()).unwrap();
    for name in ["hello.wasm", "exit.wasm", "loop.wasm", "trap.wasm", "tty.wasm"] {
        let example = kiln_integration::examples::find(name).unwrap();
        fs::copy(example, rootfs.path().join(name)).unwrap();
    }
    let name = "localhost/kiln-test/modules:1";
    let config = kiln_integration::json!({ "Env": ["PATH=/"], "WorkingDir": "/" });
    ctr.import(&Image::of_folder(name, rootfs.path(), &config, ctr.home()));
    let containerd: &Containerd = &ctr;
    let fifos = ctr.home().join("f");
    let run = |flags: &[&str], command: &[&str]| {
        let fixed = ["--annotation", "run.oci.handler=wasm", "--fifo-dir", fifos.to_str().unwrap()];
        containerd.run_cli(Shim::Runc, &[&fixed, flags].concat(), name, command)
    };
    let once = |command: &[&str]| run(&["--rm"], &[&[&*fresh_id()], command].concat()).output();
    once(&["hello.wasm"]).ok().prints("hello from wasm\n");
    once(&["/exit.wasm", "5"]).exits(5);
    once(&["/trap.wasm"]).exits(134);
    once(&["/no-such.wasm"]).fails(&["OCI runtime create failed: ", "no such file or directory"]);
    let cli = run(&["--rm", "--tty"], &[&fresh_id(), "/tty.wasm"]);
    let (mut terminal, mut child) = on_terminal(&cli, 40, 100);
    assert!(terminal.read_until("stderr: terminal").contains("stdin: terminal"));
    let status = command::wait_child(&mut child, patience(20)).unwrap();
    assert_eq!(status.code(), Some(0));
    let id = fresh_id();
    run(&["--detach"], &[&id, "/loop.wasm"]).output().ok();
    let task = ctr.adopt(&id);
    task.exec(&[], &["/exit.wasm", "6"]).exits(6);
    task.ctr(&["kill", "--signal", "SIGTERM"]).ok();
    task.await_status("STOPPED");
    assert_eq!(delete(&ctr, &task.id), 143);
}
