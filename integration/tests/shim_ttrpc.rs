//! containerd-shim-kiln-v1 called directly: ttrpc as it should be and as it should not, ids, and
//! many clients at once.

#![allow(missing_docs, clippy::unwrap_used)]

use std::io::Write;

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, Empty, PidsRequest, PidsResponse,
    StateRequest, StateResponse, Status, WaitResponse,
};
use containerd_shim_protos::ttrpc::Request;
use containerd_shim_protos::ttrpc::proto::{
    Code, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE,
    MessageHeader,
};
use kiln_integration::shim::{Shim, process};
use kiln_integration::ttrpc::{Client, TASK_V2, TASK_V3, frame, refused};
use kiln_integration::{Bundle, eventually, needs_shim};

fn connect(client: &mut Client, id: &str) -> ConnectResponse {
    let mut request = ConnectRequest::new();
    request.id = id.to_owned();
    client.call("Connect", &request).unwrap()
}

#[test]
fn a_life_under_both_names() {
    needs_shim!();
    for service in [TASK_V2, TASK_V3] {
        let shim = Shim::start(Bundle::sh("exit 7"));
        let (mut client, id) = (shim.client(), &shim.id);
        client.service = service;
        let pid = client.create(&shim.request(id)).unwrap();
        assert!(pid > 0);
        let state = client.state(id, "").unwrap();
        assert_eq!((state.id.as_str(), state.pid), (id.as_str(), pid));
        assert_eq!(state.status.enum_value(), Ok(Status::CREATED));
        assert_eq!(state.bundle, shim.bundle(id).to_str().unwrap());
        assert_eq!(client.start(id, ""), Ok(pid));
        assert_eq!(client.wait(id, ""), Ok(7));
        let state = client.state(id, "").unwrap();
        assert_eq!(state.status.enum_value(), Ok(Status::STOPPED));
        assert_eq!(state.exit_status, 7);
        let deleted = client.delete(id, "").unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
        assert_eq!(deleted.exited_at, state.exited_at);
        refused(client.state(id, ""), Code::NOT_FOUND, &[id, "not found"]);
        refused(client.wait(id, ""), Code::NOT_FOUND, &[id]);
    }
}

#[test]
fn connect_tells_the_pids() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let state = client.state(&shim.id, "").unwrap();
    let answer = connect(&mut client, &shim.id);
    assert_eq!((answer.shim_pid, answer.task_pid), (shim.pid.cast_unsigned(), state.pid));
    // containerd has what is left of it removed.
    let request = ConnectRequest { id: "other".to_owned(), ..ConnectRequest::new() };
    refused(client.call::<ConnectResponse>("Connect", &request), Code::NOT_FOUND, &["other"]);
}

#[test]
fn ids_that_are_not_there() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let missing = Code::NOT_FOUND;
    for exec_id in ["", "e"] {
        refused(client.state("other", exec_id), missing, &["other"]);
        refused(client.start("other", exec_id), missing, &["other"]);
        refused(client.wait("other", exec_id), missing, &["other"]);
        refused(client.kill("other", exec_id, 9, false), missing, &["other"]);
        refused(client.delete("other", exec_id), missing, &["other"]);
        refused(client.close_stdin("other", exec_id), missing, &["other"]);
    }
    refused(client.state(id, "e"), missing, &["e"]);
    refused(client.start(id, "e"), missing, &["e"]);
    refused(client.wait(id, "e"), missing, &["e"]);
    refused(client.kill(id, "e", 9, false), missing, &["e"]);
    refused(client.delete(id, "e"), missing, &["e"]);
    refused(client.exec("other", "e", &process(&["true"]), |_| {}), missing, &["other"]);
    for method in ["Pids", "Pause", "Resume", "Stats", "Update", "Checkpoint", "ResizePty"] {
        // They all have the id first.
        let mut request = PidsRequest::new();
        request.id = "other".to_owned();
        let answer = client.call::<Empty>(method, &request);
        refused(answer, missing, &["other"]);
    }
}

#[test]
fn ids_that_are_taken() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let taken = Code::ALREADY_EXISTS;
    refused(client.create(&shim.request(id)), taken, &[id, "already exists"]);
    refused(client.start(id, ""), Code::FAILED_PRECONDITION, &["RUNNING"]);
    let sleep = process(&["sleep", "1000"]);
    client.exec(id, "e", &sleep, |_| {}).unwrap();
    refused(client.exec(id, "e", &sleep, |_| {}), taken, &["e", "already exists"]);
    client.start(id, "e").unwrap();
    refused(client.start(id, "e"), Code::FAILED_PRECONDITION, &["RUNNING"]);
    refused(client.delete(id, "e"), Code::FAILED_PRECONDITION, &["RUNNING"]);
    refused(client.delete(id, ""), Code::FAILED_PRECONDITION, &["RUNNING"]);
    client.kill(id, "e", 9, false).unwrap();
    assert_eq!(client.wait(id, "e"), Ok(137));
    refused(client.start(id, "e"), Code::FAILED_PRECONDITION, &["STOPPED"]);
    client.delete(id, "e").unwrap();
    // Free again.
    client.exec(id, "e", &process(&["true"]), |_| {}).unwrap();
    client.start(id, "e").unwrap();
    assert_eq!(client.wait(id, "e"), Ok(0));
}

/// containerd checks ids; who else has root need not.
#[test]
fn ids_that_are_none() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    for id in ["", ".", "..", "a/b", "../x", "a\0b", &"x".repeat(2000)] {
        let request = CreateTaskRequest { id: id.to_owned(), ..shim.request(&shim.id) };
        refused(client.create(&request), Code::UNKNOWN, &[]);
    }
    assert_eq!(connect(&mut client, &shim.id).shim_pid, shim.pid.cast_unsigned());
}

#[test]
fn methods_and_services_that_do_not_exist() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let mut request = StateRequest::new();
    request.id.clone_from(&shim.id);
    refused(client.call::<Empty>("Fly", &request), Code::UNIMPLEMENTED, &["Fly"]);
    client.service = "containerd.task.v9.Task";
    refused(client.call::<Empty>("State", &request), Code::UNIMPLEMENTED, &["v9"]);
    client.service = TASK_V2;
    assert!(client.call::<StateResponse>("State", &request).is_ok());
}

#[test]
fn requests_that_are_none() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let stream = client.next_stream();
    // Of a message that cannot be parsed there is still a call to answer.
    let mut request = Request::new();
    (request.service, request.method) = (TASK_V2.to_owned(), "State".to_owned());
    request.payload = vec![0xff; 20];
    client.socket.write_all(&frame(stream, MESSAGE_TYPE_REQUEST, &request)).unwrap();
    refused(client.answer::<StateResponse>(stream), Code::INVALID_ARGUMENT, &[]);

    let stream = client.next_stream();
    let header = MessageHeader { length: 20, stream_id: stream, type_: 1, flags: 0 };
    client.socket.write_all(&[Vec::from(header), vec![0xff; 20]].concat()).unwrap();
    refused(client.answer::<StateResponse>(stream), Code::INVALID_ARGUMENT, &[]);

    // What is no request at all is passed over.
    for kind in [MESSAGE_TYPE_RESPONSE, MESSAGE_TYPE_DATA] {
        client.socket.write_all(&frame(99, kind, &request)).unwrap();
    }
    assert!(client.state(&shim.id, "").is_ok());
}

/// As containerd's own server does. The connection stays: containerd would take its end for the
/// shim's, and the pod would be gone.
#[test]
fn a_message_that_is_too_long_is_refused_and_passed_over() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let too_long = process(&["true", &"x".repeat(MESSAGE_LENGTH_MAX)]);
    refused(client.exec(id, "e", &too_long, |_| {}), Code::RESOURCE_EXHAUSTED, &["4194304"]);
    refused(client.state(id, "e"), Code::NOT_FOUND, &["e"]);
    let long = process(&["true", &"x".repeat(MESSAGE_LENGTH_MAX - 1000)]);
    client.exec(id, "e", &long, |_| {}).unwrap();
    refused(client.start(id, "e"), Code::UNKNOWN, &["argument list too long"]);
    assert!(client.state(id, "").is_ok());
}

#[test]
fn garbage_ends_its_connection_and_no_other() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    for garbage in [&b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"[..], &[0xff; 64], b"\n"] {
        let mut other = shim.client();
        other.socket.write_all(garbage).unwrap();
        // A line alone might be the beginning of a header.
        assert!(garbage.len() < 10 || other.is_closed(), "{garbage:?}");
    }
    let before = shim.descriptors();
    let mut half = shim.client();
    let request = frame(1, MESSAGE_TYPE_REQUEST, &Request::new());
    half.socket.write_all(&request[..5]).unwrap();
    assert!(client.state(&shim.id, "").is_ok());
    drop(half);
    eventually("the connections to be closed", || shim.descriptors() <= before);
    assert!(client.state(&shim.id, "").is_ok());
}

#[test]
fn whoever_waits_may_go() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let before = shim.descriptors();
    let mut waits = shim.client();
    let (first, second) = (waits.send_wait(&shim.id, ""), client.send_wait(&shim.id, ""));
    assert!(waits.state(&shim.id, "").is_ok(), "a wait holds nobody up");
    assert_ne!(first, 0);
    drop(waits);
    eventually("the connection to be closed", || shim.descriptors() == before);
    client.kill(&shim.id, "", 9, false).unwrap();
    assert_eq!(client.answer::<WaitResponse>(second).unwrap().exit_status, 137);
}

#[test]
fn many_clients_at_once() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let before = shim.descriptors();
    let mut clients: Vec<_> = (0..64).map(|_| shim.client()).collect();
    let waits: Vec<_> = clients.iter_mut().map(|client| client.send_wait(&shim.id, "")).collect();
    for client in &mut clients {
        assert!(client.state(&shim.id, "").is_ok());
    }
    client.kill(&shim.id, "", 15, true).unwrap();
    client.kill(&shim.id, "", 9, true).unwrap();
    for (client, stream) in clients.iter_mut().zip(waits) {
        assert_eq!(client.answer::<WaitResponse>(stream).unwrap().exit_status, 137);
    }
    drop(clients);
    eventually("the connections to be closed", || shim.descriptors() <= before);
}

/// Calls that take their time do not keep others waiting: all are sent before the first answer.
#[test]
fn calls_overlap() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let execs: Vec<String> = (0..16).map(|number| format!("e{number}")).collect();
    for exec_id in &execs {
        client.exec(id, exec_id, &process(&["sh", "-c", "exit 5"]), |_| {}).unwrap();
    }
    let starts = execs.iter().map(|exec_id| {
        let mut request = containerd_shim_protos::api::StartRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.clone());
        client.send("Start", &request)
    });
    let starts: Vec<_> = starts.collect();
    let mut pids = Vec::new();
    for stream in starts {
        let answer = client.answer::<containerd_shim_protos::api::StartResponse>(stream);
        pids.push(answer.unwrap().pid);
    }
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), execs.len());
    for exec_id in &execs {
        assert_eq!(client.wait(id, exec_id), Ok(5));
        client.delete(id, exec_id).unwrap();
    }
    let mut request = PidsRequest::new();
    request.id = id.to_owned();
    let left: PidsResponse = client.call("Pids", &request).unwrap();
    assert_eq!(left.processes.len(), 1);
}
