//! The admin address: health, metrics, the functions as JSON, and the status page.

use std::rc::Rc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kiln_keeper::front::{Body, Peer, Service};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::config::Source;
use crate::function::Function;
use crate::gateway::{Gateway, PLAIN};
use crate::lifecycle::State;
use crate::proxy::plain;

const PAGE: &str = include_str!("status.html");
/// The page is its own script and style; it loads nothing, and speaks to nobody else.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
/// How long a function's server may take to say how it is.
const PATIENCE: Duration = Duration::from_millis(200);
/// What it may say, in bytes.
const MOST: usize = 64 << 10;

/// The service of the admin address.
#[derive(Debug)]
pub struct Admin(pub Rc<Gateway>);

/// A function as `/api/functions` and `kiln fn` have it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    /// The function.
    pub name: String,
    /// Its state.
    pub state: String,
    /// Why there is no container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The module or the bundle.
    pub source: String,
    /// `keeper` or `cgi`, or of a bundle nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What it answers.
    pub routes: Vec<String>,
    /// Whether it was added while a gateway ran.
    pub added: bool,
    /// Its container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Init of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Requests that are over.
    pub requests: u64,
    /// Of them those answered with 5xx.
    pub errors: u64,
    /// Requests that run or wait.
    pub in_flight: usize,
    /// Containers that were created.
    pub cold_starts: u64,
    /// Half of the last answers took less, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// 99 of 100 of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Of the container's cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What the function's server says of itself, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerStats>,
}

/// `GET /stats` of a function's server.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ServerStats {
    /// Instances that wait for a request.
    pub warm: u64,
    /// Instances that run.
    pub busy: u64,
    /// Requests that wait for one.
    pub queued: u64,
    /// Requests that it has had.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Instances that were made while a request waited.
    pub cold_starts: u64,
}

impl Report {
    /// Of a function, as it is now.
    pub async fn of(gateway: &Gateway, function: &Rc<Function>) -> Self {
        let now = function.now();
        let numbers = &function.named.numbers;
        let millis = |part| numbers.quantile(part).map(|time| time.as_secs_f64() * 1000.0);
        let (Source::Module(source) | Source::Bundle(source)) = &function.config.source;
        let container = function.container();
        Self {
            name: now.name,
            state: now.state.to_owned(),
            reason: function.reason(),
            source: source.display().to_string(),
            protocol: function.config.protocol.map(|protocol| protocol.name().to_owned()),
            routes: gateway.routes_of(function.name()),
            added: gateway.was_added(function.name()),
            container: container.as_ref().map(|container| container.id.clone()),
            pid: container.as_ref().map(|container| container.pid),
            requests: numbers.requests.get(),
            errors: numbers.errors.get(),
            in_flight: now.in_flight,
            cold_starts: numbers.cold_starts.get(),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            memory_bytes: now.memory,
            server: ask_server(function).await,
        }
    }

    /// Of all functions; they are asked at the same time.
    pub async fn of_all(gateway: &Rc<Gateway>) -> Vec<Self> {
        let functions = gateway.functions();
        let mut waiting = Vec::with_capacity(functions.len());
        for function in functions {
            let gateway = Rc::clone(gateway);
            waiting
                .push(tokio::task::spawn_local(async move { Self::of(&gateway, &function).await }));
        }
        let mut all = Vec::with_capacity(waiting.len());
        for report in waiting {
            all.extend(report.await.ok());
        }
        all
    }
}

/// Asks a function that runs; a frozen one could not answer, and is not thawed for this.
async fn ask_server(function: &Function) -> Option<ServerStats> {
    if function.state() != State::Warm {
        return None;
    }
    let path = function.container()?.admin_path()?;
    let ask = async {
        let stream = UnixStream::connect(path).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::task::spawn_local(connection);
        let request = Request::get("/stats").header(header::HOST, "localhost");
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).ok()?;
        let response = sender.send_request(request).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = http_body_util::Limited::new(response.into_body(), MOST);
        let bytes = body.collect().await.ok()?.to_bytes();
        serde_json::from_slice(&bytes).ok()
    };
    tokio::time::timeout(PATIENCE, ask).await.ok().flatten()
}

impl Service for Admin {
    async fn answer(self: Rc<Self>, request: Request<Incoming>, _: Peer) -> Response<Body> {
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET and HEAD only\n");
        }
        let gateway = &self.0;
        match path {
            "/" => page(),
            "/healthz" => plain(StatusCode::OK, PLAIN, "ok\n"),
            "/readyz" => ready(gateway),
            "/metrics" => {
                let now: Vec<_> =
                    gateway.functions().iter().map(|function| function.now()).collect();
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                plain(StatusCode::OK, kind, gateway.shared.metrics.text(&now))
            }
            "/api/functions" => json(&Report::of_all(gateway).await),
            _ => plain(StatusCode::NOT_FOUND, PLAIN, "there is nothing here\n"),
        }
    }
}

/// Ready is whoever takes requests: functions that fail are told by their own states.
fn ready(gateway: &Gateway) -> Response<Body> {
    let going = gateway.functions().iter().any(|function| function.state() == State::Retired);
    match going {
        true => plain(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "ending\n"),
        false => plain(StatusCode::OK, PLAIN, "ok\n"),
    }
}

fn page() -> Response<Body> {
    let mut response = plain(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// An answer with a document.
pub fn json(document: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(document).unwrap_or_default();
    let mut response = plain(StatusCode::OK, "application/json", text);
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
