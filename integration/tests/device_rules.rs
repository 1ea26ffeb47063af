//! `linux.resources.devices`: what a container may open, tried from inside.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, json};

/// Opens a device without a driver: the kernel says EPERM for one that the
/// cgroup denies and ENXIO for one that it lets through.
const OPEN: &str = "mknod /dev/mine c 240 7 && exec 3</dev/mine";

fn opens(rules: kiln_integration::Value) -> String {
    let bundle = Bundle::sh(OPEN).capabilities(&["CAP_MKNOD"]);
    let c = bundle.set("/linux/resources/devices", rules).container();
    let outcome = c.run();
    assert!(!outcome.status.success(), "{outcome}");
    outcome.stderr
}

#[test]
fn devices_that_are_not_allowed_are_denied() {
    let denied = opens(json!([{ "allow": false, "access": "rwm" }]));
    assert!(denied.contains("Operation not permitted"), "{denied}");
}

#[test]
fn devices_that_are_allowed_are_not() {
    let allowed = opens(json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 240, "minor": 7, "access": "rw" },
    ]));
    assert!(allowed.contains("No such device or address"), "{allowed}");
}

#[test]
fn wildcards_of_device_rules() {
    let allowed = opens(json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 240, "access": "rw" },
    ]));
    assert!(allowed.contains("No such device or address"), "{allowed}");
    let denied = opens(json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "b", "major": 240, "minor": 7, "access": "rw" },
    ]));
    assert!(denied.contains("Operation not permitted"), "{denied}");
}

#[test]
fn access_of_device_rules() {
    let denied = opens(json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 240, "minor": 7, "access": "w" },
    ]));
    assert!(denied.contains("Operation not permitted"), "{denied}");
}

#[test]
fn a_later_device_rule_takes_back() {
    let denied = opens(json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 240, "minor": 7, "access": "rw" },
        { "allow": false, "type": "c", "major": 240, "minor": 7, "access": "rw" },
    ]));
    assert!(denied.contains("Operation not permitted"), "{denied}");
}

#[test]
fn the_default_devices_are_always_allowed() {
    let rules = json!([{ "allow": false, "access": "rwm" }]);
    let script = "echo x > /dev/null && head -c 1 /dev/zero /dev/urandom > /dev/null && tty; \
        test -c /dev/pts/ptmx && exec 3<>/dev/ptmx && echo opened";
    let c = Bundle::sh(script).set("/linux/resources/devices", rules).container();
    c.run().ok().shows("opened");
}
