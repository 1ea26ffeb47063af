//! How many connections there may be.

use std::io::Write;
use std::time::Duration;

use kiln_keeper::front::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::support::{HELLO, SHORT, read_until, with};

/// Descriptors for tests that run at the same time.
const OTHERS: u64 = 500;

#[test]
fn two_thousand_idle_connections() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    // Both ends are here.
    let room = maximum.map_or(u64::MAX, |maximum| maximum.saturating_sub(OTHERS) / 2);
    let count = usize::try_from(room.min(2000)).unwrap();
    if count < 2000 {
        // Past the test harness, which would keep it.
        let note =
            format!("WARNING: only {count} idle connections: RLIMIT_NOFILE is {maximum:?}\n");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
        let may_be_fewer = std::env::var_os("KILN_TEST_NO_SKIP").is_none_or(|value| value != "1");
        assert!(may_be_fewer && count >= 100, "{note}");
    }
    with(Limits::default(), async |front| {
        let mut clients = Vec::new();
        for number in 0..count {
            let mut client = front.connect().await;
            // Silent ones, slow ones, and such as have had an answer.
            match number % 3 {
                0 => {}
                1 => client.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap(),
                _ => client.write_all(HELLO.as_bytes()).await.unwrap(),
            }
            clients.push(client);
        }
        for client in clients.iter_mut().skip(2).step_by(3) {
            read_until(client, "/\n").await;
        }
        for _ in 0..10 {
            front.serves_others().await;
        }
        // They are served as well.
        let last = clients.last_mut().unwrap();
        if (count - 1) % 3 == 1 {
            last.write_all(b"st: a\r\n\r\n").await.unwrap();
        } else {
            last.write_all(HELLO.as_bytes()).await.unwrap();
        }
        read_until(last, "/\n").await;
    });
}

#[test]
fn those_without_a_request_make_room() {
    let limits = Limits { connections: 4, spared: Duration::from_millis(50), ..Limits::default() };
    with(limits, async |front| {
        let mut busy = front.connect().await;
        busy.write_all(b"GET /nap HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let silent = front.connect().await;
        let mut slow = front.connect().await;
        slow.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        let mut idle = front.connect().await;
        idle.write_all(HELLO.as_bytes()).await.unwrap();
        read_until(&mut idle, "/\n").await;
        front.until("the nap begins", |service| service.running.get() == 1).await;
        let mut more = Vec::new();
        for _ in 0..3 {
            let mut client = front.connect().await;
            client.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            more.push(client);
        }
        front.until("all are served", |service| service.seen.borrow().len() == 5).await;
        read_until(&mut busy, "nap\n").await;
        drop((silent, slow, idle));
    });
}

#[test]
fn those_with_a_request_stay() {
    let limits = Limits { connections: 2, spared: Duration::from_millis(20), ..Limits::default() };
    with(limits, async |front| {
        let mut busy = Vec::new();
        for _ in 0..2 {
            let mut client = front.connect().await;
            client.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            busy.push(client);
        }
        front.until("both run", |service| service.running.get() == 2).await;
        let mut third = front.connect().await;
        third.write_all(HELLO.as_bytes()).await.unwrap();
        assert!(timeout(SHORT, read_until(&mut third, "/\n")).await.is_err());
        assert_eq!(front.service.running.get(), 2);
        busy.pop();
        read_until(&mut third, "/\n").await;
        // Now there is one that may go.
        sleep(Duration::from_millis(40)).await;
        front.serves_others().await;
        assert_eq!(front.service.running.get(), 1);
    });
}
