//! One gRPC call: a connection of its own over a unix socket, a request, a response.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// The longest that a call may take: StopContainer waits for a grace period.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the server answered in place of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code: 5 is "not found" (`google.golang.org/grpc/codes`).
    pub code: u32,
    /// What it says.
    pub message: String,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}: {}", self.code, self.message)
    }
}

/// Calls `/SERVICE/METHOD` and blocks until it is answered.
///
/// # Panics
/// If there is no answer: the server is gone, or takes longer than a minute.
#[track_caller]
pub fn call<Q: Message, R: Message + Default>(
    socket: &Path,
    method: &str,
    request: &Q,
) -> Result<R, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let exchange = exchange(socket, method, frame(request));
    let answer = runtime.block_on(async { tokio::time::timeout(DEADLINE, exchange).await });
    let (headers, body) = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(err)) => panic!("{method}: {err}"),
        Err(_) => panic!("{method}: no answer in {DEADLINE:?}"),
    };
    match status(&headers) {
        Status { code: 0, .. } => Ok(R::decode(body.get(5..).unwrap_or_default()).unwrap()),
        status => Err(status),
    }
}

/// A message as gRPC has it: not compressed, its length, itself.
fn frame(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend(body);
    frame.into()
}

/// The trailers, or the headers if there is nothing else, and the body.
async fn exchange(
    socket: &Path,
    method: &str,
    frame: Bytes,
) -> Result<(HeaderMap, Vec<u8>), Box<dyn std::error::Error>> {
    let stream = UnixStream::connect(socket).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    // Ends with the runtime.
    tokio::spawn(connection);
    request(client, method, frame).await
}

async fn request(
    client: h2::client::SendRequest<Bytes>,
    method: &str,
    frame: Bytes,
) -> Result<(HeaderMap, Vec<u8>), Box<dyn std::error::Error>> {
    let mut client = client.ready().await?;
    let request = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = client.send_request(request, false)?;
    // A fresh connection takes 64 KiB at once; what the tests ask for is far less.
    body.send_data(frame, true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend(chunk);
    }
    Ok((body.trailers().await?.unwrap_or(head.headers), bytes))
}

fn status(headers: &HeaderMap) -> Status {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let code = text("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(u32::MAX);
    let message = text("grpc-message").map(|message| unescape(&message)).unwrap_or_default();
    Status { code, message }
}

/// Undoes the percent encoding of `grpc-message`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(code) if *first == b'%' => {
                bytes.push(code);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_unescaped() {
        assert_eq!(unescape("a%20b%c3%A9 100%, %zz"), "a bé 100%, %zz");
    }
}
