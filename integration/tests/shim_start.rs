//! The actions of containerd-shim-kiln-v1, started as containerd starts it: `start` in both forms,
//! one shim for a pod, the socket and who may use it, `Shutdown`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use kiln_integration::containerd::shim_binary;
use kiln_integration::shim::{Done, Shim, any, await_end};
use kiln_integration::{Bundle, Cli, Value, eventually, needs_shim, proc};

const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const GROUP: &str = "io.containerd.runc.v2.group";

fn sleeper() -> Bundle {
    Bundle::new().args(&["sleep", "1000"])
}

/// What `start` prints.
fn address(done: &Done) -> &str {
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    std::str::from_utf8(&done.stdout).unwrap()
}

/// What containerd 2.3 sends.
fn parameters(shim: &Shim) -> BootstrapParams {
    let mut parameters = BootstrapParams::new();
    parameters.instance_id.clone_from(&shim.id);
    parameters.namespace.clone_from(&shim.namespace);
    parameters.containerd_ttrpc_address = shim.events.path().to_str().unwrap().to_owned();
    parameters.containerd_grpc_address = shim.home().join("c.sock").to_str().unwrap().to_owned();
    parameters
}

#[test]
fn the_answer_is_an_address() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let folder = shim.bundle(&shim.id);
    let address = fs::read_to_string(folder.join("address")).unwrap();
    assert_eq!(address, format!("unix://{}", shim.socket.display()));
    assert!(shim.socket.starts_with("/run/containerd/s"));
    // A file that can be looked at, not an abstract name.
    assert_eq!(fs::read_to_string(folder.join("shim.pid")).unwrap(), shim.pid.to_string());
    assert!(proc::alive(shim.pid));
}

#[test]
fn the_answer_is_a_message_for_who_sends_one() {
    needs_shim!();
    let mut shim = Shim::prepare(sleeper());
    let mut parameters = parameters(&shim);
    let sockets = shim.home().join("sockets");
    parameters.socket_dir = Some(sockets.to_str().unwrap().to_owned());
    let done = shim.action(&shim.id, &["start"], &parameters.write_to_bytes().unwrap());
    let answer = BootstrapResult::parse_from_bytes(address(&done).as_bytes()).unwrap();
    assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));
    shim.runs_at(&answer.address);
    assert!(shim.socket.starts_with(&sockets), "{}", shim.socket.display());
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    shim.events.expect(&shim.id, &["create"]);
    assert_eq!(shim.events.namespaces(), [shim.namespace.as_str()]);

    let mut other = Shim::prepare(sleeper());
    parameters.instance_id = "other".to_owned();
    let done = other.action(&other.id, &["start"], &parameters.write_to_bytes().unwrap());
    assert_eq!((done.status, done.stdout.len()), (1, 0));
    assert!(done.stderr.contains("stdin: is for"), "{done:?}");
    other.pid = 0;
}

#[test]
fn one_shim_for_a_pod() {
    needs_shim!();
    for name in [SANDBOX, GROUP] {
        let pod = || sleeper().annotation(name, "the pod");
        let mut shim = Shim::start(pod());
        let others = [shim.add(pod()), shim.add(pod())];
        let alone = shim.add(sleeper().annotation(name, "another pod"));
        let mut client = shim.client();
        client.create(&shim.request(&shim.id)).unwrap();
        client.start(&shim.id, "").unwrap();
        for other in &others {
            let done = shim.action(other, &["start"], b"");
            assert_eq!(address(&done), format!("unix://{}", shim.socket.display()));
            client.create(&shim.request(other)).unwrap();
            client.start(other, "").unwrap();
            let written = fs::read_to_string(shim.bundle(other).join("address")).unwrap();
            assert_eq!(written, address(&done));
        }
        let done = shim.action(&alone, &["start"], b"");
        let socket = Path::new(address(&done).strip_prefix("unix://").unwrap());
        assert_ne!(socket, shim.socket);
        let mut other = kiln_integration::ttrpc::Client::connect(socket);
        other.shutdown(&alone, false).unwrap();
        eventually("the other pod's shim to end", || !socket.exists());
        // Refused while there are containers.
        client.shutdown(&shim.id, false).unwrap();
        client.kill(&others[0], "", 9, false).unwrap();
        assert_eq!(client.wait(&others[0], ""), Ok(137));
        client.delete(&others[0], "").unwrap();
        assert!(client.state(&others[1], "").is_ok());
    }
}

/// Which of them makes the shim is a matter of chance.
#[test]
fn containers_of_a_pod_that_start_at_once() {
    needs_shim!();
    let pod = || sleeper().annotation(GROUP, "the pod");
    for _ in 0..kiln_integration::rounds(10) {
        let mut shim = Shim::prepare(pod());
        let ids: Vec<String> =
            [shim.id.clone()].into_iter().chain((0..5).map(|_| shim.add(pod()))).collect();
        let addresses: Vec<String> = std::thread::scope(|scope| {
            let starts = ids.iter().map(|id| scope.spawn(|| shim.action(id, &["start"], b"")));
            let starts: Vec<_> = starts.collect();
            starts.into_iter().map(|start| address(&start.join().unwrap()).to_owned()).collect()
        });
        assert!(addresses.iter().all(|address| *address == addresses[0]), "{addresses:?}");
        let started: Vec<_> =
            ids.iter().filter(|id| shim.bundle(id).join("shim.pid").exists()).collect();
        assert_eq!(started.len(), 1, "{started:?}");
        shim.id = started[0].clone();
        shim.runs_at(&addresses[0]);
        assert!(shim.client().shutdown(&shim.id, false).is_ok());
        await_end(shim.pid);
        assert!(!shim.socket.exists());
    }
}

#[test]
fn it_makes_room_for_itself_where_another_has_died() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let pid = rustix::process::Pid::from_raw(shim.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    await_end(shim.pid);
    assert!(shim.socket.exists(), "nobody was there to remove it");
    let done = shim.action(&shim.id, &["start"], b"");
    let mut shim = shim;
    shim.runs_at(address(&done));
    assert!(shim.client().create(&shim.request(&shim.id)).is_ok());
}

#[test]
fn nobody_else_gets_in() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&shim.socket) & 0o077, shim.socket.metadata().unwrap().uid()), (0, 0));
    assert_eq!(mode(shim.socket.parent().unwrap()) & 0o066, 0);
    let mut client = shim.client();
    // Without an option: where the state is then.
    let mut request = shim.request(&shim.id);
    request.options.clear();
    client.create(&request).unwrap();
    let root = Path::new("/run/containerd/kiln").join(&shim.namespace);
    for dir in [&root, &root.join(&shim.id)] {
        assert_eq!(mode(dir) & 0o077, 0, "{}", dir.display());
    }
    client.delete(&shim.id, "").unwrap();
    fs::remove_dir(&root).unwrap();
    let connect = format!("socket.socket(socket.AF_UNIX).connect({:?})", shim.socket);
    Cli::new(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c"])
        .arg(format!("import socket; {connect}"))
        .binary("setpriv")
        .output()
        .fails(&["PermissionError"]);
}

/// Descriptors, working directory and session are its own; the standard streams nobody's.
#[test]
fn it_keeps_nothing_of_whoever_starts_it() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let at = |what: &str| fs::read_link(format!("/proc/{}/{what}", shim.pid)).unwrap();
    // The last step of its beginning, which the answer does not wait for.
    eventually("the shim to change its directory", || at("cwd") == Path::new("/"));
    for number in 0..3 {
        assert_eq!(at(&format!("fd/{number}")), Path::new("/dev/null"));
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", shim.pid)).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    assert_eq!(fields[3], shim.pid.to_string(), "its session");
    // Nothing but null thrice, the listener, the signals.
    eventually("five descriptors", || shim.descriptors() == 5);
}

#[test]
fn shutdown_waits_for_the_last_container() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.shutdown(&shim.id, false).unwrap();
    assert!(client.state(&shim.id, "").is_ok(), "there is a container");
    client.delete(&shim.id, "").unwrap();
    client.shutdown(&shim.id, false).unwrap();
    assert!(client.is_closed());
    await_end(shim.pid);
    assert!(!shim.socket.exists());
    shim.events.expect(&shim.id, &["create", "exit 137", "delete 137"]);
}

/// Events that containerd has not taken yet are worth a moment; not more.
#[test]
fn shutdown_does_not_wait_for_ever() {
    needs_shim!();
    let mut shim = Shim::start(sleeper());
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    shim.events.stop();
    client.delete(&shim.id, "").unwrap();
    client.shutdown(&shim.id, false).unwrap();
    await_end(shim.pid);
    assert!(!shim.socket.exists());
}

/// Other signals than SIGKILL do nothing: containers depend on it.
#[test]
fn signals_do_not_end_it() {
    use rustix::process::{Pid, Signal, kill_process};
    needs_shim!();
    let shim = Shim::start(sleeper());
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::PIPE, Signal::USR1] {
        kill_process(Pid::from_raw(shim.pid).unwrap(), signal).unwrap();
    }
    assert!(shim.client().create(&shim.request(&shim.id)).is_ok());
}

#[test]
fn what_is_wrong_is_said() {
    needs_shim!();
    let shim = Shim::prepare(sleeper());
    let fails = |done: Done, part: &str| {
        assert_eq!((done.status, done.stdout.len()), (1, 0), "{done:?}");
        assert!(done.stderr.contains(part), "no {part:?} in {done:?}");
    };
    fails(shim.action(&shim.id, &["stop"], b""), "\"stop\"");
    fails(shim.action(&shim.id, &["-what", "start"], b""), "-what");
    // Options that this shim does not take are refused before there is a shim.
    let mut options = oci::Options::new();
    options.binary_name = "crun".to_owned();
    let runc = any("containerd.runc.v1.Options", &options).write_to_bytes().unwrap();
    fails(shim.action(&shim.id, &["start"], &runc), "BinaryName: this shim is the runtime");
    let other = any("some.other.Options", &options).write_to_bytes().unwrap();
    fails(shim.action(&shim.id, &["start"], &other), "some.other.Options");
    // A cgroup for the shim that cannot be: no process is left, nor a socket.
    let mut options = oci::Options::new();
    options.shim_cgroup = format!("/{}/\0", shim.namespace);
    let cgroup = any("containerd.runc.v1.Options", &options).write_to_bytes().unwrap();
    fails(shim.action(&shim.id, &["start"], &cgroup), "cgroup");
    let ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(shim.id.len()).any(|part| part == shim.id.as_bytes())
    };
    let left: Vec<i32> = proc::pids().into_iter().filter(|pid| ours(pid)).collect();
    assert_eq!(left, [0; 0]);

    fs::remove_file(shim.bundle(&shim.id).join("config.json")).unwrap();
    fails(shim.action(&shim.id, &["start"], b""), "config.json: no such file");
    let output = Cli::new(["-u", "TTRPC_ADDRESS"]).binary("env").arg(shim_binary().unwrap());
    let output = output.args(&["-namespace", "n", "-id", "c", "start"]).output();
    output.fails(&["TTRPC_ADDRESS"]);
    let none = Cli::new(["-id", "c", "start"]).binary(shim_binary().unwrap()).output();
    none.fails(&["-namespace is missing"]);
}

#[test]
fn a_cgroup_for_the_shim() {
    needs_shim!();
    let mut shim = Shim::prepare(sleeper());
    let mut options = oci::Options::new();
    options.shim_cgroup = format!("/{}/the-shim", shim.namespace);
    let options = any("containerd.runc.v1.Options", &options).write_to_bytes().unwrap();
    let done = shim.action(&shim.id, &["start"], &options);
    shim.runs_at(address(&done));
    let text = fs::read_to_string(format!("/proc/{}/cgroup", shim.pid)).unwrap();
    assert!(text.contains("/the-shim"), "{text}");
    assert!(shim.client().create(&shim.request(&shim.id)).is_ok());
}

#[test]
fn it_says_what_it_is() {
    needs_shim!();
    let shim = shim_binary().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    Cli::new(["-v"]).binary(&shim).output().ok().shows(version);
    let prepared = Shim::prepare(sleeper());
    let done = prepared.action(&prepared.id, &["-info"], b"");
    let info = RuntimeInfo::parse_from_bytes(&done.stdout).unwrap();
    assert_eq!(
        (info.name.as_str(), info.version.version.as_str()),
        ("io.containerd.kiln.v1", version)
    );
    // What CRI looks at, by the name that containerd has for it.
    let url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
    assert_eq!(info.features.type_url, url);
    let features: Value = serde_json::from_slice(&info.features.value).unwrap();
    let own = Cli::new(["features"]).output().ok().stdout;
    assert_eq!(features, serde_json::from_str::<Value>(&own).unwrap());
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
}

/// What listens there is a program that is at work: the address is not taken over.
#[test]
fn a_socket_that_is_somebody_elses() {
    needs_shim!();
    let shim = Shim::start(sleeper());
    let socket = shim.socket.clone();
    let mut client = shim.client();
    client.shutdown(&shim.id, false).unwrap();
    await_end(shim.pid);
    let listener = UnixListener::bind(&socket).unwrap();
    let done = shim.action(&shim.id, &["start"], b"");
    assert_eq!(address(&done), format!("unix://{}", socket.display()));
    assert!(UnixStream::connect(&socket).is_ok());
    drop(listener);
    fs::remove_file(&socket).unwrap();
}
