//! Requests that read in two ways, or are too large: one answer, then the connection ends, and the
//! service sees none of it.

use std::fmt::Write;
use std::time::Duration;

use kiln_keeper::front::Limits;

use crate::support::{Front, HELLO, LAST, rest, statuses, with};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// First on a connection, and later.
async fn twice(front: &Front, bytes: &str) -> [String; 2] {
    [front.send(bytes).await, front.send_second(bytes).await]
}

#[test]
fn doubtful_heads() {
    let cases = [
        (400, "GET / HTTP/1.1\nHost: a\n\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n\n"),
        (400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX-Y : b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n"),
        (400, "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, "GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "G\"T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /<a> HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /\r\n\r\n"),
        (400, "\x16\x03\x01\x02\0\x01\0\x01\u{7f}"),
        (501, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (505, "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    ];
    with(Limits::default(), async |front| {
        for (status, head) in cases {
            for answer in twice(front, &format!("{head}{SMUGGLED}")).await {
                assert_eq!(statuses(&answer), [status], "{head:?}: {answer}");
            }
            assert!(front.seen().is_empty(), "{head:?}: {:?}", front.seen());
        }
        front.serves_others().await;
    });
}

#[test]
fn doubtful_lengths() {
    let cases = [
        (400, "Content-Length: -1"),
        (400, "Content-Length: +5"),
        (400, "Content-Length: 99999999999999999999"),
        (413, "Content-Length: 9999999999999999999"),
        (413, "Content-Length: 67108865"),
        (400, "Content-Length: 5\r\nContent-Length: 5"),
        (400, "Content-Length: 5\r\nContent-Length: 0"),
        (400, "Content-Length: 5, 5"),
        (400, "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        (400, "Transfer-Encoding: chunked\r\nContent-Length: 5"),
        (400, "Transfer-Encoding: gzip"),
        (400, "Transfer-Encoding: gzip, chunked"),
        (400, "Transfer-Encoding: chunked, identity"),
        (400, "Transfer-Encoding: xchunked"),
        (400, "Transfer-Encoding : chunked"),
        (400, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    ];
    with(Limits::default(), async |front| {
        for (status, headers) in cases {
            let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
            for answer in twice(front, &format!("{head}0\r\n\r\n{SMUGGLED}")).await {
                assert_eq!(statuses(&answer), [status], "{head:?}: {answer}");
            }
            assert!(front.seen().is_empty(), "{head:?}: {:?}", front.seen());
        }
        front.serves_others().await;
    });
}

#[test]
fn doubtful_chunks() {
    let cases = [
        "x\r\n",
        "-1\r\na\r\n",
        "0x1\r\na\r\n",
        " 1\r\na\r\n",
        "1\na\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1;\n\r\na\r\n",
        "11111111111111111\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\n\n",
    ];
    with(Limits::default(), async |front| {
        for chunks in cases {
            let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            for answer in twice(front, &format!("{head}{chunks}{SMUGGLED}")).await {
                assert_eq!(statuses(&answer), [400], "{chunks:?}: {answer}");
            }
        }
        assert!(front.seen().iter().all(|request| request == "POST /echo"), "{:?}", front.seen());
        front.serves_others().await;
    });
}

#[test]
fn paths() {
    let bad = ["/..", "/a/../b", "/%2e%2E/a", "/.%2e", "/a%00", "/a%2fb", "/a\\b", "/a%5C", "/%zz"];
    with(Limits::default(), async |front| {
        for path in bad {
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = front.send(format!("{head}{SMUGGLED}")).await;
            assert_eq!(statuses(&answer), [400], "{path}: {answer}");
        }
        assert!(front.seen().is_empty(), "{:?}", front.seen());
        let answer = front.send(format!("GET //a//b HTTP/1.1\r\nHost: a\r\n\r\n{LAST}")).await;
        assert_eq!(statuses(&answer), [200, 200], "{answer}");
        assert_eq!(front.seen(), ["GET //a//b", "GET /last"]);
        let all = "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(statuses(&front.send(all).await), [200]);
    });
}

#[test]
fn large_heads() {
    let head = |uri: usize, headers: &str| {
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n{headers}\r\n", "x".repeat(uri))
    };
    let mut many = String::new();
    for number in 0..1000 {
        write!(many, "X-{number}: a\r\n").unwrap();
    }
    let mebibyte = format!("X: {}\r\n", "x".repeat(1000)).repeat(1045);
    with(Limits::default(), async |front| {
        for (status, head) in [
            (431, head(1, &many)),
            (431, head(1, &mebibyte)),
            (431, head(1, &format!("X: {}\r\n", "x".repeat(1 << 20)))),
            (414, head(20_000, "")),
            (414, head(1 << 20, "")),
        ] {
            let answer = front.send(format!("{head}{SMUGGLED}")).await;
            assert_eq!(statuses(&answer), [status], "{} bytes: {answer}", head.len());
        }
        assert!(front.seen().is_empty(), "{:?}", front.seen());
        // What the limits allow is served: also through hyper's own.
        let headers = format!("X: {}\r\n", "x".repeat(60_000));
        let answer = front.send(head(16_000, "Connection: close\r\n")).await;
        assert_eq!(statuses(&answer), [200], "{answer}");
        let answer = front.send(head(1, &(headers + "Connection: close\r\n"))).await;
        assert_eq!(statuses(&answer), [200], "{answer}");
    });
}

#[test]
fn large_bodies() {
    let limits = Limits { body_bytes: 100_000, ..Limits::default() };
    with(limits, async |front| {
        // Before a byte of the body.
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n";
        assert_eq!(statuses(&front.send(head).await), [413]);
        // While it is still being sent.
        let answer = front.send(format!("{head}{}", "x".repeat(1 << 20))).await;
        assert_eq!(statuses(&answer), [413]);
        assert!(front.seen().is_empty(), "{:?}", front.seen());
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("2710\r\n{}\r\n", "x".repeat(10_000));
        let answer = front.send(format!("{head}{}0\r\n\r\n", chunk.repeat(11))).await;
        assert_eq!(statuses(&answer), [413]);
        let last = head.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let answer = front.send(format!("{last}{}0\r\n\r\n", chunk.repeat(10))).await;
        assert_eq!(statuses(&answer), [200]);
        assert!(answer.ends_with(&"x".repeat(100_000)));
        // Whoever does not read a body gets rid of the rest.
        let head = "POST /ignored HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n";
        assert_eq!(statuses(&front.send(format!("{head}{SMUGGLED}")).await), [200]);
        assert_eq!(front.service.running.get(), 0);
    });
}

/// A connection that is closed with bytes unread is reset, and many a client that cannot send does
/// not read.
#[test]
fn whoever_still_sends_is_let_finish() {
    with(Limits { body_bytes: 1000, ..Limits::default() }, async |front| {
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n";
        let mut client = front.connect().await;
        client.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..3 {
            client.write_all(&[b'x'; 20_000]).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(statuses(&rest(&mut client).await), [413]);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    with(Limits::default(), async |front| {
        let post = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nbody\n";
        let nap = "GET /nap HTTP/1.1\r\nHost: a\r\n\r\n";
        let requests = format!("{HELLO}{nap}{post}{HELLO}{LAST}");
        let answer = front.send(&requests).await;
        let bodies: Vec<_> = answer
            .split("HTTP/1.1 200 OK\r\n")
            .skip(1)
            .map(|one| one.split("\r\n\r\n").nth(1))
            .collect();
        let expected = ["/\n", "nap\n", "body\n", "/\n", "/last\n"].map(Some);
        assert_eq!(bodies, expected, "{answer}");
        // However they are cut.
        for piece in [1, 7, 60] {
            let (mut reader, mut writer) = front.connect().await.into_split();
            for bytes in requests.as_bytes().chunks(piece) {
                writer.write_all(bytes).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(statuses(&rest(&mut reader).await), [200; 5], "by {piece}");
        }
    });
}

#[test]
fn a_bad_request_takes_its_turn_behind_good_ones() {
    with(Limits::default(), async |front| {
        let nap = "GET /nap HTTP/1.1\r\nHost: a\r\n\r\n";
        let bad = "GET /bad HTTP/1.1\r\nHost: a\nX: b\r\n\r\n";
        let answer = front.send(format!("{nap}{HELLO}{bad}{SMUGGLED}")).await;
        assert_eq!(statuses(&answer), [200, 200, 400], "{answer}");
        assert_eq!(front.seen(), ["GET /nap", "GET /"]);
    });
}

#[test]
fn upgrade_is_ignored() {
    with(Limits::default(), async |front| {
        let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                       Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
        let answer = front.send(format!("{upgrade}{LAST}")).await;
        assert_eq!(statuses(&answer), [200, 200], "{answer}");
    });
}

#[test]
fn expect_100_continue() {
    with(Limits::default(), async |front| {
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\
                    Connection: close\r\nContent-Length: 2\r\n\r\n";
        let mut client = front.connect().await;
        client.write_all(head.as_bytes()).await.unwrap();
        crate::support::read_until(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
        client.write_all(b"ab").await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.ends_with("\r\n\r\nab"), "{answer}");
    });
}
