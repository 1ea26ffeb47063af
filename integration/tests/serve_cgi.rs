//! `kiln serve --protocol cgi`: RFC 3875, both bodies streamed.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::http::{Answer, Request};
use kiln_integration::serve::{Server, Serving};
use kiln_integration::{eventually, needs_wasm, proc};

fn cgi() -> Server {
    Serving::example("cgi").flags("--protocol cgi").start()
}

/// The value of a variable, as the program answers to a request with this query.
fn variable(server: &Server, name: &str, request: impl Fn(Request) -> Request) -> String {
    let request = request(Request::new("GET", &format!("/some/path?var={name}")));
    server.address.ask(&request).is(200).text().trim_end().to_owned()
}

#[test]
fn a_request_becomes_variables() {
    needs_wasm!();
    let server = Serving::example("cgi").flags("--protocol cgi --env OWN=1").start();
    let plain = |name: &str| variable(&server, name, |request| request);
    for (name, value) in [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", "GET"),
        ("PATH_INFO", "/some/path"),
        ("SCRIPT_NAME", ""),
        ("QUERY_STRING", "var=QUERY_STRING"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "test"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("HTTP_HOST", "test"),
        ("OWN", "1"),
        ("CONTENT_LENGTH", "(not set)"),
        ("CONTENT_TYPE", "(not set)"),
        ("PATH", "(not set)"),
        ("LISTEN_FDS", "(not set)"),
    ] {
        assert_eq!(plain(name), value, "{name}");
    }
    let with = |name: &str, header: &str, value: &str| {
        variable(&server, name, |request| request.header(header, value))
    };
    assert_eq!(with("HTTP_X_FORWARDED_FOR", "X-Forwarded-For", "10.0.0.1"), "10.0.0.1");
    assert_eq!(with("CONTENT_TYPE", "Content-Type", "text/x"), "text/x");
    assert_eq!(with("HTTP_CONTENT_TYPE", "Content-Type", "text/x"), "(not set)");
    // httpoxy.org
    assert_eq!(with("HTTP_PROXY", "Proxy", "evil"), "(not set)");
    assert_eq!(with("HTTP_CONNECTION", "Connection", "keep-alive"), "(not set)");
    assert_eq!(with("HTTP_X_A", "X_A", "underscored"), "(not set)");
    assert_eq!(with("AUTH_TYPE", "Authorization", "Basic eDp5"), "Basic");
    let twice = |request: Request| request.header("X-A", "1").header("X-A", "2");
    assert_eq!(variable(&server, "HTTP_X_A", twice), "1, 2");
    let body = |request: Request| request.body("12345");
    assert_eq!(variable(&server, "CONTENT_LENGTH", body).lines().next(), Some("5"));
    let body = |request: Request| request.body("12345").chunked(2);
    assert_eq!(variable(&server, "CONTENT_LENGTH", body).lines().next(), Some("(not set)"));
}

#[test]
fn paths_arrive_decoded() {
    needs_wasm!();
    let server = cgi();
    for (path, info) in [("/a%20b", "/a b"), ("//x", "//x"), ("/%C3%BC", "/ü"), ("/", "/")] {
        let answer = server.address.get(&format!("{path}?var=PATH_INFO")).is(200);
        assert_eq!(answer.text().trim_end(), info, "{path}");
    }
    for path in ["/%2e%2e/x", "/../x", "/a/../../x", "/%00", "/a%00b", "/a%", "/a%zz"] {
        server.address.get(path).is(400);
    }
    assert_eq!(server.stat("lost"), 0);
}

#[test]
fn the_programs_status_and_headers() {
    needs_wasm!();
    let server = cgi();
    for status in [200, 201, 404, 418, 503, 599] {
        server.address.get(&format!("/?status={status}")).is(status);
    }
    let answer = server.address.get("/p?type=text/html").is(200);
    assert_eq!(answer.header("content-type"), Some("text/html"));
    assert_eq!(answer.header("x-path"), Some("/p"));
    let answer = server.address.get("/?status=204").is(204);
    assert_eq!(answer.header("content-length"), None, "{answer:?}");
}

#[test]
fn redirects() {
    needs_wasm!();
    let server = cgi();
    let answer = server.address.get("/?location=http://other/").is(302);
    assert_eq!(answer.header("location"), Some("http://other/"));
    let answer = server.address.get("/?location=//other/").is(302);
    assert_eq!(answer.header("location"), Some("//other/"), "another host's");
    // A path is answered as if the client had asked for it.
    let post = Request::new("POST", "/?location=/elsewhere").body("lost");
    server.address.ask(&post).is(200).shows("REQUEST_METHOD=GET\nPATH_INFO=/elsewhere\n");
    let head = Request::new("HEAD", "/?location=/elsewhere");
    assert_eq!(server.address.ask(&head).is(200).header("x-path"), Some("/elsewhere"));
}

#[test]
fn head_has_no_body() {
    needs_wasm!();
    let server = cgi();
    let mut connection = server.address.connect().unwrap();
    let answer = connection.ask(&Request::new("HEAD", "/?status=404&bytes=200000"));
    assert_eq!((answer.status, answer.body.len()), (404, 0));
    let next = connection.ask(&Request::new("GET", "/echo?status=201")).is(201);
    assert_eq!(next.text(), "", "the next on the same connection is not a rest of that");
}

#[test]
fn what_is_no_answer_is_500() {
    needs_wasm!();
    let server = cgi();
    server.address.get("/?bad=1").is(500).shows("not a header");
    server.address.get("/?status=99").is(500).shows("status");
    server.address.get("/?status=abc").is(500).shows("status");
    let hello = Serving::example("hello").flags("--protocol cgi").start();
    hello.address.get("/").is(500).shows("blank line");
    let show = Serving::example("show").flags("--protocol cgi").start();
    show.address.get("/").is(500).shows("no output");
    let trap = Serving::example("trap").flags("--protocol cgi").start();
    trap.address.get("/").is(500).shows("wasm trap");
    let long =
        Serving::example("show").flags("--protocol cgi").args(&["--", "-n", "100000"]).start();
    long.address.get("/").is(500);
    for server in [server, hello, show, trap, long] {
        assert_eq!(server.stat("errors"), server.stat("requests"));
    }
}

#[test]
fn a_program_that_fails_behind_its_answer() {
    needs_wasm!();
    let server = cgi();
    let broken = |answer: Answer| {
        assert!(!answer.whole || answer.status == 500, "taken for whole: {answer:?}");
    };
    // What has been sent cannot be taken back, but the client must not take it for all.
    broken(server.address.get("/?bytes=300000&trap=1"));
    broken(server.address.get("/?lines=3&pause=20&trap=1"));
    broken(server.address.get("/?lines=3&pause=20&exit=3"));
    broken(server.address.get("/?exit=3"));
    assert_eq!(server.stat("lost"), 0);
    server.address.get("/").is(200);
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

#[test]
fn bodies_larger_than_any_pipe() {
    needs_wasm!();
    let server = cgi();
    let body = pattern(5_000_000);
    let post = Request::new("POST", "/echo").body(&body);
    assert!(server.address.ask(&post).is(200).body == body, "its own bytes");
    assert!(server.address.ask(&post.chunked(7777)).is(200).body == body, "in chunks");
    let answer = server.address.get("/echo?bytes=3000000").is(200);
    assert_eq!(answer.body.len(), 3_000_000);
    // A program that does not read is not kept from answering.
    let hello = Serving::example("trap").flags("--protocol cgi").start();
    hello.address.ask(&Request::new("POST", "/").body(&body)).is(500).shows("wasm trap");
}

/// As curl sends what is longer than a mebibyte.
#[test]
fn a_client_that_waits_to_be_told_to_go_on() {
    needs_wasm!();
    let server = cgi();
    let mut connection = server.address.connect().unwrap();
    let head =
        "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
    connection.send(head).unwrap();
    assert_eq!(connection.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    connection.send("12345").unwrap();
    assert_eq!(connection.answer(false).unwrap().is(200).text(), "12345");
}

/// Neither side waits for the whole of what the other sends.
#[test]
fn bodies_are_streamed_both_ways() {
    needs_wasm!();
    let server = cgi();
    let mut connection = server.address.connect().unwrap();
    let head = "POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.send(head).unwrap();
    for word in ["first", "second", "third"] {
        connection.send(format!("{:x}\r\n{word}\r\n", word.len())).unwrap();
        connection.read_until(word);
    }
    connection.send("0\r\n\r\n").unwrap();
    assert!(connection.read_until("0\r\n\r\n").ends_with("0\r\n\r\n"));
    let mut lines = server.address.connect().unwrap();
    // It would take ten minutes to its end, which is not reached before the timeout.
    lines.send("GET /echo?lines=100000&pause=6 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    lines.read_until("line 3\n");
}

/// A reader that takes nothing stops the program, and nothing is kept in the server for it.
#[test]
fn a_slow_reader_holds_the_program_back() {
    needs_wasm!();
    let server = Serving::example("cgi").flags("--protocol cgi --max 2").start();
    let mut slow = server.address.connect().unwrap();
    slow.send("GET /echo?bytes=30000000 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    slow.read_until("xxxx");
    let resident = || {
        let text = proc::status_field(server.pid(), "VmRSS").unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    for number in 0..5 {
        server.address.get(&format!("/?status={}", 200 + number)).is(200 + number);
    }
    assert!(resident() < before + 10_000, "{} KiB after {before}", resident());
    let mut count = 0;
    loop {
        let bytes = slow.read().unwrap();
        count += bytes.iter().filter(|byte| **byte == b'x').count();
        // What was read before is not counted.
        if bytes.ends_with(b"0\r\n\r\n") {
            break;
        }
    }
    assert!(count > 29_000_000, "{count}");
    eventually("the worker to be free", || server.stat("busy") == 0);
}
