//! Why a request is answered by the front itself, and how.

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::Body;

/// What is wrong with a request that no service sees, or whose service is stopped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The first line is not METHOD TARGET HTTP/1.x (RFC 9112, 3).
    RequestLine,
    /// Another version of HTTP than 1.0, 1.1 and 2.
    Version,
    /// CONNECT: this is no proxy.
    Connect,
    /// A line that ends in LF alone (RFC 9112, 2.2, allows to refuse it).
    BareLf,
    /// A header without name or colon, or with a blank before the colon (RFC 9112, 5.1).
    Field,
    /// A header that goes on in the next line (RFC 9112, 5.2).
    Fold,
    /// A control character, NUL and CR among them, in a header.
    Control,
    /// No `Host`, or several, in HTTP/1.1 (RFC 9112, 3.2).
    Host,
    /// A `Content-Length` that is not one number.
    Length,
    /// A `Transfer-Encoding` that is not `chunked`, or in HTTP/1.0 (RFC 9112, 6.1).
    Coding,
    /// Both `Content-Length` and `Transfer-Encoding` (RFC 9112, 6.3).
    LengthAndCoding,
    /// A chunk's size, end or trailer is wrong (RFC 9112, 7.1).
    Chunk,
    /// The path is not acceptable: see [`path`](super::path).
    Path,
    /// The request line is too long.
    LongUri,
    /// The head has too many bytes or too many headers.
    LongHead,
    /// The body is too large.
    LongBody,
    /// The head did not come in time.
    SlowHead,
    /// The body did not come in time.
    SlowBody,
}

impl Refusal {
    /// The status that says so.
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Refusal::Connect => StatusCode::NOT_IMPLEMENTED,
            Refusal::LongUri => StatusCode::URI_TOO_LONG,
            Refusal::LongHead => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refusal::LongBody => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::SlowHead | Refusal::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Refusal::RequestLine
            | Refusal::BareLf
            | Refusal::Field
            | Refusal::Fold
            | Refusal::Control
            | Refusal::Host
            | Refusal::Length
            | Refusal::Coding
            | Refusal::LengthAndCoding
            | Refusal::Chunk
            | Refusal::Path => StatusCode::BAD_REQUEST,
        }
    }

    /// One word for it, in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::RequestLine => "request_line",
            Refusal::Version => "version",
            Refusal::Connect => "connect",
            Refusal::BareLf => "bare_lf",
            Refusal::Field => "field",
            Refusal::Fold => "fold",
            Refusal::Control => "control",
            Refusal::Host => "host",
            Refusal::Length => "length",
            Refusal::Coding => "coding",
            Refusal::LengthAndCoding => "length_and_coding",
            Refusal::Chunk => "chunk",
            Refusal::Path => "path",
            Refusal::LongUri => "long_uri",
            Refusal::LongHead => "long_head",
            Refusal::LongBody => "long_body",
            Refusal::SlowHead => "slow_head",
            Refusal::SlowBody => "slow_body",
        }
    }

    /// A line for whoever sent it.
    fn text(self) -> &'static str {
        match self {
            Refusal::RequestLine => "the request line is malformed\n",
            Refusal::Version => "this version of HTTP is not spoken here\n",
            Refusal::Connect => "CONNECT is not supported\n",
            Refusal::BareLf => "a line of the head ends in LF alone\n",
            Refusal::Field => "a header is malformed\n",
            Refusal::Fold => "a header goes on in the next line\n",
            Refusal::Control => "a header has a control character\n",
            Refusal::Host => "there must be one Host header\n",
            Refusal::Length => "Content-Length is not one number\n",
            Refusal::Coding => "Transfer-Encoding is not chunked\n",
            Refusal::LengthAndCoding => "there are both Content-Length and Transfer-Encoding\n",
            Refusal::Chunk => "the chunked body is malformed\n",
            Refusal::Path => "the path is not acceptable\n",
            Refusal::LongUri => "the request line is too long\n",
            Refusal::LongHead => "the head is too large\n",
            Refusal::LongBody => "the body is too large\n",
            Refusal::SlowHead => "the head did not come in time\n",
            Refusal::SlowBody => "the body did not come in time\n",
        }
    }

    /// The answer. `close`: the connection ends with it; HTTP/2 must not say so in a header.
    pub(super) fn response(self, close: bool) -> Response<Body> {
        let mut response = Response::new(Body::full(Bytes::from_static(self.text().as_bytes())));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
