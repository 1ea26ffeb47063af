//! The action `delete` of containerd-shim-kiln-v1: containerd cleans up after a shim that was
//! killed.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse};
use containerd_shim_protos::protobuf::Message;
use kiln_integration::shim::{Shim, await_end, process};
use kiln_integration::{Bundle, json, leftovers, needs_shim, proc};
use rustix::process::{Pid, Signal, kill_process};

fn sleeper() -> Bundle {
    Bundle::new().args(&["sleep", "1000"])
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    await_end(pid);
}

/// Has containerd's part done: `delete`, in the bundle, with its path.
fn delete(shim: &Shim, id: &str) -> DeleteResponse {
    let bundle = shim.bundle(id);
    let done = shim.action(id, &["-bundle", bundle.to_str().unwrap(), "delete"], b"");
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    DeleteResponse::parse_from_bytes(&done.stdout).unwrap()
}

#[test]
fn a_running_container() {
    needs_shim!();
    let shim = Shim::start(Bundle::sh("sleep 1000 & sleep 1000 & wait"));
    let (mut client, id) = (shim.client(), shim.id.as_str());
    let pid = client.create(&shim.request(id)).unwrap();
    client.start(id, "").unwrap();
    client.exec(id, "e", &process(&["sleep", "1000"]), |_| {}).unwrap();
    let exec = client.start(id, "e").unwrap();
    kill(shim.pid);
    assert!(proc::alive(pid.cast_signed()), "a container outlives its shim");
    let response = delete(&shim, id);
    assert_eq!((response.pid, response.exit_status), (pid, 137));
    assert!(response.exited_at.seconds > 1_700_000_000);
    assert!(!proc::alive(pid.cast_signed()) && !proc::alive(exec.cast_signed()));
    assert_eq!(shim.leftovers(), [""; 0]);
    // Again: containerd may have been killed before it knew.
    let response = delete(&shim, id);
    assert_eq!((response.pid, response.exit_status), (0, 137));
}

#[test]
fn before_it_was_started_and_after_its_end() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let pid = shim.client().create(&shim.request(&shim.id)).unwrap();
    kill(shim.pid);
    assert_eq!(delete(&shim, &shim.id).pid, pid);
    assert_eq!(shim.leftovers(), [""; 0]);

    let shim = Shim::start(Bundle::new());
    let mut client = shim.client();
    assert_eq!(client.run(&shim.request(&shim.id)), 0);
    kill(shim.pid);
    delete(&shim, &shim.id);
    assert_eq!(shim.leftovers(), [""; 0]);

    // Nothing was made yet.
    let shim = Shim::start(sleeper());
    kill(shim.pid);
    assert_eq!(delete(&shim, &shim.id).pid, 0);
    assert_eq!(shim.leftovers(), [""; 0]);
}

#[test]
fn a_paused_container() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.start(&shim.id, "").unwrap();
    let mut request = containerd_shim_protos::api::PauseRequest::new();
    request.id.clone_from(&shim.id);
    client.call::<containerd_shim_protos::api::Empty>("Pause", &request).unwrap();
    kill(shim.pid);
    delete(&shim, &shim.id);
    assert_eq!(shim.leftovers(), [""; 0]);
}

/// A host's pid namespace keeps what init leaves behind.
#[test]
fn a_shared_pid_namespace() {
    needs_shim!();
    let shim = Shim::start(Bundle::sh("sleep 1000 & wait").without_namespace("pid"));
    let mut client = shim.client();
    let pid = client.create(&shim.request(&shim.id)).unwrap().cast_signed();
    client.start(&shim.id, "").unwrap();
    kiln_integration::eventually("two processes", || {
        kiln_integration::cgroup::members(pid).len() == 2
    });
    kill(shim.pid);
    kill(pid);
    delete(&shim, &shim.id);
    assert_eq!(shim.leftovers(), [""; 0]);
}

/// The rootfs that containerd had it mount.
#[test]
fn mounts() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| shim.home().join(name));
    fs::rename(shim.bundle(&shim.id).join("rootfs"), &lower).unwrap();
    for dir in [&upper, &work] {
        fs::create_dir(dir).unwrap();
    }
    let mut mount = containerd_shim_protos::types::mount::Mount::new();
    (mount.type_, mount.source) = ("overlay".to_owned(), "overlay".to_owned());
    mount.options = [("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)]
        .map(|(name, dir)| format!("{name}={}", dir.display()))
        .to_vec();
    let request = CreateTaskRequest { rootfs: vec![mount], ..shim.request(&shim.id) };
    let mut client = shim.client();
    client.create(&request).unwrap();
    client.start(&shim.id, "").unwrap();
    let mounted =
        || proc::mounts("self").iter().any(|at| at.point.starts_with(shim.bundle(&shim.id)));
    assert!(mounted());
    kill(shim.pid);
    delete(&shim, &shim.id);
    assert!(!mounted());
    assert_eq!(shim.leftovers(), [""; 0]);
}

/// Each container is deleted for itself, the socket with the first.
#[test]
fn a_pod() {
    needs_shim!();
    let pod = || sleeper().annotation("io.kubernetes.cri.sandbox-id", "the pod");
    let mut shim = Shim::start(pod());
    let other = shim.add(pod());
    assert_eq!(shim.action(&other, &["start"], b"").status, 0);
    let mut client = shim.client();
    let pids = [&shim.id, &other].map(|id| {
        let pid = client.create(&shim.request(id)).unwrap();
        client.start(id, "").unwrap();
        pid
    });
    kill(shim.pid);
    assert_eq!(delete(&shim, &other).pid, pids[1]);
    assert!(proc::alive(pids[0].cast_signed()), "only the one that was named");
    assert_eq!(delete(&shim, &shim.id).pid, pids[0]);
    assert_eq!(shim.leftovers(), [""; 0]);
}

/// While a hook keeps a create busy.
#[test]
fn in_the_middle_of_a_creation() {
    needs_shim!();
    let seconds = format!("1000.{}", std::process::id());
    let hook = json!({ "path": "/bin/sleep", "args": ["sleep", seconds] });
    let shim = Shim::start(sleeper().push("/hooks/createRuntime", hook));
    let hooks = || {
        let line =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        proc::pids().into_iter().filter(|pid| line(pid).contains(&seconds)).collect::<Vec<_>>()
    };
    let mut client = shim.client();
    client.send("Create", &shim.request(&shim.id));
    let state = shim.root().join(&shim.id);
    kiln_integration::eventually("the hook", || !hooks().is_empty());
    assert!(state.join("state.json").exists());
    // It answers others meanwhile.
    assert!(client.state(&shim.id, "").is_ok());
    kill(shim.pid);
    delete(&shim, &shim.id);
    assert_eq!(shim.leftovers(), [""; 0]);
    // The hook itself is the host's: it goes on, as under runc.
    for hook in hooks() {
        kill(hook);
    }
}

/// The shim of another container, which lives, keeps its socket.
#[test]
fn a_shim_that_lives_keeps_its_socket() {
    needs_shim!();
    let mut shim = Shim::start(sleeper());
    assert!(shim.client().create(&shim.request(&shim.id)).is_ok());
    // Of another container of the pod. One without containers would be told to end.
    let other = shim.add(sleeper());
    delete(&shim, &other);
    assert!(shim.client().state(&shim.id, "").is_ok());
    assert!(leftovers::find(&shim.id, &shim.root(), shim.home()).len() > 1);
}
