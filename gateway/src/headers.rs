//! What of a request's head goes on to a function, and of an answer's to the client.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Uri, Version};
use kiln_keeper::front::Peer;

use crate::pool::Outgoing;

/// RFC 9110, 7.6.1: they are between two neighbours. `Expect` has been dealt with by the server.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// What only a proxy may say, and what clients say in its place.
const PROXYS_OWN: [HeaderName; 6] = [
    header::FORWARDED,
    FORWARDED_FOR,
    FORWARDED_HOST,
    FORWARDED_PROTO,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

/// The request as the function gets it; `rooted` says that its path is `/` and no other.
pub fn outgoing(
    mut parts: Parts,
    body: Outgoing,
    peer: Peer,
    rooted: bool,
) -> Result<Request<Outgoing>, &'static str> {
    let host = match (parts.uri.authority(), parts.headers.get(header::HOST)) {
        // h2, or HTTP/1.1 in the form for proxies, where it wins: RFC 9112, 3.2.2.
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).ok(),
        (None, host) => host.cloned(),
    };
    strip(&mut parts.headers);
    for name in PROXYS_OWN {
        parts.headers.remove(name);
    }
    if let Peer::Address(address) = peer {
        let text = ip(address).to_string();
        let value = HeaderValue::from_str(&text).map_err(|_| "an odd address")?;
        parts.headers.insert(FORWARDED_FOR, value);
    }
    parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    match host {
        Some(host) => {
            parts.headers.insert(FORWARDED_HOST, host.clone());
            parts.headers.insert(header::HOST, host);
        }
        // HTTP/1.0 has none; the function's server speaks 1.1.
        None => drop(parts.headers.insert(header::HOST, HeaderValue::from_static("localhost"))),
    }
    let path = match (rooted, parts.uri.query()) {
        (false, _) => parts.uri.path_and_query().cloned().ok_or("no path")?,
        (true, None) => PathAndQuery::from_static("/"),
        (true, Some(query)) => format!("/?{query}").parse().map_err(|_| "an odd query")?,
    };
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Ok(Request::from_parts(parts, body))
}

/// An IPv4 client of an IPv6 socket is what it says.
fn ip(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

/// Takes away what is between two neighbours only.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        // A client must not take away by this what was decided about its request.
        if name != header::CONTENT_LENGTH && name != header::HOST {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_neighbours_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret, content-length"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length"]);
    }

    #[test]
    fn an_ipv4_client_is_one() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(ip(mapped).to_string(), "10.0.0.1");
    }
}
