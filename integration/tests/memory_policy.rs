//! linux.memoryPolicy: the NUMA policy of the workload.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, Value, json, kiln_only, skip};

const WHY: &str = "has no linux.memoryPolicy";
/// The policy of the program's first mapping: `bind:0`.
const SHOW: &str = "head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2";

fn policy(policy: Value) -> Bundle {
    Bundle::sh(SHOW).set("/linux/memoryPolicy", policy)
}

fn numa() -> bool {
    std::fs::exists("/proc/self/numa_maps").unwrap()
}

#[test]
fn every_mode_reaches_the_workload() {
    kiln_only!("{WHY}");
    if !numa() {
        skip!("a kernel without NUMA");
    }
    for (mode, nodes, shown) in [
        ("MPOL_DEFAULT", "", "default\n"),
        ("MPOL_BIND", "0", "bind:0\n"),
        ("MPOL_INTERLEAVE", "0", "interleave:0\n"),
        ("MPOL_PREFERRED", "0", "prefer:0\n"),
        ("MPOL_PREFERRED_MANY", "0", "prefer (many):0\n"),
        ("MPOL_LOCAL", "", "local\n"),
    ] {
        let outcome = policy(json!({ "mode": mode, "nodes": nodes })).container().run().ok();
        // `cut` knows nothing of the blank in "prefer (many)".
        let shown = shown.replace(" (many):0", "");
        assert_eq!(outcome.stdout, shown, "{mode}");
    }
}

#[test]
fn flags_reach_the_kernel() {
    kiln_only!("{WHY}");
    if !numa() {
        skip!("a kernel without NUMA");
    }
    for (flag, shown) in
        [("MPOL_F_STATIC_NODES", "bind=static:0\n"), ("MPOL_F_RELATIVE_NODES", "bind=relative:0\n")]
    {
        let bundle = policy(json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] }));
        bundle.container().run().ok().prints(shown);
    }
}

#[test]
fn without_privileges_and_in_a_user_namespace() {
    kiln_only!("{WHY}");
    if !numa() {
        skip!("a kernel without NUMA");
    }
    let bundle = policy(json!({ "mode": "MPOL_BIND", "nodes": "0" })).user_namespace(300_000);
    let c = bundle.set("/process/user/uid", json!(1000)).container();
    c.run().ok().prints("bind:0\n");
}

#[test]
fn what_cannot_be_is_an_error() {
    kiln_only!("{WHY}");
    let refused = kiln_integration::refused;
    let nodes = json!({ "mode": "MPOL_BIND", "nodes": "0-x" });
    refused(policy(nodes), &["linux.memoryPolicy.nodes", "0-x"]);
    refused(policy(json!({ "mode": "MPOL_NO_SUCH" })), &["MPOL_NO_SUCH"]);
    // A node that no machine of ours has, and a mode that takes no nodes.
    for wrong in [
        json!({ "mode": "MPOL_BIND", "nodes": "1000" }),
        json!({ "mode": "MPOL_DEFAULT", "nodes": "0" }),
    ] {
        policy(wrong).container().run().fails(&["linux.memoryPolicy"]);
    }
}
