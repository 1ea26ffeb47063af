//! `kiln-gateway`: functions in containers behind one HTTP server. The functions are
//! `examples/linux/serve.c` in a bundle; those that are wasm are in `gateway_wasm.rs`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln_integration::gateway::{Gateway, request, try_request};
use kiln_integration::{
    Cli, cgroup, command, eventually, needs_gateway, needs_user, patience, proc, skip,
};
use rustix::process::{Pid, Signal, kill_process};

/// A function of this name for these keys, which takes everything below `/NAME/` and, first, `/*`.
fn function(name: &str, keys: &str) -> String {
    format!("[[function]]\nname = \"{name}\"\nbundle = \"serve\"\n{keys}\n")
}

const ALL: &str = "routes = [\"/*\"]";

fn kill(pid: i64) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn many_first_requests_create_one_container() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", &format!("{ALL}\nqueue = 1000")));
    assert_eq!(gateway.state_of("a"), "absent");
    let pids: HashSet<String> = thread::scope(|scope| {
        let asking: Vec<_> =
            (0..64).map(|_| scope.spawn(|| gateway.get("/pid").is(200).text())).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    assert_eq!(pids.len(), 1, "{pids:?}");
    assert_eq!(gateway.function("a")["cold_starts"], 1);
    assert_eq!(gateway.containers().len(), 1);
    assert_eq!(gateway.function("a")["server"]["requests"], 64);
}

#[test]
fn an_idle_function_is_frozen_and_thawed_by_the_next_request() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", &format!("{ALL}\nfreeze_after = '300ms'")));
    let pid = gateway.get("/pid").is(200).text();
    gateway.await_state("a", "frozen");
    let frozen = || {
        let name = format!("{}/a-", gateway.cgroup().unwrap());
        let dirs = cgroup::directories_of("a-").into_iter();
        let own: Vec<_> = dirs.filter(|dir| dir.to_string_lossy().contains(&name)).collect();
        let read = |file: &str| own.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
        match read("freezer.state") {
            Some(state) => state.trim() == "FROZEN",
            None => read("cgroup.freeze").unwrap().trim() == "1",
        }
    };
    assert!(frozen());
    let memory = gateway.function("a")["memory_bytes"].as_u64().unwrap();
    assert!(memory > 0 && frozen(), "looking at it does not thaw it");
    for _ in 0..3 {
        assert_eq!(gateway.get("/pid").is(200).text(), pid);
        assert!(!frozen());
        gateway.await_state("a", "frozen");
    }
    // A request that takes longer than the function may be idle.
    assert_eq!(gateway.get("/sleep/700").is(200).text(), "slept");
}

#[test]
fn an_idle_function_is_scaled_to_zero_and_back() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", &format!("{ALL}\nstop_after = '300ms'")));
    let mut pids = HashSet::new();
    for round in 1..=3 {
        pids.insert(gateway.get("/pid").is(200).text());
        assert_eq!(pids.len(), round);
        gateway.await_state("a", "absent");
        eventually("the container to go", || gateway.containers().is_empty());
        let tag = gateway.cgroup().unwrap();
        let left = || {
            cgroup::directories_of("a-").into_iter().any(|dir| dir.to_string_lossy().contains(&tag))
        };
        eventually("its cgroup to go", || !left());
    }
    // From frozen, too.
    gateway.configure(
        "",
        &function("a", &format!("{ALL}\nfreeze_after = '100ms'\nstop_after = '600ms'")),
    );
    gateway.reload();
    gateway.get("/pid").is(200);
    gateway.await_state("a", "frozen");
    gateway.await_state("a", "absent");
    eventually("the container to go", || gateway.containers().is_empty());
}

#[test]
fn a_kept_function_is_there_before_anybody_asks() {
    needs_gateway!();
    let keys = "keep = 'frozen'\nfreeze_after = '200ms'\nstop_after = '200ms'";
    let warm = "keep = 'warm'\nfreeze_after = '200ms'\nstop_after = '200ms'";
    let text = function("cold", &format!("{keys}\nroutes = ['/cold/*']"))
        + &function("warm", &format!("{warm}\nroutes = ['/warm/*']"));
    let gateway = Gateway::start(&text);
    gateway.await_state("cold", "frozen");
    gateway.await_state("warm", "warm");
    thread::sleep(Duration::from_millis(700));
    assert_eq!(
        (gateway.state_of("cold"), gateway.state_of("warm")),
        ("frozen".into(), "warm".into())
    );
    let pid = gateway.function("warm")["pid"].as_i64().unwrap();
    kill(pid);
    eventually("another container", || {
        gateway.function("warm")["pid"].as_i64().is_some_and(|other| other != pid)
    });
}

#[test]
fn a_function_that_fails_says_why_and_is_not_tried_at_once() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", &format!("{ALL}\nargs = ['fail']")));
    let first = gateway.get("/").is(502).shows("status 3").shows("cannot do this");
    assert_eq!(first.header("content-type"), Some("text/plain; charset=utf-8"));
    let second = gateway.get("/").is(503).shows("cannot do this");
    assert_eq!(second.header("retry-after"), Some("1"));
    // 100, 200, 400, 800 ms: in a second and a half no more than five are made.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(1500) {
        let answer = gateway.get("/");
        assert!(matches!(answer.status, 502 | 503), "{answer:?}");
        thread::sleep(Duration::from_millis(10));
    }
    let made = gateway.function("a")["cold_starts"].as_u64().unwrap();
    assert!((2..=5).contains(&made), "{made}");
    assert_eq!(gateway.state_of("a"), "failed");
    assert!(gateway.function("a")["reason"].as_str().unwrap().contains("cannot do this"));
    eventually("its containers to go", || gateway.containers().is_empty());
    gateway
        .look("/metrics")
        .is(200)
        .shows("kiln_gateway_errors_total{function=\"a\",kind=\"failed\"}");
}

#[test]
fn a_function_that_cannot_be_made_says_why() {
    needs_gateway!();
    let gateway = Gateway::start(
        "[[function]]\nname = 'a'\nmodule = 'none.wasm'\nroutes = ['/a']\n\
         [[function]]\nname = 'b'\nbundle = 'none'\nroutes = ['/b']\nprotocol = 'keeper'\n\
         [[function]]\nname = 'c'\nbundle = 'serve'\nargs = []\nroutes = ['/c']\n\
         dirs = ['none:/data']\n",
    );
    let answer = gateway.get("/a").is(502).shows("none.wasm: No such file");
    assert_eq!(answer.json()["status"], 1);
    gateway.get("/b").is(502).shows("none/config.json: No such file");
    gateway.get("/c").is(502).shows("dirs: ");
    // As soon as it is there, it works.
    fs::create_dir(gateway.home().join("none")).unwrap();
    eventually("the function", || gateway.get("/c").status == 200);
}

#[test]
fn a_killed_container_is_replaced_by_the_next_request() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", ALL));
    let before = gateway.get("/pid").is(200).text();
    for _ in 0..5 {
        kill(gateway.function("a")["pid"].as_i64().unwrap());
        let after = gateway.get("/pid").is(200).text();
        assert_ne!(before, after);
        // It need not even have died by then.
        kill(gateway.function("a")["pid"].as_i64().unwrap());
        assert_eq!(gateway.post("/echo", b"once").is(200).text(), "once");
    }
    // The request that it was at work on is not sent again: it may have been carried out.
    let answer = thread::scope(|scope| {
        let asking = scope.spawn(|| gateway.get("/sleep/5000"));
        eventually("the request", || gateway.function("a")["server"]["busy"] == 1);
        kill(gateway.function("a")["pid"].as_i64().unwrap());
        asking.join().unwrap()
    });
    answer.is(502).shows("signal 9");
    gateway.get("/pid").is(200);
    let answer = gateway.get("/exit/7").is(502);
    answer.shows("status 7: going, as asked");
    gateway.get("/pid").is(200);
}

#[test]
fn a_reload_drops_no_request() {
    needs_gateway!();
    let text = |env: &str| {
        function("same", "routes = ['/same/*']")
            + &function("new", &format!("{env}\nroutes = ['/new/*', '/pid', '/sleep/*']"))
    };
    let gateway = Gateway::start(&text("env = { A = '0' }"));
    gateway.get("/same/").is(200);
    let same = gateway.function("same")["pid"].clone();
    let (going, count) = (AtomicBool::new(true), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while going.load(Ordering::Relaxed) {
                    gateway.get("/pid").is(200);
                    gateway.get("/same/x").is(200);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let slow = scope.spawn(|| gateway.get("/sleep/1500").is(200).text());
        thread::sleep(Duration::from_millis(200));
        let mut pids = HashSet::new();
        for round in 1..=8 {
            pids.insert(gateway.function("new")["pid"].clone());
            gateway.configure("", &text(&format!("env = {{ A = '{round}' }}")));
            gateway.reload();
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(pids.len(), 8, "each has a container of its own");
        assert_eq!(slow.join().unwrap(), "slept");
        going.store(false, Ordering::Relaxed);
    });
    assert!(count.load(Ordering::Relaxed) > 20);
    assert_eq!(gateway.function("same")["pid"], same);
    eventually("the old containers to go", || gateway.containers().len() == 2);

    // A wrong file changes nothing.
    fs::write(gateway.config(), "[[function]]\nname = 1\n").unwrap();
    gateway.signal(Signal::HUP);
    eventually("the complaint", || gateway.log().contains("functions.toml:2: name: "));
    assert_eq!(gateway.function("same")["pid"], same);

    // A function that is removed finishes what it has.
    thread::scope(|scope| {
        let slow = scope.spawn(|| gateway.get("/sleep/600").is(200).text());
        eventually("the request", || gateway.function("new")["in_flight"] == 1);
        gateway.configure("", &function("same", "routes = ['/same/*']"));
        gateway.reload();
        gateway.get("/pid").is(404);
        assert_eq!(slow.join().unwrap(), "slept");
    });
    eventually("the old container to go", || gateway.containers().len() == 1);
}

#[test]
fn a_module_that_changes_is_noticed() {
    needs_gateway!();
    let gateway = Gateway::new("");
    gateway.configure("watch = true", &function("a", ALL));
    let mut gateway = gateway;
    gateway.spawn();
    let before = gateway.get("/pid").is(200).text();
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(gateway.get("/pid").is(200).text(), before);
    let config = gateway.home().join("serve/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n").unwrap();
    eventually("another container", || gateway.get("/pid").is(200).text() != before);
}

#[test]
fn the_end_finishes_requests() {
    needs_gateway!();
    let mut gateway = Gateway::start(&function("a", ALL));
    gateway.get("/pid").is(200);
    let listen = gateway.listen();
    let slow = thread::spawn(move || request(listen, "GET", "/sleep/800", &[], b"").is(200).text());
    eventually("the request", || gateway.function("a")["in_flight"] == 1);
    gateway.stop();
    assert_eq!(slow.join().unwrap(), "slept");
    assert_eq!(gateway.leftovers(), Vec::<String>::new());

    // Those that take longer than the grace are given up.
    gateway.configure("grace = '300ms'", &function("a", ALL));
    gateway.spawn();
    let listen = gateway.listen();
    let slow = thread::spawn(move || try_request(listen, "GET", "/sleep/20000", &[], b""));
    eventually("the request", || gateway.function("a")["in_flight"] == 1);
    let since = Instant::now();
    gateway.stop();
    assert!(since.elapsed() < patience(5), "{:?}", since.elapsed());
    assert!(slow.join().unwrap().map_or(true, |answer| answer.status == 502));
}

#[test]
fn a_killed_gateway_leaves_nothing_to_the_next() {
    needs_gateway!();
    let mut gateway = Gateway::start(
        &(function("a", "routes = ['/a', '/pid']")
            + &function("b", "routes = ['/b']\nfreeze_after = '100ms'")),
    );
    let before = gateway.get("/pid").is(200).text();
    gateway.get("/b").is(200);
    gateway.await_state("b", "frozen");
    let pids: Vec<i64> =
        ["a", "b"].iter().map(|name| gateway.function(name)["pid"].as_i64().unwrap()).collect();
    let listen = gateway.listen();
    let slow = thread::spawn(move || try_request(listen, "GET", "/pid", &[], b""));
    slow.join().unwrap().unwrap();
    gateway.kill();
    assert_eq!(gateway.containers().len(), 2);
    // The same port, at once.
    gateway.configure("", &function("a", "routes = ['/a', '/pid']"));
    gateway.spawn();
    assert_eq!(gateway.listen(), listen);
    assert!(gateway.containers().is_empty());
    for pid in pids {
        eventually("the old container's end", || !proc::alive(pid as i32));
    }
    assert_ne!(gateway.get("/pid").is(200).text(), before);
    gateway.stop();
    assert_eq!(gateway.leftovers(), Vec::<String>::new());
}

#[test]
fn two_gateways_do_not_share_a_directory() {
    needs_gateway!();
    let gateway = Gateway::start("");
    gateway.serve_cli().output().fails(&["another gateway uses", "state"]);
    gateway.look("/readyz").is(200);
    fs::set_permissions(gateway.state(), fs::Permissions::from_mode(0o750)).unwrap();
    gateway.serve_cli().output().fails(&["open to others", "750"]);
    fs::set_permissions(gateway.state(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_taken_address_is_named() {
    needs_gateway!();
    let gateway = Gateway::start("");
    let other = Gateway::new("");
    let text = format!("[gateway]\nlisten = \"{}\"\n", gateway.listen());
    fs::write(other.config(), text).unwrap();
    let address = gateway.listen().to_string();
    other.serve_cli().output().fails(&["[gateway] listen: ", &address, "in use"]);
}

#[test]
fn wrong_configurations_are_refused_with_line_and_key() {
    needs_gateway!();
    let gateway = Gateway::new("");
    for (text, message) in [
        ("[gateway]\nlisten = 'here'\n", "functions.toml:2: listen: \"here\" is not an address"),
        ("[[function]]\nname = 'a'\nbundle = 'b'\nmaximum = 1\n", "functions.toml:4: maximum: "),
        ("[[function]]\nname = 'a'\n", "functions.toml:2: name: the function has neither"),
        ("[[route]]\nfunction = 'x'\npath = '/'\n", "functions.toml:2: function: there is no"),
        ("x\n", "functions.toml:1: x: "),
    ] {
        fs::write(gateway.config(), text).unwrap();
        gateway.serve_cli().output().fails(&[message]);
    }
    fs::remove_file(gateway.config()).unwrap();
    gateway.serve_cli().output().fails(&["functions.toml: no such file"]);
    // Nothing was made yet.
    assert!(!gateway.state().exists());
    gateway.configure("", "");
}

#[test]
fn routes_are_the_only_way_to_a_function() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", "routes = ['POST /echo', 'GET /head', '/pid']"));
    gateway.post("/echo", b"x").is(200);
    let answer = gateway.get("/echo").is(405);
    assert_eq!(answer.header("allow"), Some("POST"));
    gateway.get("/").is(404);
    gateway.get("/echo/").is(404);
    gateway.get("/pid?a=b").is(200);
    gateway.get("/%70id").is(200).shows("hello");
    for path in ["/../pid", "/%2e%2e/pid", "/x/../pid", "/pid%00", "/pid%2f"] {
        gateway.get(path).is(400);
    }
    gateway.look("/metrics").is(200).shows("kiln_gateway_unrouted_total");
}

#[test]
fn what_a_client_says_of_itself_goes_no_further() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", ALL));
    let headers = [
        ("X-Forwarded-For", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-Real-IP", "6.6.6.6"),
        ("X-Forwarded-Host", "evil"),
        ("X-Secret", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("X-Kept", "yes"),
    ];
    let seen = request(gateway.listen(), "GET", "/head", &headers, b"").is(200).text();
    let seen = seen.to_lowercase();
    for line in
        ["x-forwarded-for: 127.0.0.1\n", "x-forwarded-host: gateway.test\n", "x-kept: yes\n"]
    {
        assert!(seen.contains(line), "{seen}");
    }
    for part in ["6.6.6.6", "evil", "keep-alive", "connection", "\nte:"] {
        assert!(!seen.contains(part), "{part} in {seen}");
    }
}

#[test]
fn bodies_are_streamed_both_ways() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", ALL));
    let body: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let answer = gateway.post("/echo", &body).is(200);
    assert!(answer.body == body, "{} bytes came back", answer.body.len());
    assert_eq!(gateway.get("/stream/5000").is(200).body.len(), 5_000_000);
    // It is not held in the gateway.
    let resident = proc::status_field(gateway.pid(), "VmHWM").unwrap();
    let kib: u64 = resident.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 40_000, "{resident}");
}

#[test]
fn a_client_that_goes_takes_its_request_with_it() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", ALL));
    gateway.get("/").is(200);
    let mut stream = TcpStream::connect(gateway.listen()).unwrap();
    stream.write_all(b"GET /stream/100000000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 5000]).unwrap();
    drop(stream);
    eventually("the function to notice", || {
        gateway.manage(&["logs", "a"]).ok().stdout.contains("the reader has gone")
    });
    // In the middle of the wait, too.
    let mut stream = TcpStream::connect(gateway.listen()).unwrap();
    stream.write_all(b"GET /sleep/3000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    eventually("the request", || gateway.function("a")["in_flight"] == 1);
    drop(stream);
    eventually("its end", || gateway.function("a")["in_flight"] == 0);
    gateway.get("/").is(200);
}

#[test]
fn more_than_may_wait_are_refused_at_once() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", &format!("{ALL}\nmax = 2\nqueue = 1")));
    gateway.get("/").is(200);
    let answers: Vec<u16> = thread::scope(|scope| {
        let asking: Vec<_> =
            (0..8).map(|_| scope.spawn(|| gateway.get("/sleep/700").status)).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    let served = answers.iter().filter(|&&code| code == 200).count();
    let refused = answers.iter().filter(|&&code| code == 503).count();
    assert_eq!((served, refused), (3, 5), "{answers:?}");
}

#[test]
fn functions_are_managed_while_it_runs() {
    needs_gateway!();
    let mut gateway = Gateway::start(&function("a", "routes = ['/a/*']"));
    let bundle = gateway.home().join("serve");
    let bundle = bundle.to_str().unwrap();
    gateway.manage(&["list"]).ok().shows("a     absent  0         /a/*");
    let add =
        ["add", "b", "--bundle", bundle, "--route", "/b/*", "--route", "/say/*", "--route", "/pid"];
    gateway.manage(&add).ok().prints("b\n");
    gateway.get("/b/").is(200);
    gateway.manage(&["list"]).ok().shows("b     warm    1");
    gateway.manage(&["stats", "b"]).ok().shows("MiB").shows("warm");
    let stats: serde_json::Value =
        serde_json::from_str(&gateway.manage(&["stats", "--json", "b"]).ok().stdout).unwrap();
    assert_eq!((&stats["requests"], &stats["added"]), (&1.into(), &true.into()));

    // Logs, and what comes after them.
    gateway.get("/say/one").is(200);
    eventually("its log", || gateway.manage(&["logs", "b"]).ok().stdout == "one\n");
    let mut follow = gateway.manage_cli(&["logs", "-f", "b"]).spawn();
    eventually("the log", || follow.stdout().contains("one\n"));
    gateway.get("/say/two").is(200);
    eventually("what comes after", || follow.stdout() == "one\ntwo\n");
    follow.signal(Signal::KILL);
    follow.wait();

    // What is wrong.
    gateway.manage(&add).fails(&["there is a function \"b\" already"]);
    let taken = ["add", "c", "--bundle", bundle, "--route", "/a/*"];
    gateway.manage(&taken).fails(&["\"/a/*\" is a route of function \"a\""]);
    gateway.manage(&["add", "c", "--bundle", "none"]).fails(&["none/config.json"]);
    gateway.manage(&["add", "c", "--bundle", bundle, "--timeout", "soon"]).fails(&["timeout: "]);
    gateway.manage(&["add", "../c", "--bundle", bundle]).fails(&["name: "]);
    gateway.manage(&["remove", "a"]).fails(&["functions.toml", "remove it there"]);
    gateway.manage(&["remove", "c"]).fails(&["there is no function \"c\""]);
    gateway.manage(&["logs", "../b"]).fails(&["there is no function"]);

    // It is there after a restart, also after one without an end.
    for round in 0..2 {
        match round {
            0 => gateway.stop(),
            _ => gateway.kill(),
        }
        gateway.spawn();
        gateway.get("/b/").is(200);
    }
    let pid = gateway.get("/pid").is(200).text();
    gateway.reload();
    assert_eq!(gateway.get("/pid").is(200).text(), pid, "a reload leaves it alone");
    gateway.manage(&["remove", "b"]).ok().prints("b\n");
    gateway.get("/b/").is(404);
    eventually("its container to go", || gateway.containers().is_empty());
    gateway.stop();
    gateway.spawn();
    gateway.get("/b/").is(404);
    gateway.stop();
    gateway.manage(&["list"]).fails(&["control.sock", "hint: "]);
}

#[test]
fn the_control_socket_is_the_owners() {
    needs_gateway!();
    let user = needs_user!();
    let gateway = Gateway::start("");
    let socket = gateway.state().join("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    gateway.manage_cli(&["list"]).under(&user.plain()).output().fails(&["permission denied"]);
    // Even if somebody has opened the way there.
    for path in [gateway.home().to_path_buf(), gateway.state(), socket] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    gateway.manage_cli(&["list"]).under(&user.plain()).output().fails(&[]);
    eventually("the complaint", || gateway.log().contains("neither the owner nor root"));
    fs::set_permissions(gateway.state(), fs::Permissions::from_mode(0o700)).unwrap();
    gateway.manage(&["list"]).ok();
}

#[test]
fn the_warm_parents_death_is_nobodys() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", &format!("{ALL}\nstop_after = '200ms'")));
    gateway.get("/").is(200);
    gateway.await_state("a", "absent");
    let line = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let parent =
        || proc::children(gateway.pid()).into_iter().find(|&pid| line(pid).ends_with("\0warm\0"));
    kill(parent().unwrap().into());
    gateway.get("/").is(200);
    assert!(parent().is_some());
}

#[test]
fn limits_and_confinement_are_the_containers() {
    needs_gateway!();
    let keys = "limits = { memory = '64MiB', cpu = 0.5, pids = 77 }\nkeep = 'warm'";
    let gateway = Gateway::start(&function("a", &format!("{ALL}\n{keys}")));
    gateway.get("/").is(200);
    let pid = gateway.function("a")["pid"].as_i64().unwrap() as i32;
    let own = proc::own_namespace("net");
    assert_ne!(proc::namespace(pid, "net"), own);
    let tag = gateway.cgroup().unwrap();
    let read = |file: &str| {
        let dirs = cgroup::directories_of("a-").into_iter();
        let own = dirs.filter(|dir| dir.to_string_lossy().contains(&tag));
        own.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()).next()
    };
    assert_eq!(read("pids.max").unwrap().trim(), "77");
    let memory = read("memory.limit_in_bytes").or_else(|| read("memory.max")).unwrap();
    assert_eq!(memory.trim(), (64 << 20).to_string());
    // Descriptors: stdio and the two sockets, no more.
    let count = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(count <= 5 + 2, "{count}");
}

#[test]
fn health_and_metrics() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", ALL));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(gateway.look(path).is(200).text(), "ok\n");
    }
    gateway.get("/").is(200);
    let metrics = gateway.look("/metrics").is(200);
    metrics
        .shows("kiln_gateway_requests_total{function=\"a\",code=\"200\"} 1")
        .shows("kiln_gateway_state{function=\"a\",state=\"warm\"} 1");
    gateway.look("/nothing").is(404);
    request(gateway.admin(), "POST", "/api/functions", &[], b"x").is(405);
    // They are the function's own on the other address.
    assert_eq!(gateway.get("/healthz").is(200).text(), "hello");
}

#[test]
fn kiln_hands_over() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", ALL));
    let state = gateway.state();
    let state = state.to_str().unwrap();
    Cli::new(["fn", "list", "--state", state]).output().ok().shows("a     absent");
    let config = gateway.config();
    let words = ["serve", "--config", config.to_str().unwrap(), "--state", state];
    Cli::new(words).output().fails(&["another gateway uses"]);
    Cli::new(["--root", "/nowhere"]).args(&words).output().fails(&["another gateway uses"]);
}

/// What a browser has of the status page after its script has run for a while.
fn dump(gateway: &Gateway) -> String {
    let profile = tempfile::tempdir().unwrap();
    let profile = format!("--user-data-dir={}", profile.path().display());
    let page = format!("http://{}/", gateway.admin());
    let words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        &profile,
        "--virtual-time-budget=3000",
        "--dump-dom",
        &page,
    ];
    Cli::new(words).binary("chromium").output().ok().stdout
}

#[test]
fn the_status_page_works_in_a_browser() {
    needs_gateway!();
    if !command::exists("chromium") {
        skip!("no chromium (Debian: apt-get install chromium)");
    }
    let bad = "args = ['fail <img src=x onerror=alert(1)>']";
    let text = function("served", "routes = ['/served/*']")
        + &function("cold", "routes = ['/cold/*']\nfreeze_after = '100ms'")
        + &function("bad", &format!("routes = ['/bad/*']\n{bad}"));
    let gateway = Gateway::start(&text);
    let page = gateway.look("/").is(200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    // Nothing is loaded from elsewhere.
    assert!(!page.text().contains("http://") && !page.text().contains("https://"));
    for _ in 0..41 {
        gateway.get("/served/").is(200);
    }
    gateway.get("/cold/").is(200);
    gateway.get("/bad/").is(502);
    gateway.await_state("cold", "frozen");
    let dom = dump(&gateway);
    for part in [
        "data-function=\"served\"",
        "3 functions, ",
        "<div class=\"state warm\">warm</div>",
        "<div class=\"state frozen\">frozen</div>",
        "<div class=\"state failed\">failed</div>",
        "<td class=\"number requests\">41</td>",
        "<div class=\"routes\">/served/*</div>",
        "MiB</td>",
        "&lt;img src=x onerror=alert(1)&gt;",
    ] {
        assert!(dom.contains(part), "no {part} in\n{dom}");
    }
    assert!(!dom.contains("<img"), "{dom}");
    // It is live: what has happened since is there.
    gateway.get("/served/").is(200);
    assert!(dump(&gateway).contains("<td class=\"number requests\">42</td>"));
}

#[test]
fn requests_are_written_down() {
    needs_gateway!();
    let mut gateway = Gateway::new("");
    let log = gateway.home().join("access.log");
    let path = log.display();
    let settings = format!("access_log = '{path}'\naccess_log_format = 'json'");
    gateway.configure(&settings, &function("a", "routes = ['/a/*']"));
    gateway.spawn();
    gateway.get("/a/x?secret=1").is(200);
    gateway.get("/b").is(404);
    let lines = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines().map(parse).collect::<Vec<_>>()
    };
    eventually("two lines", || lines().len() == 2);
    assert_eq!((&lines()[0]["path"], &lines()[0]["status"]), (&"/a/x".into(), &200.into()));
    assert_eq!((&lines()[1]["path"], &lines()[1]["status"]), (&"/b".into(), &404.into()));
    // Where it cannot be written there is no gateway.
    gateway.stop();
    gateway.configure("access_log = '/none/access.log'", "");
    gateway.serve_cli().output().fails(&["[gateway] access_log: /none/access.log: No such file"]);
}

#[test]
fn a_body_has_its_limit() {
    needs_gateway!();
    let gateway = Gateway::start(&function("a", ALL));
    let mut stream = TcpStream::connect(gateway.listen()).unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}
