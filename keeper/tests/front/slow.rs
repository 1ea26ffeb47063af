//! Clients that take their time.

use std::time::{Duration, Instant};

use kiln_keeper::front::Limits;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use crate::support::{HELLO, PATIENCE, SHORT, read_until, rest, statuses, with};

/// A deadline that nobody is to miss.
const LONG: Duration = Duration::from_millis(1200);

/// Only one deadline is short: it must be that one.
fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits {
        header_timeout: PATIENCE,
        body_timeout: PATIENCE,
        write_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        ..Limits::default()
    };
    change(&mut limits);
    limits
}

#[test]
fn heads() {
    with(limits(|limits| limits.header_timeout = SHORT), async |front| {
        // Byte by byte: each comes soon, the end does not.
        let started = Instant::now();
        let (mut reader, mut writer) = front.connect().await.into_split();
        let drip = tokio::task::spawn_local(async move {
            let _ = writer.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
            while writer.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        });
        front.serves_others().await;
        let answer = rest(&mut reader).await;
        assert_eq!(statuses(&answer), [408], "{answer}");
        assert!(started.elapsed() >= SHORT, "{:?}", started.elapsed());
        drip.abort();
        assert_eq!(front.seen(), ["GET /last"]);

        // The second head of a connection.
        let mut client = front.connect().await;
        client.write_all(format!("{HELLO}GET /").as_bytes()).await.unwrap();
        assert_eq!(statuses(&rest(&mut client).await), [200, 408]);

        // The beginning of HTTP/2.
        let mut client = front.connect().await;
        client.write_all(b"PRI * HTT").await.unwrap();
        assert_eq!(statuses(&rest(&mut client).await), [408]);

        // Nothing at all is answered by nothing.
        assert_eq!(rest(&mut front.connect().await).await, "");
    });
}

#[test]
fn bodies() {
    with(limits(|limits| limits.body_timeout = SHORT), async |front| {
        for head in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nab"] {
            for path in ["/echo", "/upload"] {
                let started = Instant::now();
                let mut client = front.connect().await;
                let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{head}");
                client.write_all(head.as_bytes()).await.unwrap();
                front.serves_others().await;
                let answer = rest(&mut client).await;
                assert_eq!(statuses(&answer), [408], "{head:?}: {answer}");
                assert!(started.elapsed() >= SHORT, "{:?}", started.elapsed());
            }
        }
        assert_eq!(front.service.running.get(), 0);
    });
}

/// Longer than the deadline in all, but never between two bytes, also on a slow machine.
#[test]
fn bodies_that_come_slowly() {
    let limits = limits(|limits| limits.body_timeout = LONG);
    with(limits, async |front| {
        let mut client = front.connect().await;
        let head =
            "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 12\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        for byte in b"quite slowly" {
            sleep(LONG / 10).await;
            client.write_all(&[*byte]).await.unwrap();
        }
        assert!(rest(&mut client).await.ends_with("\r\n\r\nquite slowly"));
    });
}

/// A body that nobody wants is not late.
#[test]
fn bodies_that_nobody_wants() {
    let limits = limits(|limits| limits.body_timeout = SHORT / 6);
    with(limits, async |front| {
        let head = "POST /drop HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
        assert_eq!(statuses(&front.send(head).await), [200]);
    });
}

#[test]
fn readers() {
    with(limits(|limits| limits.write_timeout = SHORT), async |front| {
        let mut client = front.connect().await;
        let request = "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        front.until("the stream begins", |service| service.streaming.get() == 1).await;
        front.serves_others().await;
        front.until("the stream is cut", |service| service.streaming.get() == 0).await;
    });
}

#[test]
fn readers_that_read_slowly() {
    with(limits(|limits| limits.write_timeout = LONG), async |front| {
        let mut client = front.connect().await;
        client.write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut bytes = vec![0; 8 << 20];
        for _ in 0..12 {
            sleep(LONG / 10).await;
            tokio::io::AsyncReadExt::read_exact(&mut client, &mut bytes).await.unwrap();
        }
        assert_eq!(front.service.streaming.get(), 1);
    });
}

#[test]
fn idle_connections() {
    with(limits(|limits| limits.idle_timeout = SHORT), async |front| {
        let started = Instant::now();
        let mut client = front.connect().await;
        client.write_all(HELLO.as_bytes()).await.unwrap();
        read_until(&mut client, "/\n").await;
        assert_eq!(rest(&mut client).await, "");
        assert!(started.elapsed() >= SHORT, "{:?}", started.elapsed());
        // One with a request is not idle.
        let mut client = front.connect().await;
        let nap = "GET /nap HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(format!("{nap}{nap}").as_bytes()).await.unwrap();
        assert_eq!(statuses(&rest(&mut client).await), [200, 200]);
    });
}
