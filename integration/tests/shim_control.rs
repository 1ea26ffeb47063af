//! containerd-shim-kiln-v1: kill, pause, resume, update, statistics, checkpoint.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::time::Duration;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, Empty, PauseRequest, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest,
};
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as UnifiedMetrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::proto::Code;
use kiln_integration::containerd::{Containerd, Shim as Runtime};
use kiln_integration::ctr::{BUSYBOX, Ctr};
use kiln_integration::shim::{Shim, process};
use kiln_integration::ttrpc::{Answer, Client, refused};
use kiln_integration::{
    Bundle, Value, cgroup, eventually, fresh_id, json, needs_cgroup_library, needs_shim, proc, skip,
};

/// A call that has nothing but an id.
fn call(client: &mut Client, method: &str, id: &str) -> Answer<()> {
    let mut request = PauseRequest::new();
    request.id = id.to_owned();
    client.call::<Empty>(method, &request).map(drop)
}

fn status(client: &mut Client, id: &str) -> Status {
    client.state(id, "").unwrap().status.enum_value().unwrap()
}

#[test]
fn kill_by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    let script = "trap 'exit 5' USR1; while :; do sleep 0.01; done";
    let task = ctr.detach(&[], &["sh", "-c", script]);
    task.exec(&[], &["true"]).ok();
    // By default TERM, which the first process of a pid namespace does not get.
    task.ctr(&["kill"]).ok();
    assert_eq!(task.status(), "RUNNING");
    task.ctr(&["kill", "--signal", "SIGUSR1"]).ok();
    task.await_status("STOPPED");
    task.ctr(&["kill"]).fails(&["process already finished: not found"]);
    let task = ctr.detach(&[], &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let pid = task.pid();
    eventually("three processes", || cgroup::members(pid).len() == 3);
    let members = cgroup::members(pid);
    task.ctr(&["kill", "--all", "--signal", "9"]).ok();
    task.await_status("STOPPED");
    assert!(members.into_iter().all(|pid| !proc::alive(pid)));
}

#[test]
fn signals() {
    needs_shim!();
    let script = "for s in HUP INT USR2 TERM; do trap \"echo $s\" $s; done; trap 'exit 9' USR1; \
        echo up; while :; do sleep 0.01; done";
    let shim = Shim::start(Bundle::sh(script));
    let (mut client, mut out) = (shim.client(), shim.fifo());
    let mut request = shim.request(&shim.id);
    request.stdout = out.name();
    client.create(&request).unwrap();
    let id = shim.id.as_str();
    client.start(id, "").unwrap();
    out.read_until("up\n");
    for (number, name) in [(1, "HUP\n"), (2, "INT\n"), (12, "USR2\n"), (15, "TERM\n")] {
        client.kill(id, "", number, false).unwrap();
        assert_eq!(out.read_until("\n"), name);
    }
    client.kill(id, "", 0, false).unwrap();
    // Real-time ones, which nobody has a handler for.
    client.exec(id, "e", &process(&["sleep", "1000"]), |_| {}).unwrap();
    client.start(id, "e").unwrap();
    client.kill(id, "e", 0, false).unwrap();
    client.kill(id, "e", 34, false).unwrap();
    assert_eq!(client.wait(id, "e"), Ok(128 + 34));
    for bad in [65, 1000, u32::MAX] {
        assert!(client.kill(id, "", bad, false).is_err(), "{bad}");
        assert!(client.kill(id, "", bad, true).is_err(), "{bad}");
    }
    client.kill(id, "", 10, false).unwrap();
    assert_eq!(client.wait(id, ""), Ok(9));
    let finished = ["process already finished"];
    refused(client.kill(id, "", 9, false), Code::NOT_FOUND, &finished);
    refused(client.kill(id, "e", 9, false), Code::NOT_FOUND, &finished);
    // To all there may be nobody left.
    client.kill(id, "", 9, true).unwrap();
}

/// As when a pod is stopped that has not quite begun.
#[test]
fn one_that_waits_for_its_start() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["sleep", "1000"]));
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.kill(&shim.id, "", 15, false).unwrap();
    assert!(client.wait(&shim.id, "").unwrap() > 128);
    refused(client.start(&shim.id, ""), Code::FAILED_PRECONDITION, &["STOPPED"]);
    client.delete(&shim.id, "").unwrap();
}

#[test]
fn pause_by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    task.ctr(&["pause"]).ok();
    assert_eq!(task.status(), "PAUSED");
    task.ctr(&["pause"]).fails(&["paused"]);
    task.exec(&[], &["true"]).fails(&["paused"]);
    task.ctr(&["resume"]).ok();
    assert_eq!(task.status(), "RUNNING");
    task.exec(&[], &["true"]).ok();
}

#[test]
fn a_paused_container_stands_still() {
    needs_shim!();
    let shim = Shim::start(Bundle::sh("while :; do echo x; done"));
    let (mut client, out) = (shim.client(), shim.home().join("out"));
    let mut request = shim.request(&shim.id);
    request.stdout = format!("file://{}", out.display());
    let id = shim.id.as_str();
    refused(call(&mut client, "Pause", id), Code::NOT_FOUND, &[id]);
    client.create(&request).unwrap();
    client.start(id, "").unwrap();
    let length = || fs::metadata(&out).unwrap().len();
    eventually("output", || length() > 0);
    call(&mut client, "Pause", id).unwrap();
    assert_eq!(status(&mut client, id), Status::PAUSED);
    let before = length();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(length(), before);
    refused(call(&mut client, "Pause", id), Code::FAILED_PRECONDITION, &["paused"]);
    refused(client.delete(id, ""), Code::FAILED_PRECONDITION, &["PAUSED"]);
    call(&mut client, "Resume", id).unwrap();
    refused(call(&mut client, "Resume", id), Code::FAILED_PRECONDITION, &["not paused"]);
    eventually("more output", || length() > before);
    // SIGKILL ends it though it is paused.
    for all in [false, true] {
        call(&mut client, "Pause", id).unwrap();
        client.kill(id, "", 9, all).unwrap();
        assert_eq!(client.wait(id, ""), Ok(137));
        assert_eq!(status(&mut client, id), Status::STOPPED);
        let what = ["not running"];
        refused(call(&mut client, "Pause", id), Code::NOT_FOUND, &what);
        client.delete(id, "").unwrap();
        client.create(&request).unwrap();
        client.start(id, "").unwrap();
    }
}

fn update(client: &mut Client, id: &str, resources: &Value) -> Answer<()> {
    let mut request = UpdateTaskRequest::new();
    request.id = id.to_owned();
    let mut any = Any::new();
    any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned();
    any.value = resources.to_string().into_bytes();
    request.resources = MessageField::some(any);
    client.call::<Empty>("Update", &request).map(drop)
}

#[test]
fn limits_are_changed() {
    needs_shim!();
    for controller in ["memory", "cpu", "pids"] {
        if !cgroup::has(controller) {
            skip!("no {controller} controller");
        }
    }
    let (shim, mut client) = Shim::sleeping();
    let id = shim.id.as_str();
    let pid = client.state(id, "").unwrap().pid.cast_signed();
    let resources = json!({
        "memory": { "limit": 64 << 20 }, "pids": { "limit": 123 },
        "cpu": { "quota": 50_000, "period": 100_000 },
    });
    update(&mut client, id, &resources).unwrap();
    let setting = |controller, v1, v2| cgroup::setting(pid, controller, v1, v2).unwrap();
    let memory = || setting("memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), (64 << 20).to_string());
    assert_eq!(setting("pids", "pids.max", "pids.max"), "123");
    assert!(setting("cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
    // What is refused is said, and changes nothing.
    let refusal = update(&mut client, id, &json!({ "cpu": { "quota": 50_000, "period": 1 } }));
    refused(refusal, Code::UNKNOWN, &["cpu"]);
    refused(update(&mut client, id, &json!([1])), Code::INVALID_ARGUMENT, &["resources"]);
    refused(update(&mut client, id, &json!({ "cpu": 7 })), Code::INVALID_ARGUMENT, &["resources"]);
    assert_eq!(memory(), (64 << 20).to_string());
    client.kill(id, "", 9, false).unwrap();
    assert_eq!(client.wait(id, ""), Ok(137));
    assert!(update(&mut client, id, &resources).is_err());
}

fn stats(client: &mut Client, id: &str) -> Any {
    let mut request = StatsRequest::new();
    request.id = id.to_owned();
    client.call::<StatsResponse>("Stats", &request).unwrap().stats.unwrap()
}

#[test]
fn statistics() {
    needs_shim!();
    if !cgroup::has("memory") {
        skip!("no memory controller");
    }
    let script = "x=$(head -c 3000000 /dev/zero | tr '\\0' x); echo; i=0; \
        while test $i -lt 20000; do i=$((i + 1)); done; echo done; sleep 1000 & wait";
    let bundle = Bundle::sh(script).set("/linux/resources/memory/limit", json!(64 << 20));
    let shim = Shim::start(bundle.set("/linux/resources/pids/limit", json!(50)));
    let (mut client, mut out) = (shim.client(), shim.fifo());
    let mut request = shim.request(&shim.id);
    request.stdout = out.name();
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    out.read_until("done");
    let any = stats(&mut client, &shim.id);
    let (memory, limit, cpu, pids) = if cgroup::is_v2() {
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let all = UnifiedMetrics::parse_from_bytes(&any.value).unwrap();
        (all.memory.usage, all.memory.usage_limit, all.cpu.usage_usec * 1000, all.pids.current)
    } else {
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let all = Metrics::parse_from_bytes(&any.value).unwrap();
        let memory = &all.memory.usage;
        assert!(memory.max >= memory.usage, "{memory:?}");
        // The kernel adds these up every two seconds.
        eventually("the resident set", || {
            let all = Metrics::parse_from_bytes(&stats(&mut client, &shim.id).value).unwrap();
            all.memory.total_rss >= 3_000_000 && all.memory.rss >= 3_000_000
        });
        assert_eq!(all.pids.limit, 50);
        (memory.usage, memory.limit, all.cpu.usage.total, all.pids.current)
    };
    assert!((3_000_000..64 << 20).contains(&memory), "{memory}");
    assert_eq!(limit, 64 << 20);
    assert!((1_000_000..10_000_000_000).contains(&cpu), "{cpu} ns");
    assert!((1..=2).contains(&pids), "{pids}");
    client.kill(&shim.id, "", 9, false).unwrap();
    assert_eq!(client.wait(&shim.id, ""), Ok(137));
    // Of what has ended, too, as long as the cgroup is there.
    assert!(!stats(&mut client, &shim.id).value.is_empty());
}

/// The same fields as runc's shim has for the same kind of container.
#[test]
fn statistics_as_runcs_shim_has_them() {
    needs_shim!();
    needs_cgroup_library!();
    let ctr = Ctr::new();
    let ctr: &Containerd = &ctr;
    let of = |shim: Runtime| {
        let id = fresh_id();
        let flags = ["--detach", "--null-io"];
        ctr.run_cli(shim, &flags, BUSYBOX, &[&id, "sleep", "1000"]).output().ok();
        let metrics = ctr.ctr(&["tasks", "metrics", "--format", "json", &id]).ok().stdout;
        ctr.ctr(&["tasks", "delete", "--force", &id]).ok();
        ctr.ctr(&["containers", "delete", &id]).ok();
        metrics.parse::<Value>().unwrap()
    };
    // What the first has to read from the disk, which is counted, the second finds in memory.
    let second = |shim| {
        of(shim);
        of(shim)
    };
    let [kiln, runc] = [Runtime::Kiln, Runtime::Runc].map(second);
    let mut missing = Vec::new();
    compare("", &runc, &kiln, &mut missing);
    assert!(missing.is_empty(), "{missing:#?}\nrunc {runc:#}\nkiln {kiln:#}");
}

/// Notes what `theirs` has, and `ours` has not: fields, entries of lists, and values that are 0.
fn compare(path: &str, theirs: &Value, ours: &Value, missing: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (name, value) in theirs {
                let other = ours.get(name).unwrap_or(&Value::Null);
                compare(&format!("{path}.{name}"), value, other, missing);
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (at, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                compare(&format!("{path}[{at}]"), theirs, ours, missing);
            }
        }
        _ if theirs == ours || theirs.is_number() && ours.is_number() => {}
        _ => missing.push(format!("{path}: {theirs} there, {ours} here")),
    }
}

/// CRIU does not work on every kernel: then its reason comes through.
#[test]
fn checkpoint() {
    needs_shim!();
    let (shim, mut client) = Shim::sleeping();
    let images = shim.home().join("images");
    let mut request = CheckpointTaskRequest::new();
    request.id.clone_from(&shim.id);
    request.path = images.to_str().unwrap().to_owned();
    match client.call::<Empty>("Checkpoint", &request) {
        Ok(_) => {
            assert!(images.join("inventory.img").exists());
            assert!(shim.events.of(&shim.id).contains(&"checkpointed".to_owned()));
        }
        Err(refused) => assert!(refused.text.to_lowercase().contains("criu"), "{refused:?}"),
    }
    // Left running, as was asked for.
    assert_eq!(status(&mut client, &shim.id), Status::RUNNING);
    let mut text = String::new();
    let list = fs::File::open(format!("/proc/{}/comm", client.state(&shim.id, "").unwrap().pid));
    list.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "sleep\n");
}

#[test]
fn checkpoint_by_ctr() {
    needs_shim!();
    let ctr = Ctr::new();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    let outcome = task.ctr(&["checkpoint", "--image-path", images.to_str().unwrap()]);
    if !outcome.status.success() {
        outcome.fails(&["criu"]);
    }
    assert_eq!(task.status(), "RUNNING");
}
