//! A server with a trivial service, and clients that send whatever they like.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use kiln_keeper::front::access::Access;
use kiln_keeper::front::{Body, Limits, Listener, Metrics, Peer, Server, Service, Upload};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

/// What must happen happens long before; a loaded machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A deadline that a test waits for.
pub const SHORT: Duration = Duration::from_millis(300);

pub const HELLO: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
pub const LAST: &str = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Says which requests it has seen, and how many are under way.
#[derive(Default)]
pub struct Trivial {
    pub limits: Limits,
    pub seen: RefCell<Vec<String>>,
    pub running: Cell<usize>,
    pub streaming: Cell<usize>,
}

struct Count<'a>(&'a Cell<usize>);

impl<'a> Count<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Count(count)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Service for Trivial {
    async fn answer(self: Rc<Self>, request: Request<Incoming>, _: Peer) -> Response<Body> {
        self.seen.borrow_mut().push(format!("{} {}", request.method(), request.uri().path()));
        let _running = Count::new(&self.running);
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/echo" => match request.into_body().collect().await {
                Ok(body) => Response::new(Body::full(body.to_bytes())),
                Err(_) => status(StatusCode::IM_A_TEAPOT),
            },
            "/upload" => match Upload::new(request.into_body(), &self.limits).collect().await {
                Ok(body) => Response::new(Body::full(body.to_bytes())),
                Err(error) => status(
                    error.refusal().map_or(StatusCode::IM_A_TEAPOT, |refusal| refusal.status()),
                ),
            },
            "/nap" => {
                sleep(SHORT).await;
                Response::new(Body::full("nap\n"))
            }
            "/drop" => {
                drop(request);
                sleep(SHORT).await;
                Response::new(Body::full("nap\n"))
            }
            "/hang" => std::future::pending().await,
            "/stream" => {
                let (sender, chunks) = mpsc::channel(1);
                let this = Rc::clone(&self);
                spawn_local(async move {
                    let _streaming = Count::new(&this.streaming);
                    while sender.send(Ok(Bytes::from_static(&[b'x'; 64 << 10]))).await.is_ok() {}
                });
                Response::new(Body::stream(chunks))
            }
            _ => Response::new(Body::full(path + "\n")),
        }
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::full(""));
    *response.status_mut() = status;
    response
}

pub struct Front {
    pub address: SocketAddr,
    pub service: Rc<Trivial>,
    pub metrics: Metrics,
    pub stop: watch::Sender<bool>,
    pub served: JoinHandle<std::io::Result<()>>,
}

/// Runs a test against a server with these limits.
pub fn with(limits: Limits, test: impl AsyncFnOnce(&mut Front)) {
    with_log(limits, None, test);
}

pub fn with_log(limits: Limits, access: Option<Access>, test: impl AsyncFnOnce(&mut Front)) {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut front = start(Listener::Tcp(listener), address, limits, access);
        timeout(4 * PATIENCE, test(&mut front)).await.expect("the test hangs");
    });
}

pub fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(test));
}

pub fn start(
    listener: Listener,
    address: SocketAddr,
    limits: Limits,
    access: Option<Access>,
) -> Front {
    let service = Rc::new(Trivial { limits: limits.clone(), ..Trivial::default() });
    let (stop, stopped) = watch::channel(false);
    let metrics = Metrics::default();
    let server = Server { limits, metrics: metrics.clone(), access };
    let served = spawn_local(server.serve(listener, Rc::clone(&service), stopped));
    Front { address, service, metrics, stop, served }
}

impl Front {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a connection of their own, and reads until the server closes it.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> String {
        let (mut reader, mut writer) = self.connect().await.into_split();
        let bytes = bytes.as_ref().to_vec();
        // The server may stop reading: what counts is the answer.
        let writing = spawn_local(async move {
            let _ = writer.write_all(&bytes).await;
            writer
        });
        let answer = rest(&mut reader).await;
        writing.abort();
        answer
    }

    /// The same on a connection that has had an answer: there the bytes take another way.
    pub async fn send_second(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.write_all(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut client, "/first\n").await;
        client.write_all(bytes.as_ref()).await.unwrap();
        rest(&mut client).await
    }

    /// Another client is served, and at once.
    pub async fn serves_others(&self) {
        let answer = self.send(LAST).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    pub async fn until(&self, what: &str, mut done: impl FnMut(&Trivial) -> bool) {
        let waiting = async {
            while !done(&self.service) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// Without those of [`Front::send_second`].
    pub fn seen(&self) -> Vec<String> {
        let seen = self.service.seen.borrow();
        seen.iter().filter(|request| *request != "GET /first").cloned().collect()
    }
}

/// All until the server closes the connection.
pub async fn rest(reader: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, reader.read_to_end(&mut bytes)).await.expect("it is not closed");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(read.is_ok(), "{read:?} after {text:?}");
    text
}

/// As much as is there when the body ends with `end`.
pub async fn read_until(reader: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !bytes.ends_with(end.as_bytes()) {
            assert!(reader.read_buf(&mut bytes).await.unwrap() > 0, "{}", bytes.escape_ascii());
        }
    };
    let done = timeout(PATIENCE, reading).await;
    assert!(done.is_ok(), "{}", bytes.escape_ascii());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The statuses of the answers in a text, in order.
pub fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
}
