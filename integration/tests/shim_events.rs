//! The events of containerd-shim-kiln-v1: all of them, each in its place, none lost.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{Empty, PauseRequest};
use kiln_integration::command::Running;
use kiln_integration::ctr::Ctr;
use kiln_integration::shim::{Shim, await_end, process};
use kiln_integration::{
    Bundle, Value, cgroup, eventually, fresh_id, json, needs_shim, rounds, skip,
};

/// What `ctr events` has printed about each container, without `/tasks/` before.
fn by_container(printed: &str) -> BTreeMap<String, Vec<String>> {
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in printed.lines() {
        let Some((before, json)) = line.split_once(" {") else { continue };
        let Some(topic) = before.rsplit(' ').next().unwrap().strip_prefix("/tasks/") else {
            continue;
        };
        let json: Value = format!("{{{json}").parse().unwrap();
        let id = json["container_id"].as_str().unwrap().to_owned();
        events.entry(id).or_default().push(topic.to_owned());
    }
    events
}

#[test]
fn by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    let mut listener = ctr.ctr_cli(&["events"]).spawn();
    // It has subscribed when it hears of something.
    eventually("the first event", || {
        ctr.run(&[], &["true"]).ok();
        !listener.stdout().is_empty()
    });
    let ids: Vec<String> = (0..rounds(20)).map(|_| fresh_id()).collect();
    std::thread::scope(|scope| {
        for half in ids.chunks(ids.len().div_ceil(2)) {
            let ctr = &ctr;
            scope.spawn(move || {
                for id in half {
                    ctr.run_as(id, &["--rm"], &["true"]).output().ok();
                }
            });
        }
    });
    let task = ctr.detach(&[], &["sleep", "1000"]);
    task.exec(&[], &["true"]).ok();
    task.ctr(&["pause"]).ok();
    task.ctr(&["resume"]).ok();
    task.ctr(&["kill", "-s", "KILL"]).ok();
    let heard = |listener: &mut Running, id: &str| {
        by_container(&listener.stdout()).remove(id).unwrap_or_default()
    };
    eventually("the exit", || {
        heard(&mut listener, &task.id).iter().filter(|topic| *topic == "exit").count() == 2
    });
    let expected =
        ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit"];
    assert_eq!(heard(&mut listener, &task.id), expected);
    for id in &ids {
        assert_eq!(heard(&mut listener, id), ["create", "start", "exit", "delete"], "{id}");
    }
    listener.signal(rustix::process::Signal::TERM);
    let _ = listener.try_wait();
}

/// Its exit is not told before its start, nor its start after its deletion.
#[test]
fn containers_that_end_at_once() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["true"]));
    let (mut client, request) = (shim.client(), shim.request(&shim.id));
    let count = rounds(200) as usize;
    for _ in 0..count {
        assert_eq!(client.run(&request), 0);
        client.delete(&shim.id, "").unwrap();
    }
    eventually("all events", || shim.events.of(&shim.id).len() == 4 * count);
    for life in shim.events.of(&shim.id).chunks(4) {
        assert_eq!(life, ["create", "start", "exit 0", "delete 0"]);
    }
    for life in shim.events.all().chunks(4) {
        assert!(life.iter().all(|event| event.pid == life[0].pid && event.pid > 0), "{life:?}");
    }
    assert!(shim.events.namespaces().iter().all(|name| *name == shim.namespace));
}

#[test]
fn execs_that_end_at_once() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let mut expected = vec!["create".to_owned(), "start".to_owned()];
    for number in 0..rounds(100) {
        let exec_id = format!("e{number}");
        client.exec(&shim.id, &exec_id, &process(&["sh", "-c", "exit 3"]), |_| {}).unwrap();
        let pid = client.start(&shim.id, &exec_id).unwrap();
        assert_eq!(client.wait(&shim.id, &exec_id), Ok(3));
        client.delete(&shim.id, &exec_id).unwrap();
        for words in ["exec-added E", "exec-started E", "exit E 3"] {
            expected.push(words.replace('E', &exec_id));
        }
        eventually("its events", || shim.events.all().len() == expected.len());
        let events = shim.events.all();
        assert!(events[events.len() - 2..].iter().all(|event| event.pid == pid), "{events:?}");
    }
    assert_eq!(shim.events.of(&shim.id), expected);
}

#[test]
fn paused_and_resumed() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let mut request = PauseRequest::new();
    request.id.clone_from(&shim.id);
    for method in ["Pause", "Resume"] {
        client.call::<Empty>(method, &request).unwrap();
    }
    // What is refused is no event.
    assert!(client.call::<Empty>("Resume", &request).is_err());
    client.kill(&shim.id, "", 9, false).unwrap();
    assert_eq!(client.wait(&shim.id, ""), Ok(137));
    shim.events.expect(&shim.id, &["create", "start", "paused", "resumed", "exit 137"]);
}

/// Before the exit that it leads to.
#[test]
fn out_of_memory() {
    needs_shim!();
    if !cgroup::has("memory") {
        skip!("no memory controller");
    }
    for _ in 0..rounds(10) {
        let bundle = Bundle::new().args(&["tail", "/dev/zero"]);
        let bundle = bundle.set("/linux/resources/memory/limit", json!(16 << 20));
        let shim = Shim::start(bundle.set("/linux/resources/memory/swap", json!(16 << 20)));
        let mut client = shim.client();
        assert_eq!(client.run(&shim.request(&shim.id)), 137);
        client.delete(&shim.id, "").unwrap();
        let expected = ["create", "start", "oom", "exit 137", "delete 137"];
        shim.events.expect(&shim.id, &expected);
    }
}

/// One of its processes, not the first: that goes on.
#[test]
fn out_of_memory_beside_init() {
    needs_shim!();
    if !cgroup::has("memory") {
        skip!("no memory controller");
    }
    let bundle = Bundle::sh("tail /dev/zero; exit 4");
    let bundle = bundle.set("/linux/resources/memory/limit", json!(16 << 20));
    let shim = Shim::start(bundle.set("/linux/resources/memory/swap", json!(16 << 20)));
    assert_eq!(shim.client().run(&shim.request(&shim.id)), 4);
    shim.events.expect(&shim.id, &["create", "start", "oom", "exit 4"]);
}

#[test]
fn kept_while_containerd_is_away() {
    needs_shim!();
    let (mut shim, mut client) = Shim::sleeping();
    let id = shim.id.clone();
    shim.events.expect(&id, &["create", "start"]);
    shim.events.stop();
    let mut expected = vec!["create".to_owned(), "start".to_owned()];
    for number in 0..20 {
        let exec_id = format!("e{number}");
        client.exec(&id, &exec_id, &process(&["true"]), |_| {}).unwrap();
        client.start(&id, &exec_id).unwrap();
        assert_eq!(client.wait(&id, &exec_id), Ok(0));
        for words in ["exec-added E", "exec-started E", "exit E 0"] {
            expected.push(words.replace('E', &exec_id));
        }
    }
    client.kill(&id, "", 9, false).unwrap();
    assert_eq!(client.wait(&id, ""), Ok(137));
    client.delete(&id, "").unwrap();
    expected.extend(["exit 137".to_owned(), "delete 137".to_owned()]);
    // It does not knock all the time.
    let before = shim.cpu_time();
    std::thread::sleep(Duration::from_millis(600));
    assert!(shim.cpu_time().saturating_sub(before) < Duration::from_millis(50));
    assert_eq!(shim.events.of(&id).len(), 2);
    shim.events.resume();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    shim.events.expect(&id, &expected);
}

/// Taken, but not confirmed, when the connection ends: then it is sent once more, and after it the
/// next.
#[test]
fn what_was_not_confirmed_is_sent_again() {
    needs_shim!();
    let (mut shim, mut client) = Shim::sleeping();
    let id = shim.id.clone();
    shim.events.expect(&id, &["create", "start"]);
    shim.events.be_silent(true);
    client.exec(&id, "e", &process(&["true"]), |_| {}).unwrap();
    eventually("the event", || shim.events.of(&id).len() == 3);
    client.exec(&id, "f", &process(&["true"]), |_| {}).unwrap();
    assert!(client.state(&id, "").is_ok());
    assert_eq!(shim.events.of(&id).len(), 3, "one at a time");
    shim.events.stop();
    shim.events.be_silent(false);
    shim.events.resume();
    let expected = ["create", "start", "exec-added e", "exec-added e", "exec-added f"];
    shim.events.expect(&id, &expected);
}

/// And with them the shim ends, as soon as they are taken.
#[test]
fn the_last_ones_are_delivered_before_the_end() {
    needs_shim!();
    let (mut shim, mut client) = Shim::sleeping();
    let id = shim.id.clone();
    shim.events.expect(&id, &["create", "start"]);
    shim.events.stop();
    client.kill(&id, "", 9, false).unwrap();
    assert_eq!(client.wait(&id, ""), Ok(137));
    client.delete(&id, "").unwrap();
    client.shutdown(&id, false).unwrap();
    let since = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    shim.events.resume();
    await_end(shim.pid);
    if since.elapsed() < Duration::from_secs(2) {
        shim.events.expect(&id, &["create", "start", "exit 137", "delete 137"]);
    }
}
