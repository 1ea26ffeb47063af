//! A server without descriptors goes on as soon as there are some. In a process of its own: the limit
//! is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::fs::File;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use kiln_keeper::front::{Body, Limits, Listener, Peer, Service, serve};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

struct Hello;

impl Service for Hello {
    async fn answer(self: Rc<Self>, _: Request<Incoming>, _: Peer) -> Response<Body> {
        Response::new(Body::full("hello\n"))
    }
}

#[test]
fn no_descriptors() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_stop, stopped) = watch::channel(false);
        let limits = Limits { spared: Duration::from_secs(3600), ..Limits::default() };
        let served = spawn_local(serve(Listener::Tcp(listener), limits, Rc::new(Hello), stopped));

        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum }).unwrap();
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        // One for the client, none for the server.
        files.pop();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let before = busy();
        let mut answer = String::new();
        let silent = timeout(Duration::from_millis(500), client.read_to_string(&mut answer)).await;
        assert!(silent.is_err(), "it was accepted: {answer}");
        // It would be all of the time if it tried again at once.
        let spent = busy() - before;
        assert!(spent < Duration::from_millis(200), "{spent:?} of processor time");
        assert!(!served.is_finished());
        files.clear();
        timeout(Duration::from_secs(30), client.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.ends_with("\r\n\r\nhello\n"), "{answer}");
    }));
}

fn busy() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}
