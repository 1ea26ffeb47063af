//! Executing processes by containerd-shim-kiln-v1, by `ctr tasks exec` and directly.

#![allow(missing_docs, clippy::unwrap_used)]

use containerd_shim_protos::api::{PidsRequest, PidsResponse, StateResponse, Status, WaitResponse};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::ttrpc::proto::Code;
use kiln_integration::ctr::Ctr;
use kiln_integration::shim::{Shim, process};
use kiln_integration::ttrpc::refused;
use kiln_integration::{eventually, fresh_id, json, needs_shim};

fn status(state: &StateResponse) -> Status {
    state.status.enum_value().unwrap()
}

#[test]
fn by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    let task = ctr.detach(&["--env", "WHERE=here"], &["sleep", "1000"]);
    task.exec(&[], &["echo", "one", "two  spaces", "$HOME", "ü\n*"])
        .ok()
        .prints("one two  spaces $HOME ü\n*\n");
    task.exec(&[], &["sh", "-c", "exit 42"]).exits(42);
    task.exec(&[], &["sh", "-c", "kill -9 $$"]).exits(137);
    let script = "pwd; echo $WHERE; id -u; echo error >&2";
    let outcome = task.exec(&["--cwd", "/tmp", "--user", "1000"], &["sh", "-c", script]);
    let outcome = outcome.ok().prints("/tmp\nhere\n1000\n");
    assert_eq!(outcome.stderr, "error\n");
    // In the container: its processes, its host name.
    let list = task.exec(&[], &["ps"]).ok().stdout;
    assert!(list.contains("sleep 1000"), "{list}");
    // The same id again, once the first is deleted.
    for _ in 0..2 {
        task.exec_as("again", &[], &["true"]).output().ok();
    }
}

#[test]
fn detached() {
    needs_shim!();
    let ctr = Ctr::new();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    let exec_id = fresh_id();
    let script = "trap 'exit 9' TERM; sleep 1000 & echo $$ >/pid; wait";
    task.exec_as(&exec_id, &["--detach"], &["sh", "-c", script]).output().ok();
    task.exec(&[], &["sh", "-c", "until test -s /pid; do sleep 0.01; done"]).ok();
    // Its id is by its pid.
    let list = task.ctr(&["ps"]).ok().stdout;
    let line = list.lines().find(|line| line.contains(&exec_id)).expect("the exec");
    assert!(line.contains("ExecID"), "{line}");
    assert_eq!(list.lines().count(), 4, "{list}");
    let init = task.pid().to_string();
    assert!(list.lines().any(|line| line.split_whitespace().eq([init.as_str(), "-"])), "{list}");
    task.ctr(&["kill", "--exec-id", &exec_id]).ok();
    let deleted = || task.ctr(&["delete", "--exec-id", &exec_id]).status.code();
    eventually("the exec to end", || deleted() == Some(9));
    task.ctr(&["kill", "--exec-id", &exec_id]).fails(&["not found"]);
}

#[test]
fn a_program_that_is_missing_says_so_and_leaves_nothing() {
    needs_shim!();
    let ctr = Ctr::new();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    let exec_id = fresh_id();
    for _ in 0..2 {
        task.exec_as(&exec_id, &[], &["no-such-program"])
            .output()
            .fails(&["\"no-such-program\": executable file not found in $PATH"]);
    }
    task.exec(&[], &["/etc"]).fails(&["permission denied"]);
    task.exec(&["--cwd", "/nowhere"], &["true"]).fails(&["/nowhere"]);
    task.exec(&["--user", "nobody-knows"], &["true"]).fails(&["passwd"]);
    assert_eq!(task.ctr(&["ps"]).ok().stdout.lines().count(), 2);
    task.exec(&[], &["true"]).ok();
}

/// Whoever waits for an exec learns that it will never run.
#[test]
fn a_start_that_fails() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let before = shim.descriptors();
    client.exec(id, "e", &process(&["no-such-program"]), |_| {}).unwrap();
    let wait = client.send_wait(id, "e");
    let parts = ["executable file not found in $PATH"];
    refused(client.start(id, "e"), Code::UNKNOWN, &parts);
    assert_eq!(client.answer::<WaitResponse>(wait).unwrap().exit_status, 255);
    let state = client.state(id, "e").unwrap();
    assert_eq!((status(&state), state.exit_status, state.pid), (Status::STOPPED, 255, 0));
    assert_eq!(client.delete(id, "e").unwrap().exit_status, 255);
    refused(client.state(id, "e"), Code::NOT_FOUND, &["e"]);
    eventually("the descriptors of before", || shim.descriptors() == before);
    // As it never began, nobody is told of an end.
    shim.events.expect(id, &["create", "start", "exec-added e"]);
}

#[test]
fn a_long_name_is_a_long_reason() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    client.exec(id, "e", &process(&[&"x".repeat(100_000)]), |_| {}).unwrap();
    refused(client.start(id, "e"), Code::UNKNOWN, &["xxx"]);
    client.delete(id, "e").unwrap();
}

#[test]
fn one_that_is_never_started() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    client.exec(id, "e", &process(&["true"]), |_| {}).unwrap();
    assert_eq!(status(&client.state(id, "e").unwrap()), Status::CREATED);
    refused(client.kill(id, "e", 9, false), Code::FAILED_PRECONDITION, &["e"]);
    let wait = client.send_wait(id, "e");
    client.delete(id, "e").unwrap();
    refused(client.answer::<WaitResponse>(wait), Code::NOT_FOUND, &["e"]);
    client.exec(id, "f", &process(&["true"]), |_| {}).unwrap();
    let wait = client.send_wait(id, "f");
    client.kill(id, "", 9, false).unwrap();
    assert_eq!(client.wait(id, ""), Ok(137));
    client.delete(id, "").unwrap();
    refused(client.answer::<WaitResponse>(wait), Code::NOT_FOUND, &[]);
}

#[test]
fn what_is_no_process() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    refused(client.exec(id, "", &process(&["true"]), |_| {}), Code::INVALID_ARGUMENT, &["exec_id"]);
    for bad in [json!(null), json!([]), json!({ "args": "true" }), json!({ "args": [] })] {
        client.exec(id, "e", &bad, |_| {}).unwrap();
        refused(client.start(id, "e"), Code::UNKNOWN, &["process"]);
        client.delete(id, "e").unwrap();
    }
    // As little as there may be.
    client.exec(id, "e", &json!({ "cwd": "/", "args": ["/bin/true"] }), |_| {}).unwrap();
    client.start(id, "e").unwrap();
    assert_eq!(client.wait(id, "e"), Ok(0));
}

#[test]
fn pids_have_the_execs_ids() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let init = client.state(id, "").unwrap().pid;
    client.exec(id, "e", &process(&["sh", "-c", "sleep 1000 & wait"]), |_| {}).unwrap();
    let exec = client.start(id, "e").unwrap();
    let mut found = Vec::new();
    eventually("three processes", || {
        let mut request = PidsRequest::new();
        request.id = id.to_owned();
        found = client.call::<PidsResponse>("Pids", &request).unwrap().processes;
        found.len() == 3
    });
    for process in found {
        let details = process.info.as_ref().map(|any| {
            assert_eq!(any.type_url, "containerd.runc.v1.ProcessDetails");
            ProcessDetails::parse_from_bytes(&any.value).unwrap().exec_id
        });
        assert_eq!(details, (process.pid == exec).then(|| "e".to_owned()));
        assert!(process.pid != init || details.is_none());
    }
    client.kill(id, "e", 9, false).unwrap();
    assert_eq!(client.wait(id, "e"), Ok(137));
}

/// Its end comes with the container's.
#[test]
fn an_exec_ends_with_its_container() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    client.exec(id, "e", &process(&["sleep", "1000"]), |_| {}).unwrap();
    client.start(id, "e").unwrap();
    let wait = client.send_wait(id, "e");
    client.kill(id, "", 9, false).unwrap();
    assert_eq!(client.answer::<WaitResponse>(wait).unwrap().exit_status, 137);
    assert_eq!(client.wait(id, ""), Ok(137));
    let expected = ["create", "start", "exec-added e", "exec-started e", "exit e 137", "exit 137"];
    shim.events.expect(id, &expected);
    // One that is added now cannot be started, and says why.
    client.exec(id, "f", &process(&["true"]), |_| {}).unwrap();
    refused(client.start(id, "f"), Code::FAILED_PRECONDITION, &["not running"]);
    client.delete(id, "").unwrap();
}

#[test]
fn not_in_a_paused_container() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let mut request = containerd_shim_protos::api::PauseRequest::new();
    request.id = id.to_owned();
    client.call::<containerd_shim_protos::api::Empty>("Pause", &request).unwrap();
    client.exec(id, "e", &process(&["true"]), |_| {}).unwrap();
    refused(client.start(id, "e"), Code::FAILED_PRECONDITION, &["paused"]);
    // Nor does a paused container end but by SIGKILL, which thaws it.
    client.kill(id, "", 15, false).unwrap();
    assert_eq!(status(&client.state(id, "").unwrap()), Status::PAUSED);
}

#[test]
fn many_in_a_row_leave_nothing_open() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let before = shim.descriptors();
    for number in 0..kiln_integration::rounds(100) {
        let (exec_id, mut out) = (format!("e{number}"), shim.fifo());
        let name = out.name();
        client
            .exec(id, &exec_id, &process(&["echo", &exec_id]), |request| request.stdout = name)
            .unwrap();
        client.start(id, &exec_id).unwrap();
        assert_eq!(client.wait(id, &exec_id), Ok(0));
        assert_eq!(String::from_utf8(out.read_to_end()).unwrap(), format!("{exec_id}\n"));
        client.delete(id, &exec_id).unwrap();
    }
    eventually("the descriptors of before", || shim.descriptors() == before);
}
