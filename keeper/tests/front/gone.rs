//! Clients that go: what was done for them is dropped.

use kiln_keeper::front::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{PATIENCE, with};

fn patient() -> Limits {
    Limits { body_timeout: PATIENCE, write_timeout: PATIENCE, ..Limits::default() }
}

#[test]
fn while_the_request_runs() {
    with(patient(), async |front| {
        let mut client = front.connect().await;
        client.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        front.until("it runs", |service| service.running.get() == 1).await;
        drop(client);
        front.until("it is dropped", |service| service.running.get() == 0).await;
        front.serves_others().await;
    });
}

#[test]
fn in_the_middle_of_the_head_or_the_body() {
    with(patient(), async |front| {
        let mut client = front.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        drop(client);
        for body in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"] {
            let mut client = front.connect().await;
            let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{body}");
            client.write_all(head.as_bytes()).await.unwrap();
            front.until("it runs", |service| service.running.get() == 1).await;
            drop(client);
            front.until("it is dropped", |service| service.running.get() == 0).await;
        }
        front.serves_others().await;
    });
}

#[test]
fn in_the_middle_of_the_answer() {
    with(patient(), async |front| {
        let mut client = front.connect().await;
        client.write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        client.read_exact(&mut vec![0; 300_000]).await.unwrap();
        assert_eq!(front.service.streaming.get(), 1);
        drop(client);
        front.until("the stream is dropped", |service| service.streaming.get() == 0).await;
        front.serves_others().await;
    });
}
