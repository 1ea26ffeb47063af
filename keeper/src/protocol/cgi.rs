//! The Common Gateway Interface 1.1, RFC 3875: the request in variables and on stdin, the answer's
//! headers and body on stdout. stderr goes to the log.

use std::collections::BTreeMap;
use std::ffi::CString;

use bytes::{Buf, Bytes, BytesMut};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName,
    HeaderValue, LOCATION, TRANSFER_ENCODING,
};
use hyper::{Request, Response, StatusCode, Version};

use super::{Base, Failure, c_string};
use crate::call::Call;
use crate::front::Peer;

/// How long the headers of an answer may be, in bytes.
pub const MAX_HEADERS: usize = 64 << 10;
/// How often an answer may name another path of this function instead.
pub const MAX_REDIRECTS: usize = 5;

/// Headers of a request that become no variable: they are between client and server (RFC 3875,
/// 4.1.18), or a program would take `HTTP_PROXY` for its own configuration.
const WITHHELD: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The call for a request: RFC 3875, 4.1. `stdin` says whether a body comes with it; its length is
/// told only if it is known, as a program that needs it can then count on it.
///
/// # Errors
/// Something in it cannot be a variable: 400.
pub fn call<B>(
    base: &Base,
    request: &Request<B>,
    peer: Peer,
    stdin: bool,
) -> Result<Call, Failure> {
    let mut env = base.env.clone();
    let mut set = |name: &str, value: &[u8]| -> Result<(), Failure> {
        env.push(c_string(name, [name.as_bytes(), b"=", value].concat())?);
        Ok(())
    };
    let headers = request.headers();
    let uri = request.uri();
    set("GATEWAY_INTERFACE", b"CGI/1.1")?;
    set("SERVER_SOFTWARE", concat!("kiln/", env!("CARGO_PKG_VERSION")).as_bytes())?;
    let protocol = match request.version() {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    set("SERVER_PROTOCOL", protocol.as_bytes())?;
    set("REQUEST_METHOD", request.method().as_str().as_bytes())?;
    set("SCRIPT_NAME", b"")?;
    set("PATH_INFO", &decoded(uri.path()))?;
    set("REQUEST_URI", uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes())?;
    set("QUERY_STRING", uri.query().unwrap_or_default().as_bytes())?;
    let authority = uri.authority().map(|authority| authority.as_str());
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    let (name, port) = host_and_port(authority.or(host).unwrap_or_default());
    set("SERVER_NAME", name.as_bytes())?;
    set("SERVER_PORT", port.as_bytes())?;
    let address = match peer {
        Peer::Address(address) => address.ip().to_canonical().to_string(),
        // RFC 3875, 4.1.8 wants an address.
        Peer::Local => "127.0.0.1".to_owned(),
    };
    set("REMOTE_ADDR", address.as_bytes())?;
    set("REMOTE_HOST", address.as_bytes())?;
    if let (true, Some(length)) = (stdin, headers.get(CONTENT_LENGTH)) {
        set("CONTENT_LENGTH", length.as_bytes())?;
    }
    if let Some(kind) = headers.get(CONTENT_TYPE) {
        set("CONTENT_TYPE", kind.as_bytes())?;
    }
    if let Some(scheme) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        set("AUTH_TYPE", scheme.split(' ').next().unwrap_or_default().as_bytes())?;
    }
    for (name, value) in variables(headers) {
        set(&name, &value)?;
    }
    Ok(Call { args: base.args.clone(), env, stdin, stderr: false })
}

/// `HTTP_*`, RFC 3875, 4.1.18. A name with an underscore is left out: it could not be told from one
/// with a hyphen, which somebody in between may have checked.
fn variables(headers: &HeaderMap) -> BTreeMap<String, Vec<u8>> {
    let mut variables: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, value) in headers {
        if WITHHELD.contains(&name.as_str())
            || name.as_str().contains('_')
            || [CONTENT_LENGTH, CONTENT_TYPE].contains(name)
        {
            continue;
        }
        let variable = format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
        let joined = variables.entry(variable).or_default();
        if !joined.is_empty() {
            // RFC 9110, 5.3, and RFC 6265, 5.4.
            joined.extend_from_slice(if name == COOKIE { b"; " } else { b", " });
        }
        joined.extend_from_slice(value.as_bytes());
    }
    variables
}

/// A path without its percent-encoding, of which what is malformed stays as it is.
fn decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = path.get(at + 1..at + 3).filter(|_| byte == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// A server's name, without an IPv6 address's port, and its port.
fn host_and_port(authority: &str) -> (&str, &str) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, port)
        }
        _ => (if authority.is_empty() { "localhost" } else { authority }, "80"),
    }
}

/// What a guest's headers say, RFC 3875, 6.
#[derive(Debug)]
pub enum Answer {
    /// Another path of this function is to answer, 6.2.2.
    Redirect(String),
    /// The headers of the answer; the body follows.
    Head(Box<Response<()>>),
}

/// Takes the headers from the beginning of a guest's output, once they are there.
///
/// # Errors
/// They are malformed or too long.
pub fn head(output: &mut BytesMut) -> Result<Option<Answer>, Failure> {
    let Some((end, length)) = blank_line(output) else {
        return match output.len() > MAX_HEADERS {
            true => Err(bad(format!("headers of more than {MAX_HEADERS} bytes"))),
            false => Ok(None),
        };
    };
    let head = output.split_to(end).freeze();
    output.advance(length);
    parse(&head).map(Some)
}

/// The output of a guest that has ended without a blank line.
pub fn headless(output: &[u8]) -> Failure {
    match output {
        [] => bad("no output, where headers were to come".to_owned()),
        _ => bad("no blank line behind the headers".to_owned()),
    }
}

/// Where the headers end, and how long their end is.
fn blank_line(output: &[u8]) -> Option<(usize, usize)> {
    match output {
        [b'\n', ..] => return Some((0, 1)),
        [b'\r', b'\n', ..] => return Some((0, 2)),
        _ => {}
    }
    let mut from = 0;
    while let Some(at) = output[from..].iter().position(|byte| *byte == b'\n') {
        let after = from + at + 1;
        match &output[after..] {
            [b'\n', ..] => return Some((after, 1)),
            [b'\r', b'\n', ..] => return Some((after, 2)),
            _ => from = after,
        }
    }
    None
}

fn parse(head: &Bytes) -> Result<Answer, Failure> {
    let mut response = Response::new(());
    let mut status = None;
    let mut count = 0;
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        count += 1;
        let (name, value) = split(line)?;
        if name.as_str() == "status" {
            status = Some(status_code(value)?);
        } else if ![CONNECTION, TRANSFER_ENCODING].contains(&name)
            && name != "upgrade"
            && name != "keep-alive"
        {
            let value = HeaderValue::from_bytes(value)
                .map_err(|_| bad(format!("header {name}: invalid value")))?;
            response.headers_mut().append(name, value);
        }
    }
    if count == 0 {
        return Err(bad("a blank line, where headers were to come".to_owned()));
    }
    check_length(response.headers_mut())?;
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    if let (Some(location), 1) = (location, count)
        && location.starts_with('/')
        && !location.starts_with("//")
    {
        return Ok(Answer::Redirect(location.to_owned()));
    }
    // 6.2.3: without a status it is a redirection all the same.
    let default = if location.is_some() { StatusCode::FOUND } else { StatusCode::OK };
    *response.status_mut() = status.unwrap_or(default);
    Ok(Answer::Head(Box::new(response)))
}

fn split(line: &[u8]) -> Result<(HeaderName, &[u8]), Failure> {
    let malformed = || bad(format!("not a header: {:?}", String::from_utf8_lossy(line)));
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(malformed)?;
    let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| malformed())?;
    Ok((name, line[colon + 1..].trim_ascii()))
}

fn status_code(value: &[u8]) -> Result<StatusCode, Failure> {
    let code = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    // 1xx would not be the answer's.
    StatusCode::from_bytes(code)
        .ok()
        .filter(|code| code.as_u16() >= 200)
        .ok_or_else(|| bad(format!("not a status: {:?}", String::from_utf8_lossy(value))))
}

/// hyper trusts a length that it is given.
fn check_length(headers: &mut HeaderMap) -> Result<(), Failure> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(()) };
    let digits = first.as_bytes();
    let number = !digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit);
    match number && lengths.next().is_none() {
        true => Ok(()),
        false => Err(bad("header content-length: invalid value".to_owned())),
    }
}

fn bad(reason: String) -> Failure {
    Failure::Output(format!("the function answered with {reason}"))
}

/// `argv[0]`: the script.
pub fn program(module: &str) -> CString {
    CString::new(module.replace('\0', "")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables_of(request: Request<()>, stdin: bool) -> BTreeMap<String, String> {
        let base = Base { args: vec![c"m".into()], env: vec![c"A=1".to_owned()] };
        let call = call(&base, &request, Peer::Local, stdin).unwrap();
        let pairs = call.env.iter().map(|entry| {
            let (name, value) = entry.to_str().unwrap().split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        });
        pairs.collect()
    }

    #[test]
    fn a_request_in_variables() {
        let request = Request::post("/a%20b/c%zz?x=%20&y")
            .header("Host", "example.org:8080")
            .header("Content-Length", "3")
            .header("Content-Type", "text/plain")
            .header("Cookie", "a=1")
            .header("Cookie", "b=2")
            .header("X-Twice", "1")
            .header("X-Twice", "2")
            .header("Proxy", "http://evil")
            .header("X_Under", "score")
            .header("Connection", "close");
        let found = variables_of(request.body(()).unwrap(), true);
        for (name, value) in [
            ("A", "1"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("REQUEST_METHOD", "POST"),
            ("SCRIPT_NAME", ""),
            ("PATH_INFO", "/a b/c%zz"),
            ("QUERY_STRING", "x=%20&y"),
            ("REQUEST_URI", "/a%20b/c%zz?x=%20&y"),
            ("SERVER_NAME", "example.org"),
            ("SERVER_PORT", "8080"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("CONTENT_LENGTH", "3"),
            ("CONTENT_TYPE", "text/plain"),
            ("REMOTE_ADDR", "127.0.0.1"),
            ("HTTP_HOST", "example.org:8080"),
            ("HTTP_COOKIE", "a=1; b=2"),
            ("HTTP_X_TWICE", "1, 2"),
        ] {
            assert_eq!(found.get(name).map(String::as_str), Some(value), "{name}");
        }
        for name in ["HTTP_PROXY", "HTTP_X_UNDER", "HTTP_CONNECTION", "HTTP_CONTENT_LENGTH"] {
            assert!(!found.contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_length_is_that_of_a_body() {
        let request = Request::get("/").header("Content-Length", "0").body(()).unwrap();
        assert!(!variables_of(request, false).contains_key("CONTENT_LENGTH"));
    }

    #[test]
    fn no_variable_holds_a_nul_byte() {
        let request = Request::get("/a%00b").body(()).unwrap();
        let failure = call(&Base::default(), &request, Peer::Local, false).unwrap_err();
        assert_eq!(failure.status(), StatusCode::BAD_REQUEST);
    }

    fn answer(output: &str) -> Result<Option<(StatusCode, HeaderMap, String)>, String> {
        let mut output = BytesMut::from(output.as_bytes());
        match head(&mut output).map_err(|failure| failure.to_string())? {
            None => Ok(None),
            Some(Answer::Redirect(to)) => Err(format!("to {to}")),
            Some(Answer::Head(head)) => {
                let body = String::from_utf8(output.to_vec()).unwrap();
                Ok(Some((head.status(), head.headers().clone(), body)))
            }
        }
    }

    #[test]
    fn headers_and_body() {
        let (status, headers, body) =
            answer("Content-Type: text/plain\r\nX-A:b\r\n\r\nbody\n\n").unwrap().unwrap();
        assert_eq!((status, body.as_str()), (StatusCode::OK, "body\n\n"));
        assert_eq!(
            (&headers["content-type"], &headers["x-a"]),
            (&HeaderValue::from_static("text/plain"), &HeaderValue::from_static("b"))
        );
        let (status, headers, body) =
            answer("Status: 404 Not Found\nA: 1\nA: 2\n\n").unwrap().unwrap();
        assert_eq!(
            (status, body.as_str(), headers.get_all("a").iter().count()),
            (StatusCode::NOT_FOUND, "", 2)
        );
        assert!(answer("Content-Type: text/plain\r\n").unwrap().is_none(), "not all is there");
        let (_, headers, _) =
            answer("Connection: close\nTransfer-Encoding: chunked\nA: 1\n\n").unwrap().unwrap();
        assert_eq!(headers.len(), 1, "the connection is the server's");
    }

    #[test]
    fn redirects() {
        assert_eq!(answer("Location: /x?y\n\n").unwrap_err(), "to /x?y");
        let (status, ..) = answer("Location: https://example.org/\n\n").unwrap().unwrap();
        assert_eq!(status, StatusCode::FOUND);
        let (status, ..) = answer("Status: 301\nLocation: /x\n\n").unwrap().unwrap();
        assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
    }

    #[test]
    fn malformed_headers() {
        for output in [
            "\n",
            "hello\n\n",
            "a b: c\n\n",
            ": c\n\n",
            "Status: ok\n\n",
            "Status: 101\n\n",
            "Status: 9999\n\n",
            "Content-Length: -1\n\n",
            "Content-Length: 1\nContent-Length: 1\n\n",
            "A: \u{1}\n\n",
        ] {
            let error = answer(output).unwrap_err();
            assert!(error.starts_with("the function answered with"), "{output:?}: {error}");
        }
        assert!(answer(&"A: b\n".repeat(20_000)).unwrap_err().contains("65536"));
    }
}
