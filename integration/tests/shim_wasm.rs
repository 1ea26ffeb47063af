//! wasm containers under containerd-shim-kiln-v1: forks of the pod's warm parent, otherwise as any.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::time::Instant;

use containerd_shim_protos::api::{CreateTaskRequest, PauseRequest, Status};
use containerd_shim_protos::ttrpc::proto::Code;
use kiln_integration::ctr::Ctr;
use kiln_integration::image::Image;
use kiln_integration::shim::{Shim, await_end, process};
use kiln_integration::ttrpc::{Client, refused};
use kiln_integration::{
    Bundle, eventually, examples, fresh_id, json, needs_shim, needs_wasm, patience, proc,
};
use rustix::process::{Pid, Signal, kill_process};

const VARIANT: &str = "module.wasm.image/variant=compat";

/// The module in a shim of its own, and a FIFO for what it says.
fn module(name: &str, arguments: &[&str]) -> (Shim, Client, CreateTaskRequest) {
    let shim = Shim::start(Bundle::wasm(name, arguments));
    let (client, request) = (shim.client(), shim.request(&shim.id));
    (shim, client, request)
}

/// The pod's process that has the engine loaded.
fn warm_parent(shim: &Shim) -> Option<i32> {
    let path = format!("/proc/{0}/task/{0}/children", shim.pid);
    let children = fs::read_to_string(path).unwrap();
    let line = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.find(|pid| line(pid).ends_with("\0warm\0"))
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    await_end(pid);
}

#[test]
fn by_ctr() {
    needs_shim!();
    needs_wasm!();
    let ctr = Ctr::new();
    for (example, arguments, code, text) in [
        ("hello", &["/hello.wasm"][..], 0, "hello from wasm\n"),
        ("exit", &["/exit.wasm", "42"][..], 42, ""),
        ("trap", &["/trap.wasm"][..], 134, ""),
    ] {
        let name = format!("localhost/kiln-test/{example}:1");
        ctr.import(&Image::of_example(&name, &format!("{example}.wasm"), ctr.home()));
        let id = fresh_id();
        let words = [&[id.as_str()], arguments].concat();
        let run = ctr.run_image(&name, &["--rm", "--annotation", VARIANT], &words);
        let outcome = run.output().exits(code);
        assert!(outcome.stdout.contains(text), "{outcome}");
    }
}

#[test]
fn a_life() {
    needs_shim!();
    needs_wasm!();
    let (shim, mut client, mut request) = module("hello", &[]);
    let mut out = shim.fifo();
    request.stdout = out.name();
    let pid = client.create(&request).unwrap();
    // Its parent is the shim, not the warm parent that it is a fork of, as soon as the process that
    // was forked in between has ended.
    let parent = || proc::status_field(pid.cast_signed(), "PPid").unwrap();
    eventually("the shim to be init's parent", || parent() == shim.pid.to_string());
    assert_eq!(client.start(&shim.id, ""), Ok(pid));
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
    assert!(String::from_utf8(out.read_to_end()).unwrap().contains("hello from wasm"));
    assert_eq!(client.delete(&shim.id, "").unwrap().exit_status, 0);
    shim.events.expect(&shim.id, &["create", "start", "exit 0", "delete 0"]);
}

/// Though it is the first process of its pid namespace.
#[test]
fn sigterm_ends_it_at_once() {
    needs_shim!();
    needs_wasm!();
    let (shim, mut client, request) = module("loop", &[]);
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    let wait = client.send_wait(&shim.id, "");
    let since = Instant::now();
    client.kill(&shim.id, "", 15, false).unwrap();
    let answer = client.answer::<containerd_shim_protos::api::WaitResponse>(wait).unwrap();
    assert_eq!(answer.exit_status, 143);
    assert!(since.elapsed() < patience(1), "{:?}", since.elapsed());
}

#[test]
fn standard_input_and_a_terminal() {
    needs_shim!();
    needs_wasm!();
    let (shim, mut client, mut request) = module("cat", &[]);
    let (stdin, mut out) = (shim.fifo(), shim.fifo());
    (request.stdin, request.stdout) = (stdin.name(), out.name());
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    stdin.writer().write_all(b"through wasm\n").unwrap();
    assert_eq!(out.read_until("\n"), "through wasm\n");
    client.close_stdin(&shim.id, "").unwrap();
    assert_eq!(client.wait(&shim.id, ""), Ok(0));

    let bundle = Bundle::wasm("cat", &[]).set("/process/terminal", json!(true));
    let shim = Shim::start(bundle);
    let (stdin, mut out) = (shim.fifo(), shim.fifo());
    let mut request = shim.request(&shim.id);
    (request.stdin, request.stdout) = (stdin.name(), out.name());
    request.terminal = true;
    let mut client = shim.client();
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    stdin.writer().write_all(b"typed\n").unwrap();
    // By the terminal, and by the module.
    assert_eq!(out.read_until("typed\r\ntyped\r\n"), "typed\r\ntyped\r\n");
    stdin.writer().write_all(b"\x04").unwrap();
    assert_eq!(client.wait(&shim.id, ""), Ok(0));
}

#[test]
fn exec_of_wasm() {
    needs_shim!();
    needs_wasm!();
    let bundle = Bundle::wasm("loop", &[]);
    for name in ["hello", "exit", "trap"] {
        let name = format!("{name}.wasm");
        fs::copy(examples::find(&name).unwrap(), bundle.rootfs().join(&name)).unwrap();
    }
    let shim = Shim::start(bundle);
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.start(&shim.id, "").unwrap();
    let id = shim.id.as_str();
    let mut run = |args: &[&str]| {
        let (exec_id, mut out) = (fresh_id(), shim.fifo());
        client.exec(id, &exec_id, &process(args), |request| request.stdout = out.name())?;
        let started = client.start(id, &exec_id);
        let ended = started.and_then(|_| client.wait(id, &exec_id));
        client.delete(id, &exec_id)?;
        ended.map(|status| (status, String::from_utf8(out.read_to_end()).unwrap()))
    };
    let (status, text) = run(&["/hello.wasm"]).unwrap();
    assert!(status == 0 && text.contains("hello from wasm"), "{status} {text:?}");
    assert_eq!(run(&["/exit.wasm", "7"]).unwrap().0, 7);
    assert_eq!(run(&["/trap.wasm"]).unwrap().0, 134);
    // There is nothing else in such an image, which is said as of any program.
    refused(run(&["/bin/sh"]), Code::UNKNOWN, &["/bin/sh", "no such file or directory"]);
    refused(run(&["/none.wasm"]), Code::UNKNOWN, &["/none.wasm", "no such file or directory"]);
    eventually("what has ended to be reaped", || shim.zombies().is_empty());
}

#[test]
fn what_is_refused_says_why_and_leaves_nothing() {
    needs_shim!();
    needs_wasm!();
    let shim = Shim::start(Bundle::module("broken.wasm", b"\0asm\x01\0\0\0\xff\xff\xff"));
    let mut client = shim.client();
    let refusal = client.create(&shim.request(&shim.id)).unwrap_err();
    assert!(refusal.text.contains("broken.wasm"), "{refusal:?}");
    assert!(!shim.root().join(&shim.id).exists());
    refused(client.state(&shim.id, ""), Code::NOT_FOUND, &[]);
    let missing = Bundle::wasm("hello", &[]).args(&["/missing.wasm"]);
    let shim = Shim::start(missing);
    let answer = shim.client().create(&shim.request(&shim.id));
    refused(answer, Code::UNKNOWN, &["/missing.wasm", "no such file or directory"]);
}

#[test]
fn paused_and_resumed() {
    needs_shim!();
    needs_wasm!();
    let (shim, mut client, request) = module("loop", &[]);
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    let mut pause = PauseRequest::new();
    pause.id.clone_from(&shim.id);
    for (method, status) in [("Pause", Status::PAUSED), ("Resume", Status::RUNNING)] {
        client.call::<containerd_shim_protos::api::Empty>(method, &pause).unwrap();
        let state = client.state(&shim.id, "").unwrap();
        assert_eq!(state.status.enum_value(), Ok(status));
    }
}

/// What was made of it lives on, and the next container is made all the same.
#[test]
fn the_warm_parent_is_killed() {
    needs_shim!();
    needs_wasm!();
    let pod = |name| Bundle::wasm(name, &[]).annotation("io.kubernetes.cri.sandbox-id", "the pod");
    let mut shim = Shim::start(pod("loop"));
    let others: Vec<String> = (0..3).map(|_| shim.add(pod("hello"))).collect();
    let mut client = shim.client();
    let pid = client.create(&shim.request(&shim.id)).unwrap().cast_signed();
    client.start(&shim.id, "").unwrap();
    let parent = warm_parent(&shim).unwrap();
    kill(parent);
    assert!(proc::alive(pid));
    assert_eq!(client.run(&shim.request(&others[0])), 0);
    let next = warm_parent(&shim).unwrap();
    assert_ne!(next, parent);
    // Stopped, it takes the order, and dies before it carries it out.
    kill_process(Pid::from_raw(next).unwrap(), Signal::STOP).unwrap();
    let stream = client.send("Create", &shim.request(&others[1]));
    assert_eq!(client.state(&shim.id, "").unwrap().pid.cast_signed(), pid);
    kill(next);
    let created = client.answer::<containerd_shim_protos::api::CreateTaskResponse>(stream);
    assert!(created.unwrap().pid > 0);
    client.start(&others[1], "").unwrap();
    assert_eq!(client.wait(&others[1], ""), Ok(0));
    // An exec that it was to make is refused; the next is not.
    let next = warm_parent(&shim).unwrap();
    kill_process(Pid::from_raw(next).unwrap(), Signal::STOP).unwrap();
    let modules = process(&["/loop.wasm"]);
    client.exec(&shim.id, "e", &modules, |_| {}).unwrap();
    let mut request = containerd_shim_protos::api::StartRequest::new();
    (request.id, request.exec_id) = (shim.id.clone(), "e".to_owned());
    let stream = client.send("Start", &request);
    assert_eq!(client.state(&shim.id, "").unwrap().pid.cast_signed(), pid);
    kill(next);
    let started = client.answer::<containerd_shim_protos::api::StartResponse>(stream);
    match started {
        // Another has done it.
        Ok(_) => client.kill(&shim.id, "e", 9, false).unwrap(),
        Err(refused) => assert!(!refused.text.is_empty()),
    }
    client.exec(&shim.id, "f", &modules, |_| {}).unwrap();
    client.start(&shim.id, "f").unwrap();
    client.kill(&shim.id, "f", 9, false).unwrap();
    assert_eq!(client.wait(&shim.id, "f"), Ok(137));
    assert_eq!(client.run(&shim.request(&others[2])), 0);
}

#[test]
fn the_warm_parent_ends_with_the_shim() {
    needs_shim!();
    needs_wasm!();
    let (shim, mut client, request) = module("hello", &[]);
    assert_eq!(client.run(&request), 0);
    let parent = warm_parent(&shim).unwrap();
    client.delete(&shim.id, "").unwrap();
    client.shutdown(&shim.id, false).unwrap();
    await_end(shim.pid);
    await_end(parent);
    // And when it is killed.
    let (shim, _, _) = module("hello", &[]);
    eventually("the warm parent", || warm_parent(&shim).is_some());
    let parent = warm_parent(&shim).unwrap();
    kill(shim.pid);
    await_end(parent);
    assert_eq!(shim.action(&shim.id, &["delete"], b"").status, 0);
}

#[test]
fn many_in_a_row_leave_nothing_open() {
    needs_shim!();
    needs_wasm!();
    let (shim, mut client, request) = module("hello", &[]);
    let count = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut before = None;
    for round in 0..kiln_integration::rounds(50) {
        assert_eq!(client.run(&request), 0);
        client.delete(&shim.id, "").unwrap();
        if round == 1 {
            before = Some((shim.descriptors(), count(warm_parent(&shim).unwrap())));
        }
    }
    let after = (shim.descriptors(), count(warm_parent(&shim).unwrap()));
    assert_eq!(Some(after), before);
}
