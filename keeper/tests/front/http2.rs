//! The same port, spoken to in HTTP/2 with prior knowledge.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use kiln_keeper::front::Limits;
use tokio::io::AsyncWriteExt;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use crate::support::{Front, PATIENCE, SHORT, with};

struct Client {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn connect(front: &Front) -> Self {
        Client::with(front, &mut Builder::new()).await
    }

    async fn with(front: &Front, builder: &mut Builder) -> Self {
        let (requests, connection) = builder.handshake(front.connect().await).await.unwrap();
        Client { requests, connection: spawn_local(connection) }
    }

    async fn send(
        &mut self,
        request: http::request::Builder,
        whole: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut requests = self.requests.clone().ready().await.unwrap();
        requests.send_request(request.body(()).unwrap(), whole).unwrap()
    }

    async fn status(&mut self, request: http::request::Builder) -> u16 {
        let (answer, _) = self.send(request, true).await;
        in_time(answer).await.unwrap().status().as_u16()
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it does not come")
}

async fn text(answer: Response<RecvStream>) -> Result<String, h2::Error> {
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = in_time(body.data()).await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    Ok(String::from_utf8(bytes).unwrap())
}

fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://a{path}"))
}

fn post(path: &str) -> http::request::Builder {
    Request::post(format!("http://a{path}"))
}

#[test]
fn many_requests_on_one_connection() {
    with(Limits::default(), async |front| {
        let mut client = Client::connect(front).await;
        let (nap, _) = client.send(get("/nap"), true).await;
        for number in 0..50 {
            let path = format!("/{number}");
            let (answer, _) = client.send(get(&path), true).await;
            let answer = in_time(answer).await.unwrap();
            assert_eq!(text(answer).await.unwrap(), path + "\n");
        }
        // The first has waited all the while.
        assert_eq!(text(in_time(nap).await.unwrap()).await.unwrap(), "nap\n");
        let (answer, mut body) = client.send(post("/echo"), false).await;
        body.send_data(Bytes::from("some "), false).unwrap();
        body.send_data(Bytes::from("bytes"), true).unwrap();
        assert_eq!(text(in_time(answer).await.unwrap()).await.unwrap(), "some bytes");
        front.serves_others().await;
    });
}

#[test]
fn bad_requests_end_alone() {
    with(Limits { body_bytes: 1000, ..Limits::default() }, async |front| {
        let mut client = Client::connect(front).await;
        assert_eq!(client.status(get("/a%2fb")).await, 400);
        assert_eq!(client.status(get(&format!("/{}", "x".repeat(20_000)))).await, 414);
        assert_eq!(client.status(get("/ä")).await, 400);
        let twice = get("/").header("content-length", 0).header("content-length", 0);
        assert_eq!(client.status(twice).await, 400);
        let mut many = get("/");
        for number in 0..101 {
            many = many.header(format!("x-{number}"), "a");
        }
        assert_eq!(client.status(many).await, 431);
        assert_eq!(client.status(get("/").header("x", "x".repeat(70_000))).await, 431);
        let (answer, _body) =
            client.send(post("/echo").header("content-length", 1001), false).await;
        assert_eq!(in_time(answer).await.unwrap().status(), 413);
        let (answer, mut body) = client.send(post("/upload"), false).await;
        body.send_data(Bytes::from(vec![0; 1001]), false).unwrap();
        assert_eq!(in_time(answer).await.unwrap().status(), 413);
        assert_eq!(client.status(get("/good")).await, 200);
        assert_eq!(front.seen(), ["POST /upload", "GET /good"]);
        let (connect, _) = client.send(Request::connect("a:1"), true).await;
        assert_eq!(in_time(connect).await.unwrap().status(), 501);
    });
}

#[test]
fn slow_bodies() {
    with(Limits { body_timeout: SHORT, ..Limits::default() }, async |front| {
        let mut client = Client::connect(front).await;
        let (answer, mut body) = client.send(post("/upload"), false).await;
        body.send_data(Bytes::from("a"), false).unwrap();
        assert_eq!(client.status(get("/")).await, 200);
        assert_eq!(in_time(answer).await.unwrap().status(), 408);
    });
}

#[test]
fn slow_readers() {
    with(Limits { write_timeout: SHORT, ..Limits::default() }, async |front| {
        let mut client = Client::connect(front).await;
        // It never opens the window again.
        let (answer, _) = client.send(get("/stream"), true).await;
        let mut body = in_time(answer).await.unwrap().into_body();
        front.until("the stream begins", |service| service.streaming.get() == 1).await;
        front.until("the stream is cut", |service| service.streaming.get() == 0).await;
        let cut = loop {
            match in_time(body.data()).await {
                Some(Ok(_)) => {}
                other => break other,
            }
        };
        assert_eq!(cut.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
        // The window of the connection was taken up by it.
        let mut other = Client::connect(front).await;
        assert_eq!(other.status(get("/")).await, 200);
    });
}

#[test]
fn silent_connections() {
    let limits = Limits { idle_timeout: SHORT, header_timeout: PATIENCE, ..Limits::default() };
    with(limits, async |front| {
        let mut client = Client::connect(front).await;
        assert_eq!(client.status(get("/nap")).await, 200);
        in_time(&mut client.connection).await.unwrap().unwrap();
        // One that does not even read.
        let mut deaf = front.connect().await;
        deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut registry = prometheus_client::registry::Registry::default();
        front.metrics.register(&mut registry);
        let closed = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text.contains("http_connections 0\n")
        };
        front.until("it is closed", |_| closed()).await;
    });
}

#[test]
fn clients_that_go() {
    with(Limits::default(), async |front| {
        let mut client = Client::connect(front).await;
        let (answer, mut stream) = client.send(get("/hang"), true).await;
        front.until("it runs", |service| service.running.get() == 1).await;
        stream.send_reset(Reason::CANCEL);
        drop(answer);
        front.until("it is dropped", |service| service.running.get() == 0).await;
        let (_hang, _) = client.send(get("/hang"), true).await;
        let (_stream, _) = client.send(get("/stream"), true).await;
        front
            .until("both run", |service| service.running.get() == 1 && service.streaming.get() == 1)
            .await;
        client.connection.abort();
        front
            .until("both are dropped", |service| {
                service.running.get() == 0 && service.streaming.get() == 0
            })
            .await;
    });
}

/// CVE-2023-44487.
#[test]
fn rapid_reset() {
    with(Limits::default(), async |front| {
        let mut client = front.connect().await;
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for number in 0..2000_u32 {
            let stream = (2 * number + 1).to_be_bytes();
            // GET, http, /, and the authority "a", by HPACK's static table.
            let block = [0x82, 0x86, 0x84, 0x01, 0x01, b'a'];
            bytes.extend([0, 0, 6, 1, 5]);
            bytes.extend(stream);
            bytes.extend(block);
            bytes.extend([0, 0, 4, 3, 0]);
            bytes.extend(stream);
            bytes.extend(8_u32.to_be_bytes());
        }
        let _ = client.write_all(&bytes).await;
        // Told to go away, or cut: it is not served for ever.
        let mut answer = Vec::new();
        let _ = in_time(tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answer)).await;
        assert!(front.seen().len() < 200, "{}", front.seen().len());
        front.serves_others().await;
    });
}

#[test]
fn stops() {
    with(Limits::default(), async |front| {
        let mut idle = Client::connect(front).await;
        assert_eq!(idle.status(get("/")).await, 200);
        let mut busy = Client::connect(front).await;
        let (nap, _) = busy.send(get("/nap"), true).await;
        front.until("it runs", |service| service.running.get() == 1).await;
        front.stop.send(true).unwrap();
        in_time(&mut idle.connection).await.unwrap().unwrap();
        assert_eq!(text(in_time(nap).await.unwrap()).await.unwrap(), "nap\n");
        in_time(&mut front.served).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    });
}
