//! linux.intelRdt where the machine has no resctrl; what it does where there is
//! one is tested on a folder in its stead (runtime/src/rdt.rs).

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, json, kiln_only, refused, skip};

#[test]
fn without_resctrl_it_is_an_error() {
    kiln_only!("ignores it");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if mounts.contains(" resctrl ") {
        skip!("resctrl is mounted");
    }
    for section in [
        json!({}),
        json!({ "closID": "gold", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20" }),
        json!({ "schemata": ["L3:0=f"], "enableMonitoring": true }),
    ] {
        let bundle = Bundle::new().set("/linux/intelRdt", section);
        refused(bundle, &["linux.intelRdt", "no resctrl filesystem is mounted"]);
    }
}
