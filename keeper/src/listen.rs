//! Listening sockets, from addresses and from whoever has opened them before.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, ipproto, sockopt};

use crate::front::Listener;

/// Connections that wait to be accepted; the kernel has its own limit (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// Why nobody can listen at an address.
#[derive(Debug, thiserror::Error)]
#[error("listen at {address}: {source}")]
pub struct Error {
    address: String,
    source: io::Error,
}

/// Listens at `address`: `HOST:PORT`, `:PORT` for all addresses, or `unix:PATH` for a socket that must
/// not be there yet, unless nobody listens there any more. The descriptor is the caller's.
///
/// # Errors
/// It is not an address, or not to be had.
pub fn listen(address: &str) -> Result<OwnedFd, Error> {
    let opened = match address.strip_prefix("unix:") {
        Some(path) => unix(path),
        None => tcp(address),
    };
    opened.map_err(|source| Error { address: address.to_owned(), source })
}

fn unix(path: &str) -> io::Result<OwnedFd> {
    if path.is_empty() {
        // The kernel would choose a name.
        return Err(io::Error::other("not a path"));
    }
    let socket = socket(AddressFamily::UNIX)?;
    let address = SocketAddrUnix::new(path)?;
    match rustix::net::bind(&socket, &address) {
        // What a server has left that was killed.
        Err(Errno::ADDRINUSE) if is_deserted(path) => {
            rustix::fs::unlink(path)?;
            rustix::net::bind(&socket, &address)?;
        }
        bound => bound?,
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Whether a path is a socket at which nobody listens.
fn is_deserted(path: &str) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn tcp(address: &str) -> io::Result<OwnedFd> {
    // A name may have several addresses; `localhost` has two.
    let addresses: Vec<SocketAddr> = match address.strip_prefix(':') {
        Some(port) => {
            let port = port.parse().map_err(|_| io::Error::other("not a port"))?;
            vec![SocketAddr::from(([0, 0, 0, 0], port))]
        }
        None => address.to_socket_addrs()?.collect(),
    };
    let mut failure = io::Error::other("has no address");
    for address in addresses {
        match tcp_at(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn tcp_at(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family)?;
    // Connections of a server before this one may linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = (family != AddressFamily::UNIX).then_some(ipproto::TCP);
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, protocol)?)
}

/// A listening socket for tokio, whose runtime must be there.
///
/// # Errors
/// It is no listening stream socket.
pub fn listener(socket: OwnedFd) -> io::Result<Listener> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => {
            let listener = std::os::unix::net::UnixListener::from(socket);
            tokio::net::UnixListener::from_std(listener).map(Listener::Unix)
        }
        _ => {
            let listener = std::net::TcpListener::from(socket);
            tokio::net::TcpListener::from_std(listener).map(Listener::Tcp)
        }
    }
}

/// Where a socket listens, for people to read.
pub fn name(socket: &OwnedFd) -> String {
    match rustix::net::getsockname(socket).map(SocketAddr::try_from) {
        Ok(Ok(address)) => address.to_string(),
        _ => "a Unix socket".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let socket = listen("127.0.0.1:0").unwrap();
        let address = name(&socket);
        assert!(address.starts_with("127.0.0.1:"));
        let error = listen(&address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("listen at {address}: ")), "{error}");
        for bad in ["", "nowhere", ":x", ":99999", "127.0.0.1:99999", "unix:"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = format!("unix:{}/socket", dir.path().display());
        let socket = listen(&path).unwrap();
        assert!(listen(&path).is_err(), "somebody else's");
        drop(socket);
        listen(&path).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert!(listen(&format!("unix:{}", file.display())).is_err());
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
    }
}
