//! The end of a server: nothing new, and what runs is finished.

use kiln_keeper::front::{Limits, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

use crate::support::{HELLO, PATIENCE, local, read_until, rest, start, with};

const NAP: &[u8] = b"GET /nap HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn finishes_what_runs() {
    with(Limits::default(), async |front| {
        let mut silent = front.connect().await;
        let mut slow = front.connect().await;
        slow.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        let mut idle = front.connect().await;
        idle.write_all(HELLO.as_bytes()).await.unwrap();
        read_until(&mut idle, "/\n").await;
        let mut busy = front.connect().await;
        busy.write_all(NAP).await.unwrap();
        front.until("it runs", |service| service.running.get() == 1).await;

        front.stop.send(true).unwrap();
        for client in [&mut silent, &mut idle] {
            assert_eq!(rest(client).await, "");
        }
        let _ = slow.read_to_end(&mut Vec::new()).await;
        assert_eq!(front.service.running.get(), 1);
        assert!(TcpStream::connect(front.address).await.is_err());
        assert!(!front.served.is_finished());
        let answer = rest(&mut busy).await;
        assert!(answer.contains("connection: close") && answer.ends_with("nap\n"), "{answer}");
        drop(slow);
        timeout(PATIENCE, &mut front.served).await.expect("it returns").unwrap().unwrap();
    });
}

#[test]
fn returns_at_once_if_nothing_runs() {
    with(Limits::default(), async |front| {
        let clients = [front.connect().await, front.connect().await];
        front.serves_others().await;
        front.stop.send(true).unwrap();
        timeout(PATIENCE, &mut front.served).await.expect("it returns").unwrap().unwrap();
        drop(clients);
    });
}

#[test]
fn unix_sockets() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
        let nowhere = "127.0.0.1:0".parse().unwrap();
        let mut front = start(listener, nowhere, Limits::default(), None);
        let mut idle = UnixStream::connect(&path).await.unwrap();
        idle.write_all(HELLO.as_bytes()).await.unwrap();
        read_until(&mut idle, "/\n").await;
        let mut busy = UnixStream::connect(&path).await.unwrap();
        busy.write_all(NAP).await.unwrap();
        front.until("it runs", |service| service.running.get() == 1).await;
        front.stop.send(true).unwrap();
        assert_eq!(rest(&mut idle).await, "");
        assert!(rest(&mut busy).await.ends_with("nap\n"));
        timeout(PATIENCE, &mut front.served).await.expect("it returns").unwrap().unwrap();
        assert!(UnixStream::connect(&path).await.is_err());
    });
}
