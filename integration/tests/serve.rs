//! `kiln serve MODULE`: the protocol of wasmkeeper, and the flags.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::http::{Address, Request};
use kiln_integration::serve::{Server, Serving};
use kiln_integration::{Cli, Value, eventually, json, needs_wasm};

fn show() -> Server {
    Serving::example("show").start()
}

#[test]
fn arguments_make_lines() {
    needs_wasm!();
    let server = show();
    let answer = server.address.post(r#"{"args":["a","b c"]}"#).is(200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.text(), r#"{"status":0,"output":["a","b c"]}"#, "to the byte");
    let sort = Serving::example("sort").start();
    let numbers = r#"{"args":["1111","2345","8","99","11234","12312","1231231","-10000"]}"#;
    let sorted = r#"{"status":0,"output":["-10000 8 99 1111 2345 11234 12312 1231231"]}"#;
    assert_eq!(sort.address.post(numbers).is(200).text(), sorted);
}

#[test]
fn an_empty_body_has_no_arguments() {
    needs_wasm!();
    let server = show();
    for body in ["", " \r\n", "{}", r#"{"args":[]}"#, r#"{"other":{"args":[1]}}"#] {
        let answer = server.address.post(body).is(200);
        assert_eq!(answer.json(), json!({ "status": 0, "output": [] }), "{body:?}");
    }
    assert_eq!(server.address.ask(&Request::new("POST", "/")).is(200).json()["status"], 0);
}

#[test]
fn malformed_json_is_the_clients_fault() {
    needs_wasm!();
    let server = show();
    let nested = format!("{{\"x\":{}", "[".repeat(100_000));
    let closed = format!("{{\"args\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let bad: [&[u8]; 14] = [
        b"{",
        b"[]{}",
        b"null",
        b"\"args\"",
        b"{\"args\":\"a\"}",
        b"{\"args\":[1]}",
        b"{\"args\":null}",
        b"{\"args\":[\"a\"],\"args\":[\"b\"]}",
        b"{\"args\":[\"\xff\"]}",
        b"{\"args\":[\"a\\u0000b\"]}",
        b"{\"args\":[\"\\ud800\"]}",
        b"{\"env\":{\"A=B\":\"c\"}}",
        nested.as_bytes(),
        closed.as_bytes(),
    ];
    for body in bad {
        let begin = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let answer = server.address.post(body);
        assert_eq!(answer.status, 400, "{begin}: {answer:?}");
        let answer = answer.json();
        assert_eq!(answer["status"], 1, "{begin}");
        assert!(answer["error"].as_str().is_some_and(|error| !error.is_empty()), "{begin}");
    }
    // Millions of arguments, each of which takes ten times its bytes.
    let many = format!("{{\"args\":[\"\"{}]}}", ",\"\"".repeat(10_000_000));
    server.address.post(many).is(400).shows("more than");
    assert_eq!(server.lines(&["still there"]), ["still there"]);
    assert_eq!(server.stat("lost"), 0);
}

#[test]
fn other_paths_and_methods_are_refused() {
    needs_wasm!();
    let server = show();
    let answer = server.address.get("/").is(405);
    assert_eq!(answer.header("allow"), Some("POST"));
    server.address.ask(&Request::new("POST", "/other").body("{}")).is(404);
    server.address.ask(&Request::new("HEAD", "/")).is(405);
    server.address.ask(&Request::new("DELETE", "/")).is(405);
    assert_eq!(server.stat("started"), server.stat("warm"), "the function was not called");
}

#[test]
fn one_connection_asks_again_and_again() {
    needs_wasm!();
    let server = show();
    let mut connection = server.address.connect().unwrap();
    for number in 0..50 {
        let body = json!({ "args": [number.to_string()] }).to_string();
        let request = Request::new("POST", "/").body(&body);
        let request = if number % 2 == 0 { request.chunked(3) } else { request };
        let answer = connection.ask(&request).is(200);
        assert_eq!(answer.json()["output"], json!([number.to_string()]));
    }
}

#[test]
fn environment_and_stdin() {
    needs_wasm!();
    let server = Serving::example("show").flags("--env A=base --env B=base").start();
    let body = json!({ "args": ["-e", "A", "B", "C"], "env": { "B": "own", "C": "x=y" } });
    let answer = server.address.post(body.to_string()).is(200).json();
    assert_eq!(answer["output"], json!(["base", "own", "x=y"]));
    assert_eq!(server.lines(&["-e", "A", "B", "C"]), ["base", "base", "(not set)"]);
    let text = "0123456789\n".repeat(100_000);
    let answer = server.address.post(json!({ "stdin": text }).to_string()).is(200).json();
    let lines = answer["output"].as_array().unwrap();
    assert_eq!(lines.len(), 100_000);
    assert!(lines.iter().all(|line| line == "0123456789"));
    // Who does not read it is not kept from its end.
    let hello = Serving::example("hello").start();
    let answer = hello.address.post(json!({ "stdin": text }).to_string()).is(200).json();
    assert_eq!(answer["output"], json!(["hello from wasm"]));
    assert_eq!(hello.stat("lost"), 0);
}

#[test]
fn arguments_of_any_kind() {
    needs_wasm!();
    let server = show();
    let odd = ["", " ", "\t", "\"quoted\"", "back\\slash", "ünï\u{1f600}", "\u{7f}\u{1}", "'$(x)'"];
    assert_eq!(server.lines(&odd), odd);
    let many: Vec<String> = (0..20_000).map(|number| format!("argument {number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(server.lines(&many), many);
    let long = "x".repeat(1 << 20);
    assert_eq!(server.lines(&[&long]), [long]);
}

#[test]
fn verbose_says_more() {
    needs_wasm!();
    let server = show();
    let ask = |args: &[&str]| {
        let body = json!({ "args": args }).to_string();
        server.address.ask(&Request::new("POST", "/?verbose=1").body(body)).is(200).json()
    };
    let wanted = json!({ "status": 0, "exit_code": 0, "output": [], "stderr": "to stderr" });
    assert_eq!(ask(&["-s", "to stderr"]), wanted);
    let long = "e".repeat(300_000);
    assert_eq!(ask(&["-s", &long])["stderr"], json!(long));
    assert_eq!(ask(&["a"]), json!({ "status": 0, "exit_code": 0, "output": ["a"], "stderr": "" }));
    // Without, it is in the server's own.
    server.call(&["-s", "for the log\n"]).is(200);
    assert!(server.log().contains("for the log"), "{}", server.log());
    assert!(!server.log().contains("to stderr"), "{}", server.log());
}

#[test]
fn an_exit_status_is_told() {
    needs_wasm!();
    let server = Serving::example("exit").start();
    for status in [1, 2, 42, 128, 254, 255] {
        let answer = server.call(&[&status.to_string()]);
        let wanted = json!({ "status": 1, "error": format!("exit status {status}"),
            "exit_code": status });
        assert_eq!((answer.status, answer.json()), (500, wanted));
    }
    assert_eq!(server.call(&["0"]).is(200).json()["status"], 0);
    assert_eq!((server.stat("errors"), server.stat("lost")), (6, 0));
}

#[test]
fn a_trap_costs_one_request() {
    needs_wasm!();
    for serving in [Serving::example("trap"), Serving::example("trap").compiled()] {
        let server = serving.start();
        for (how, reason) in [
            ("unreachable", "unreachable"),
            ("divide", "divide by zero"),
            ("memory", "out of bounds memory"),
            ("call", "undefined element"),
        ] {
            let answer = server.call(&[how]).is(500).json();
            assert_eq!(answer["status"], 1);
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains("wasm trap") && error.contains(reason), "{error}");
            assert_eq!(answer["output"], json!([format!("trapping: {how}")]), "said before it");
        }
        assert_eq!((server.stat("errors"), server.stat("lost")), (4, 0));
    }
}

#[test]
fn output_of_any_bytes_and_any_size() {
    needs_wasm!();
    let server = show();
    assert_eq!(server.lines(&["-b", "3"]), ["\u{fffd}\u{fffd}\u{fffd}"]);
    let count = 8_000_000;
    let lines = server.lines(&["-n", &count.to_string()]);
    assert_eq!(lines.len(), count / 100);
    assert!(lines.iter().all(|line| line.len() == 99));
}

#[test]
fn output_over_the_limit_is_an_error() {
    needs_wasm!();
    let server = Serving::example("show").flags("--output 100K --max 1").start();
    assert_eq!(server.lines(&["-n", "102400"]).len(), 1024, "all of it");
    for count in ["102401", "1000000000"] {
        let answer = server.call(&["-n", count]).is(500).json();
        assert_eq!(answer["error"], "more than 102400 bytes of output");
    }
    assert_eq!(server.lines(&["next"]), ["next"]);
}

#[test]
fn directories_are_the_modules() {
    needs_wasm!();
    let serving = Serving::example("files");
    let data = serving.home().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "content\n").unwrap();
    let server = serving.flag("--dir").flag(&format!("{}:/data", data.display())).start();
    assert_eq!(server.lines(&["read", "/data/file"]), ["content"]);
    assert_eq!(server.lines(&["write", "/data/made", "x"]), [""; 0]);
    assert_eq!(fs::read_to_string(data.join("made")).unwrap(), "x");
    assert_eq!(server.lines(&["list", "/data"]), ["file", "made"]);
    for path in ["/etc/passwd", "/data/../../../../../etc/passwd", "/"] {
        assert_eq!(server.call(&["read", path]).is(500).json()["exit_code"], 1, "{path}");
    }
}

#[test]
fn arguments_of_the_command_line_come_first() {
    needs_wasm!();
    let server = Serving::example("show").args(&["first", "--flag"]).start();
    assert_eq!(server.lines(&["last"]), ["first", "--flag", "last"]);
}

#[test]
fn a_unix_socket() {
    needs_wasm!();
    let serving = Serving::example("show");
    let path = serving.home().join("socket");
    let server = serving.listen(&format!("unix:{}", path.display())).start();
    assert_eq!(server.address, Address::Unix(path));
    assert_eq!(server.lines(&["a"]), ["a"]);
}

#[test]
fn the_admin_address_tells_of_it() {
    needs_wasm!();
    let server = Serving::example("exit").start();
    server.call(&["0"]).is(200);
    server.call(&["1"]).is(500);
    server.admin.get("/healthz").is(200);
    server.admin.get("/readyz").is(200);
    server.admin.get("/").is(404);
    let metrics = server.admin.get("/metrics").is(200);
    assert!(metrics.header("content-type").unwrap().contains("openmetrics"), "{metrics:?}");
    let metrics = metrics.text();
    for line in ["kiln_requests_total 2", "kiln_errors_total{kind=\"exit\"} 1", "# EOF"] {
        assert!(metrics.lines().any(|known| known == line), "no {line}: {metrics}");
    }
    let stats = server.stats();
    assert_eq!((&stats["requests"], &stats["errors"]), (&json!(2), &json!(1)), "{stats}");
}

#[test]
fn an_access_log() {
    needs_wasm!();
    for form in ["json", "text"] {
        let server = Serving::example("exit").flags(&format!("--access-log {form}")).start();
        server.call(&["0"]).is(200);
        server.call(&["3"]).is(500);
        server.address.get("/other?secret=1").is(404);
        let lines = || {
            let log = server.log();
            let lines = log.lines().filter(|line| line.contains("POST") || line.contains("GET"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        eventually("three lines", || lines().len() >= 3);
        let lines = lines();
        for (line, status) in lines.iter().zip(["200", "500", "404"]) {
            assert!(line.contains(status), "no {status} in {line}");
            let parsed = line.parse::<Value>();
            assert_eq!(parsed.is_ok_and(|line| line.is_object()), form == "json", "{line}");
        }
        assert_eq!(lines.len(), 3, "{lines:#?}");
    }
}

#[test]
fn wrong_flags_are_named() {
    needs_wasm!();
    let module = Serving::example("show");
    let path = module.home().join("show.wasm");
    for (flag, value) in [
        ("--max", "0"),
        ("--warm", "-1"),
        ("--queue", "many"),
        ("--timeout", "soon"),
        ("--grace", "0s"),
        ("--memory", "lots"),
        ("--output", "1.5M"),
        ("--files", "0"),
        ("--protocol", "fastcgi"),
        ("--access-log", "xml"),
        ("--reuse", "0"),
        ("--dir", "/no/such/directory:/data"),
        ("--env", "=x"),
        ("--env", "NAME"),
    ] {
        let cli = Cli::new(["serve", &format!("{flag}={value}")]).arg(&path);
        cli.output().fails(&[flag, value]);
    }
    for (flag, address) in [("--listen", "nowhere"), ("--listen", ":99999"), ("--admin", "1.2.3")] {
        let listen = if flag == "--admin" { "--listen=127.0.0.1:0" } else { "--queue=1" };
        let cli = Cli::new(["serve", listen, &format!("{flag}={address}")]).arg(&path);
        cli.output().fails(&["listen at", address]);
    }
}

#[test]
fn what_is_no_module_is_refused() {
    needs_wasm!();
    let serve = |path: &str, flags: &[&str]| {
        Cli::new(["serve", "--listen", "127.0.0.1:0"]).args(flags).arg(path).output()
    };
    serve("/no/such.wasm", &[]).fails(&["/no/such.wasm", "no such file"]);
    serve("/etc/passwd", &[]).fails(&["/etc/passwd"]);
    let hello = Serving::example("hello");
    let path = hello.home().join("hello.wasm");
    serve(path.to_str().unwrap(), &["--reuse"]).fails(&["hello.wasm", "handle"]);
    let counter = Serving::example("counter");
    let path = counter.home().join("counter.wasm");
    serve(path.to_str().unwrap(), &[]).fails(&["counter.wasm", "_start"]);
}

#[test]
fn an_address_in_use_is_named() {
    needs_wasm!();
    let server = show();
    let Address::Tcp(taken) = server.address else { panic!("{server:?}") };
    let serving = Serving::example("show").listen(&taken.to_string());
    serving.cli().output().fails(&["listen at", &taken.to_string(), "in use"]);
    let Address::Tcp(taken) = server.admin else { panic!("{server:?}") };
    let path = serving.home().join("show.wasm");
    let cli = Cli::new(["serve", "--listen=127.0.0.1:0", &format!("--admin={taken}")]).arg(path);
    cli.output().fails(&["listen at", &taken.to_string(), "in use"]);
    assert_eq!(server.lines(&["a"]), ["a"]);
}

/// The whole of a request to a module that keeps what it has counted.
fn counted(server: &Server, args: &[&str]) -> Value {
    server.call(args).json()["output"][0].clone()
}

#[test]
fn reuse_keeps_what_the_module_has() {
    needs_wasm!();
    for serving in [Serving::example("counter"), Serving::example("counter").compiled()] {
        let server = serving.flags("--reuse --max 1").start();
        for number in 1..=50 {
            let argument = format!("a{number}");
            assert_eq!(counted(&server, &[&argument]), format!("call {number} {argument}"));
        }
        assert_eq!(server.stat("started"), 1);
        let body = json!({ "args": ["env", "A"], "env": { "A": "1" } }).to_string();
        assert_eq!(server.address.post(body).is(200).json()["output"], json!(["1"]));
        assert_eq!(counted(&server, &["env", "A"]), "(not set)");
        for text in ["one", "two"] {
            let body = json!({ "args": ["cat"], "stdin": text }).to_string();
            assert_eq!(server.address.post(body).is(200).json()["output"], json!([text]));
        }
        let answer = server.call(&["status", "3"]).is(500).json();
        assert_eq!(answer["exit_code"], 3, "what the function returned");
        assert_eq!(counted(&server, &[]), "call 56", "it has ended well");
    }
}

#[test]
fn reuse_ends_after_as_many_requests_as_was_said() {
    needs_wasm!();
    let server = Serving::example("counter").flags("--reuse=3 --max 1").start();
    let numbers: Vec<Value> = (0..7).map(|_| counted(&server, &[])).collect();
    let wanted = ["call 1", "call 2", "call 3", "call 1", "call 2", "call 3", "call 1"];
    assert_eq!(numbers, wanted);
}

#[test]
fn reuse_begins_anew_after_a_trap() {
    needs_wasm!();
    let server = Serving::example("counter").flags("--reuse --max 1").start();
    assert_eq!(counted(&server, &[]), "call 1");
    server.call(&["trap"]).is(500).shows("wasm trap");
    assert_eq!(counted(&server, &[]), "call 1");
    assert_eq!(counted(&server, &[]), "call 2");
    let answer = server.call(&["exit", "0"]).is(200).json();
    assert_eq!(answer["status"], 0, "proc_exit is no trap");
    server.call(&["exit", "5"]).is(500).shows("exit status 5");
    assert_eq!(server.stat("lost"), 0);
}

#[test]
fn another_handler() {
    needs_wasm!();
    let server = Serving::example("hello").flags("--reuse --handler _start --max 1").start();
    assert_eq!(server.lines(&[]), ["hello from wasm"]);
    let counter = Serving::example("counter");
    let path = counter.home().join("counter.wasm");
    let cli = Cli::new(["serve", "--reuse", "--handler=nothing", "--listen=127.0.0.1:0"]).arg(path);
    cli.output().fails(&["counter.wasm", "nothing"]);
}
