//! The front with a service that answers a constant: what HTTP itself costs. `constant PORT [plain]`;
//! plain is hyper without the front, for comparison.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed measurement")]

use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use kiln_keeper::front::{Body, Limits, Listener, Peer, Service, serve};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::LocalSet;

struct Constant;

impl Service for Constant {
    async fn answer(self: Rc<Self>, _: Request<Incoming>, _: Peer) -> Response<Body> {
        Response::new(Body::full("constant\n"))
    }
}

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let port: u16 = arguments.get(1).and_then(|port| port.parse().ok()).unwrap_or(8080);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        if arguments.len() == 2 {
            let (_stop, stopped) = watch::channel(false);
            serve(Listener::Tcp(listener), Limits::default(), Rc::new(Constant), stopped)
                .await
                .unwrap();
            return;
        }
        let constant = |_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("constant\n"))))
        };
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::task::spawn_local(async move {
                let builder = auto::Builder::new(Local);
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(constant)).await;
            });
        }
    }));
}
