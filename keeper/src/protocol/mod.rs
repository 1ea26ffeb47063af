//! What requests and answers look like.

pub mod cgi;
pub mod keeper;

use std::ffi::CString;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::front::Body;
use crate::guest::Ended;
use crate::pool::Refused;

/// What every call of a function has in common.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// `argv[0]`, and the arguments before a request's own.
    pub args: Vec<CString>,
    /// The environment, each `NAME=value`.
    pub env: Vec<CString>,
}

/// Why a request was not answered as it should have been. The kinds of `kiln_errors_total`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The client's fault.
    #[error("{1}")]
    Request(StatusCode, String),
    /// The guest was stopped by a trap.
    #[error("wasm trap: {0}")]
    Trap(String),
    /// The guest ended with another status than zero.
    #[error("exit status {0}")]
    Exit(u32),
    /// It took too long.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// It said too much, or nothing that the protocol knows.
    #[error("{0}")]
    Output(String),
    /// Its worker died, or there was no instance.
    #[error("{0}")]
    Worker(String),
    /// No worker was free.
    #[error("{0}")]
    Refused(#[from] Refused),
}

impl Failure {
    /// How they are called in metrics.
    pub const KINDS: [&str; 7] =
        ["request", "trap", "exit", "timeout", "output", "worker", "refused"];

    /// How it is called in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Request(..) => "request",
            Failure::Trap(_) => "trap",
            Failure::Exit(_) => "exit",
            Failure::Timeout(_) => "timeout",
            Failure::Output(_) => "output",
            Failure::Worker(_) => "worker",
            Failure::Refused(_) => "refused",
        }
    }

    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        match self {
            Failure::Request(status, _) => *status,
            Failure::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Failure::Refused(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// How a call's end is one.
    pub(crate) fn of(ended: Ended) -> Option<Self> {
        match ended {
            Ended::Exit(0) => None,
            Ended::Exit(status) => Some(Failure::Exit(status)),
            Ended::Trap(reason) => Some(Failure::Trap(reason)),
            Ended::Failed(reason) => Some(Failure::Worker(reason)),
        }
    }

    pub(crate) fn response(
        &self,
        content_type: &'static str,
        body: impl Into<bytes::Bytes>,
    ) -> Response<Body> {
        let mut response = response(self.status(), content_type, body);
        if matches!(self, Failure::Refused(_)) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A whole answer.
pub fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<bytes::Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A string as C has it.
///
/// # Errors
/// It has a NUL byte: 400, naming `what`.
pub(crate) fn c_string(what: &str, text: impl Into<Vec<u8>>) -> Result<CString, Failure> {
    CString::new(text)
        .map_err(|_| Failure::Request(StatusCode::BAD_REQUEST, format!("{what}: has a NUL byte")))
}
