//! Containers that are servers: `module.wasm.image/mode: http`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use kiln_integration::http::{Address, Answer, Request};
use kiln_integration::{
    Bundle, Container, Value, cgroup, eventually, json, needs_wasm, proc, reap, refused,
    seccomp_profile, skip,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PORT: u16 = 10086;

/// An example as a server, with these settings: `NAME=VALUE`.
fn http(example: &str, settings: &[&str]) -> Bundle {
    let bundle = Bundle::wasm(example, &[]).annotation("module.wasm.image/mode", "http");
    settings.iter().fold(bundle, |bundle, setting| {
        let (name, value) = setting.split_once('=').unwrap();
        bundle.annotation(&format!("module.wasm.image/http.{name}"), value)
    })
}

/// What `f` gives in a process's network namespace, on a thread of its own.
#[track_caller]
fn inside<T: Send>(pid: i32, f: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Asks the container's server.
#[track_caller]
fn ask(c: &Container, request: &Request) -> Answer {
    inside(c.pid(), || Address::port(PORT).ask(request))
}

/// Calls its module, by the protocol `keeper`.
#[track_caller]
fn call(c: &Container, args: &[&str]) -> Answer {
    ask(c, &Request::new("POST", "/").body(json!({ "args": args }).to_string()))
}

/// The lines that a call has printed, which must succeed.
#[track_caller]
fn lines(c: &Container, args: &[&str]) -> Value {
    call(c, args).is(200).json()["output"].clone()
}

/// A call whose answer is not awaited yet.
#[track_caller]
fn begin(c: &Container, args: &[&str]) -> kiln_integration::http::Connection {
    let body = json!({ "args": args }).to_string();
    inside(c.pid(), || {
        let mut connection = Address::port(PORT).connect().unwrap();
        connection.send(Request::new("POST", "/").body(body).bytes()).unwrap();
        connection
    })
}

#[track_caller]
fn started(bundle: Bundle) -> Container {
    let c = bundle.container();
    c.create().ok();
    c.start().ok();
    c
}

/// Its processes: the server, its workers' parent and the workers.
fn processes(c: &Container) -> usize {
    cgroup::members(c.pid()).into_iter().filter(|pid| proc::alive(*pid)).count()
}

#[test]
fn the_port_is_open_when_start_returns() {
    needs_wasm!();
    for _ in 0..15 {
        let c = http("show", &[]).container();
        c.create().ok();
        let pid = c.pid();
        let open = || inside(pid, || Address::port(PORT).connect().is_ok());
        assert!(!open(), "not before start");
        c.start().ok();
        assert!(open());
        assert_eq!(lines(&c, &["a", "b"]), json!(["a", "b"]));
    }
    let c = http("show", &["port=8080"]).container();
    c.detach().ok();
    assert!(inside(c.pid(), || Address::port(8080).connect().is_ok()));
}

#[test]
fn the_containers_arguments_and_environment() {
    needs_wasm!();
    let bundle = http("show", &[]).arguments(&["-e", "OWN", "PATH"]);
    let c = started(bundle.push("/process/env", json!("OWN=1")));
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines(&c, &["LISTEN_FDS"]), json!(["1", path, "(not set)"]));
    let c = started(http("files", &[]));
    assert_eq!(lines(&c, &["list", "/"])[0], "dev");
}

#[test]
fn many_mounts_are_not_among_the_files_it_may_open() {
    needs_wasm!();
    let mut bundle = http("files", &["files=3", "max=1"]);
    for number in 0..30 {
        bundle = bundle.mount(&format!("/mounted{number}"), "tmpfs", "tmpfs", &[]);
    }
    let c = started(bundle);
    for number in [0, 15, 29, 29] {
        let file = format!("/mounted{number}/file");
        assert_eq!(lines(&c, &["write", &file, "text"]), json!([]), "{file}");
        assert_eq!(lines(&c, &["read", &file]), json!(["text"]), "{file}");
    }
}

#[test]
fn cgi_and_the_other_settings() {
    needs_wasm!();
    let c = started(http("cgi", &["protocol=cgi", "max=1", "timeout=300ms", "queue=0"]));
    ask(&c, &Request::new("GET", "/path?status=404")).is(404).shows("PATH_INFO=/path\n");
    ask(&c, &Request::new("GET", "/?sleep=60000")).is(504);
    let c = started(http("counter", &["reuse=true", "max=1"]));
    assert_eq!(lines(&c, &["a"]), json!(["call 1 a"]));
    assert_eq!(lines(&c, &["b"]), json!(["call 2 b"]));
}

#[test]
fn wrong_settings_are_named() {
    needs_wasm!();
    for (name, value) in [
        ("port", "0"),
        ("port", "65536"),
        ("port", "http"),
        ("protocol", "fastcgi"),
        ("max", "0"),
        ("warm", "-1"),
        ("queue", ""),
        ("timeout", "soon"),
        ("memory", "lots"),
        ("reuse", "perhaps"),
        ("colour", "red"),
    ] {
        let setting = format!("{name}={value}");
        refused(http("show", &[&setting]), &[&format!("module.wasm.image/http.{name}")]);
    }
    let bundle = http("show", &[]).annotation("module.wasm.image/mode", "ftp");
    refused(bundle, &["module.wasm.image/mode", "ftp"]);
    // A module that cannot be called as is asked for.
    refused(http("show", &["reuse=true"]), &["handle"]);
}

#[test]
fn a_port_in_use_fails_start() {
    needs_wasm!();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let setting = format!("port={port}");
    let bundle = || http("show", &[&setting]).without_namespace("network");
    let c = bundle().container();
    c.create().ok();
    c.start().fails(&["listen at", &port.to_string(), "in use"]);
    c.await_status("stopped");
    c.delete_force().ok();
    c.assert_nothing_left();
    let c = bundle().container();
    c.run().fails(&["in use"]);
    c.assert_nothing_left();
    drop(taken);
    let c = started(bundle());
    let body = r#"{"args":["mine"]}"#;
    assert_eq!(Address::port(port).post(body).is(200).json()["output"], json!(["mine"]));
    drop(c);
    assert!(Address::port(port).connect().is_err(), "free again");
}

/// As a pod would run it: another user, no capabilities, containerd's filter, nothing to write to.
fn confined(bundle: Bundle) -> Bundle {
    bundle
        .set("/process/user", json!({ "uid": 1000, "gid": 1001 }))
        .capabilities(&[])
        .set("/linux/seccomp", seccomp_profile())
        .set("/root/readonly", json!(true))
}

#[test]
fn confined_as_a_pod_is() {
    needs_wasm!();
    let c = started(confined(http("show", &["max=4", "timeout=1s"])));
    assert_eq!(lines(&c, &["a"]), json!(["a"]));
    let members = cgroup::members(c.pid());
    assert!(members.len() >= 3, "{members:?}");
    for pid in members {
        let field = |name| proc::status_field(pid, name).unwrap_or_default();
        assert_eq!(field("Uid"), "1000\t1000\t1000\t1000");
        assert_eq!((field("Seccomp").as_str(), field("NoNewPrivs").as_str()), ("2", "1"));
        assert_eq!(field("CapEff"), "0000000000000000");
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.contains(&c.id), "{cgroup}");
    }
    let verbose = Request::new("POST", "/?verbose=1").body(r#"{"args":["-s","x"],"stdin":"y"}"#);
    let answer = ask(&c, &verbose).is(200).json();
    assert_eq!((&answer["stderr"], &answer["output"]), (&json!("x"), &json!(["y"])));
    let c = started(confined(http("loop", &["max=1", "timeout=300ms"])));
    for _ in 0..3 {
        call(&c, &[]).is(504);
    }
}

#[test]
fn compiled_code_comes_to_a_user_too() {
    needs_wasm!();
    let cache = tempfile::tempdir().unwrap();
    let c = confined(http("show", &["max=2", "warm=2", "admin=10087"])).container();
    c.create_cli(&[]).env("KILN_CACHE_DIR", cache.path()).output().ok();
    c.start().ok();
    let stats = || inside(c.pid(), || Address::port(10087).get("/stats")).is(200).json();
    eventually("workers with compiled code", || {
        assert_eq!(lines(&c, &["a"]), json!(["a"]), "also meanwhile");
        stats()["started"].as_u64() >= Some(4)
    });
    assert_eq!(lines(&c, &["b"]), json!(["b"]));
    let stats = stats();
    assert_eq!((&stats["errors"], &stats["lost"]), (&json!(0), &json!(0)), "{stats}");
}

#[test]
fn without_proc_and_without_dev_null() {
    needs_wasm!();
    let bundle = http("show", &[]).set("/mounts", json!([])).writable();
    let bundle = bundle.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
    let c = bundle.container();
    c.create().ok();
    let null = c.bundle.rootfs().join("dev/null");
    fs::remove_file(&null).unwrap();
    c.start().ok();
    assert!(!null.exists() && !c.bundle.rootfs().join("proc/self").exists());
    for _ in 0..5 {
        assert_eq!(lines(&c, &["a"]), json!(["a"]), "nothing to read is an end at once");
    }
    let with = Request::new("POST", "/").body(r#"{"stdin":"text"}"#);
    assert_eq!(ask(&c, &with).is(200).json()["output"], json!(["text"]));
}

#[test]
fn a_guest_that_eats_the_containers_memory() {
    needs_wasm!();
    if !cgroup::has("memory") {
        skip!("this machine has no memory controller");
    }
    let bundle = http("meddle", &["max=2", "memory=2G"]);
    let c = started(bundle.set("/linux/resources/memory", json!({ "limit": 96 << 20 })));
    for _ in 0..3 {
        call(&c, &["greedy"]).is(500).shows("memory");
        assert_eq!(lines(&c, &["memory"]), json!(["clean"]));
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn fewer_processes_than_it_wants() {
    needs_wasm!();
    if !cgroup::has("pids") {
        skip!("this machine has no pids controller");
    }
    let bundle = http("loop", &["max=8", "warm=1", "timeout=500ms"]);
    // The server, the workers' parent and two workers.
    let c = started(bundle.set("/linux/resources/pids", json!({ "limit": 4 })));
    let connections: Vec<_> = (0..8).map(|_| begin(&c, &[])).collect();
    for mut connection in connections {
        let status = connection.answer(false).unwrap().status;
        assert!([500, 503, 504].contains(&status), "{status}");
    }
    // It has not lost count: one that may run does.
    eventually("a request to run", || call(&c, &[]).status == 504);
    assert_eq!(c.status(), "running");
}

#[test]
fn exec_beside_it_is_no_server() {
    needs_wasm!();
    let c = started(http("show", &["warm=1"]));
    assert_eq!(lines(&c, &["first"]), json!(["first"]), "the worker is there");
    let before = processes(&c);
    c.exec(&["/show.wasm", "once"]).ok().prints("once\n");
    assert_eq!(lines(&c, &["still"]), json!(["still"]));
    eventually("no more processes than before", || processes(&c) == before);
}

#[test]
fn kill_ends_it_well() {
    needs_wasm!();
    let c = started(http("show", &["warm=2"]));
    lines(&c, &["a"]);
    let pid = c.pid();
    c.kill("TERM").ok();
    assert_eq!(reap(pid), 0);
    c.await_status("stopped");
    c.delete().ok();
    c.assert_nothing_left();
    let c = started(http("sleep", &["grace=300ms"]));
    let mut running = begin(&c, &["60"]);
    eventually("the request to run", || processes(&c) > 2);
    let pid = c.pid();
    c.kill("TERM").ok();
    assert_eq!(reap(pid), 0, "also when somebody was stopped");
    running.rest();
    let c = started(http("show", &[]));
    let pid = c.pid();
    c.kill("KILL").ok();
    assert_eq!(reap(pid), 137);
}

#[test]
fn paused_and_resumed() {
    needs_wasm!();
    let c = started(http("show", &[]));
    lines(&c, &["a"]);
    c.on_id("pause", &[]).ok();
    let mut waiting = begin(&c, &["b"]);
    waiting.read_timeout(Duration::from_millis(200));
    assert!(waiting.read().is_err(), "nothing is answered");
    c.on_id("resume", &[]).ok();
    waiting.read_timeout(Duration::from_secs(60));
    assert_eq!(waiting.answer(false).unwrap().is(200).json()["output"], json!(["b"]));
    assert_eq!(lines(&c, &["c"]), json!(["c"]));
}

#[test]
fn it_is_counted() {
    needs_wasm!();
    if !cgroup::has("pids") || !cgroup::has("memory") {
        skip!("this machine has no pids or no memory controller");
    }
    let c = started(http("show", &["warm=3", "max=3"]));
    lines(&c, &["a"]);
    eventually("its workers", || processes(&c) == 5);
    let outcome = c.cli(&["events", "--stats", &c.id]).output().ok();
    let data = serde_json_of(&outcome.stdout)["data"].clone();
    assert_eq!(data["pids"]["current"], 5, "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64() > Some(1 << 20), "{data}");
}

fn serde_json_of(text: &str) -> Value {
    text.parse().unwrap_or_else(|err| panic!("{err}: {text}"))
}

/// sd_listen_fds(3): the first socket is for requests, the second for whoever watches it. Announced by
/// the caller's environment, or by the configuration to go with --preserve-fds.
#[test]
fn sockets_that_are_handed_in() {
    needs_wasm!();
    for by_flag in [false, true] {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [requests, admin] = [0, 1].map(|n: usize| sockets[n].local_addr().unwrap().port());
        // Copies that an exec does not close.
        let copies = [0, 1].map(|n: usize| rustix::io::dup(&sockets[n]).unwrap());
        let [one, two] = [0, 1].map(|n: usize| copies[n].as_raw_fd());
        let script = format!("exec 3<&{one} 4<&{two}; exec \"$@\"");
        let bundle = http("show", &["port=1"]);
        let bundle =
            if by_flag { bundle.push("/process/env", json!("LISTEN_FDS=2")) } else { bundle };
        let c = bundle.container();
        let create = match by_flag {
            true => c.create_cli(&["--preserve-fds", "2"]),
            false => c.create_cli(&[]).env("LISTEN_FDS", "2"),
        };
        create.under(&["bash", "-c", &script, "bash"]).output().ok();
        c.start().ok();
        drop((sockets, copies));
        let body = r#"{"args":["-e","LISTEN_FDS"]}"#;
        let answer = Address::port(requests).post(body).is(200).json();
        assert_eq!(answer["output"], json!(["(not set)"]));
        let stats = Address::port(admin).get("/stats").is(200).json();
        assert_eq!(stats["requests"], 1, "{stats}");
        let pid = c.pid();
        assert!(inside(pid, || Address::port(1).connect().is_err()), "no port of its own");
        c.kill("TERM").ok();
        assert_eq!(reap(pid), 0);
    }
}

#[test]
fn an_admin_address_of_its_own() {
    needs_wasm!();
    let c = started(http("show", &["admin=9100"]));
    lines(&c, &["a"]);
    let stats = inside(c.pid(), || Address::port(9100).get("/stats")).is(200).json();
    assert_eq!(stats["requests"], 1, "{stats}");
}

#[test]
fn delete_by_force_in_the_middle_of_requests() {
    needs_wasm!();
    let c = started(http("loop", &["max=4"]));
    let running: Vec<_> = (0..6).map(|_| begin(&c, &[])).collect();
    eventually("requests to run", || processes(&c) == 6);
    c.delete_force().ok();
    c.assert_nothing_left();
    for mut connection in running {
        connection.rest();
    }
}
