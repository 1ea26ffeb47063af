//! What the front writes down and counts.

use std::io::Read;

use kiln_keeper::front::Limits;
use kiln_keeper::front::access::{Access, Format};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::{LAST, with_log};

#[test]
fn access_log_and_metrics() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let access = Access::new(writer.into(), Format::Json).unwrap();
    with_log(Limits::default(), Some(access), async |front| {
        let agent = b"GET /a?secret=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: \"\xc3\xa4\xff\\n\r\n\r\n";
        front.send([agent, LAST.as_bytes()].concat()).await;
        front.send("GET / HTTP/1.1\nHost: a\n\n").await;
        front.send("GET /%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut client = front.connect().await;
        client.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        front.until("it runs", |service| service.running.get() == 1).await;
        drop(client);
        front.until("it is dropped", |service| service.running.get() == 0).await;

        let mut registry = Registry::default();
        front.metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "http_connections_accepted_total 4",
            "http_connections 0",
            "http_refused_total{reason=\"bare_lf\"} 1",
            "http_refused_total{reason=\"path\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in:\n{text}");
        }
    });
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let short: Vec<_> = lines
        .iter()
        .map(|line| {
            let [path, status, refused] = ["path", "status", "refused"].map(|name| &line[name]);
            (path.as_str(), status.as_u64(), refused.as_str(), line["whole"].as_bool().unwrap())
        })
        .collect();
    let expected = [
        (Some("/a"), Some(200), None, true),
        (Some("/last"), Some(200), None, true),
        (None, Some(400), Some("bare_lf"), true),
        (Some("/%2e%2e"), Some(400), Some("path"), true),
        (Some("/hang"), None, None, false),
    ];
    assert_eq!(short, expected, "{text}");
    assert_eq!(lines[0]["agent"].as_str(), Some("\"ä\u{fffd}\\n"));
    assert_eq!(lines[0]["bytes"].as_u64(), Some(3));
    assert!(lines[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
}
