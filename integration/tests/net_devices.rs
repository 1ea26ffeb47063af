//! linux.netDevices: devices of the runtime's network namespace in the container.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, Cli, Container, fresh_id, json, kiln_only, skip};

const WHY: &str = "has no linux.netDevices";

/// A network namespace that stands for the host's, with a pair of devices in it.
struct Host(String);

impl Host {
    /// None if this machine makes no veth devices.
    fn new() -> Option<Self> {
        let host = Host(fresh_id());
        ip(&["netns", "add", &host.0]).unwrap();
        host.ip("link add kiln0 type veth peer name kiln1").ok()?;
        Some(host)
    }

    fn ip(&self, words: &str) -> Result<String, String> {
        let words: Vec<_> = ["-n", &self.0].into_iter().chain(words.split(' ')).collect();
        ip(&words)
    }

    /// The command in this namespace.
    fn within(&self, cli: Cli) -> Cli {
        let path = format!("--net=/run/netns/{}", self.0);
        cli.under(&["nsenter", &path, "--"])
    }

    fn run(&self, c: &Container) -> kiln_integration::Outcome {
        self.within(c.run_cli(&[])).output()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn ip(words: &[&str]) -> Result<String, String> {
    let outcome = Cli::new(words).binary("ip").output();
    match outcome.status.success() {
        true => Ok(outcome.stdout),
        false => Err(outcome.stderr),
    }
}

fn with(script: &str, devices: kiln_integration::Value) -> Bundle {
    Bundle::sh(script).set("/linux/netDevices", devices)
}

#[test]
fn a_device_moves_with_its_addresses_under_a_new_name() {
    kiln_only!("{WHY}");
    for user_namespace in [false, true] {
        let Some(host) = Host::new() else { skip!("no veth devices") };
        host.ip("addr add 10.9.8.7/24 brd + dev kiln0").unwrap();
        host.ip("addr add 2001:db8::7/64 dev kiln0 nodad").unwrap();
        host.ip("addr add 10.9.9.9/32 scope link dev kiln0").unwrap();
        host.ip("link set kiln0 address 02:00:00:00:00:07 mtu 1400").unwrap();
        host.ip("link set kiln1 up").unwrap();
        let bundle = with("busybox ip addr show dev eth7", json!({ "kiln0": { "name": "eth7" } }));
        let bundle = match user_namespace {
            true => bundle.user_namespace(300_000),
            false => bundle,
        };
        let outcome = host.run(&bundle.container()).ok();
        for part in [
            "inet 10.9.8.7/24 brd 10.9.8.255 scope global eth7",
            "inet6 2001:db8::7/64 scope global",
            "link/ether 02:00:00:00:00:07",
            "mtu 1400",
            "UP",
        ] {
            assert!(outcome.stdout.contains(part), "no {part:?} in {outcome}");
        }
        // Addresses of link scope are not kept.
        assert!(!outcome.stdout.contains("10.9.9.9"), "{outcome}");
        assert!(host.ip("link show kiln0").is_err());
    }
}

#[test]
fn a_joined_namespace_keeps_the_device() {
    kiln_only!("{WHY}");
    let (Some(host), Some(other)) = (Host::new(), Host::new()) else { skip!("no veth devices") };
    other.ip("link del kiln0").unwrap();
    host.ip("addr add 10.9.8.7/24 dev kiln0").unwrap();
    let path = format!("/run/netns/{}", other.0);
    // Without a name it keeps its own; a sysctl of it can be set, and hooks find it.
    let bundle = with("cat /tmp/hook", json!({ "kiln0": {} })).writable();
    let hook = json!([{ "path": "/bin/sh",
        "args": ["sh", "-c", "busybox ip -4 -o addr show dev kiln0 | cut -c4-40 > /tmp/hook"] }]);
    let c = bundle
        .namespace("network", Some(&path))
        .set("/linux/sysctl", json!({ "net.ipv4.conf.kiln0.forwarding": "1" }))
        .set("/hooks/startContainer", hook)
        .container();
    host.run(&c).ok().shows("10.9.8.7/24");
    assert!(other.ip("addr show dev kiln0").unwrap().contains("10.9.8.7/24"));
    // The name is taken now.
    let c = with("true", json!({ "kiln1": { "name": "kiln0" } }));
    let c = c.namespace("network", Some(&path)).container();
    host.run(&c).fails(&["linux.netDevices.kiln1", "the container has a device kiln0 already"]);
    host.ip("link show kiln1").unwrap();
}

#[test]
fn a_container_that_does_not_start_gives_them_back() {
    kiln_only!("{WHY}");
    let Some(host) = Host::new() else { skip!("no veth devices") };
    host.ip("addr add 10.9.8.7/24 dev kiln0").unwrap();
    let is_back = || {
        assert!(host.ip("addr show dev kiln0").unwrap().contains("10.9.8.7/24"));
        host.ip("link show kiln1").unwrap();
    };
    // The second one cannot be moved: its new name is that of the namespace's own loopback.
    let devices = json!({ "kiln0": { "name": "eth0" }, "kiln1": { "name": "lo" } });
    let c = with("true", devices).container();
    host.run(&c).fails(&["linux.netDevices.kiln1", "the container has a device lo already"]);
    is_back();
    // A hook fails after they were moved.
    let hook = json!([{ "path": "/bin/false" }]);
    let devices = json!({ "kiln0": { "name": "eth0" }, "kiln1": { "name": "eth1" } });
    let c = with("true", devices.clone()).set("/hooks/createRuntime", hook).container();
    host.run(&c).fails(&["hook"]);
    is_back();
    // The program is one that the kernel refuses.
    let bundle = with("true", devices).args(&["/nonsense"]);
    let program = bundle.rootfs().join("nonsense");
    std::fs::write(&program, "\x7fELF nonsense").unwrap();
    std::os::unix::fs::chown(&program, Some(0), Some(0)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let c = bundle.container();
    host.run(&c).fails(&["exec format error"]);
    is_back();
    // The same with `create` and `start`, and one that is never started.
    host.within(c.create_cli(&[])).output().ok();
    assert!(host.ip("link show kiln0").is_err());
    host.within(c.cli(&["start", &c.id])).output().fails(&["exec format error"]);
    is_back();
    c.delete().ok();
    host.within(c.create_cli(&[])).output().ok();
    host.within(c.cli(&["delete", "--force", &c.id])).output().ok();
    is_back();
    c.assert_nothing_left();
}

#[test]
fn what_cannot_be_moved_is_named() {
    kiln_only!("{WHY}");
    let refused = kiln_integration::refused;
    refused(with("true", json!({ "no-such-dev": {} })), &["linux.netDevices.no-such-dev"]);
    let shared = with("true", json!({ "lo": {} })).without_namespace("network");
    refused(shared, &["linux.netDevices: needs a network namespace"]);
    refused(with("true", json!({ "lo": { "name": "a/b" } })), &["is not a device's name"]);
    // The kernel lets no namespace's loopback go.
    refused(with("true", json!({ "lo": { "name": "lo2" } })), &["linux.netDevices.lo: move"]);
    with("true", json!({})).container().run().ok();
}
