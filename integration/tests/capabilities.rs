//! process.capabilities that cannot be granted: a warning, never silence and
//! never an error (config.md#process).

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, Value, command, json, kiln_only, skip};

const SETS: [&str; 5] = ["bounding", "effective", "inheritable", "permitted", "ambient"];
const SHOW: &str = "grep ^Cap /proc/self/status | cut -f 2 | sort -u";
/// Bit 5.
const KILL: &str = "0000000000000020\n";

fn with_all(names: Value) -> Bundle {
    SETS.iter().fold(Bundle::sh(SHOW), |bundle, set| {
        bundle.set(&format!("/process/capabilities/{set}"), names.clone())
    })
}

#[test]
fn unknown_names_are_left_out_with_a_warning() {
    let c = with_all(json!(["CAP_KILL", "CAP_BANANA"])).container();
    let outcome = c.run().ok().prints(KILL);
    assert!(outcome.stderr.contains("unknown or unavailable capabilities"), "{outcome}");
    assert!(outcome.stderr.contains("CAP_BANANA"), "{outcome}");
    // For another process in it as well, whose own list or the container's has the name.
    let bundle = with_all(json!(["CAP_KILL", "CAP_BANANA"])).args(&["sleep", "60"]);
    let c = bundle.container();
    c.detach().ok();
    let outcome = c.cli(&["exec", &c.id, "sh", "-c", SHOW]).output().ok();
    assert!(outcome.stdout.contains(KILL), "{outcome}");
    let process = c.bundle.scratch().join("process.json");
    let text = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "args": ["sh", "-c", SHOW],
        "env": ["PATH=/bin"], "capabilities": { "bounding": ["CAP_KILL", "CAP_PAPAYA"] } });
    std::fs::write(&process, text.to_string()).unwrap();
    let words = ["exec", "--process", process.to_str().unwrap(), &c.id];
    let outcome = c.cli(&words).output().ok();
    assert!(outcome.stderr.contains("CAP_PAPAYA"), "{outcome}");
}

/// capabilities(7): only what is permitted and inheritable can be ambient.
#[test]
fn what_cannot_be_ambient_is_left_out_with_a_warning() {
    kiln_only!("older runc says nothing");
    let bundle = Bundle::sh("grep ^CapAmb /proc/self/status | cut -f 2");
    let bundle = bundle.capabilities(&["CAP_KILL", "CAP_CHOWN", "CAP_FOWNER"]);
    let bundle = bundle.set("/process/capabilities/inheritable", json!(["CAP_KILL"]));
    let outcome = bundle.container().run().ok().prints(KILL);
    assert!(outcome.stderr.contains("can't raise ambient capabilities CAP_CHOWN, CAP_FOWNER: "));
    assert!(!outcome.stderr.contains("CAP_KILL"), "{outcome}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
}

#[test]
fn what_the_runtime_lacks_is_left_out_with_a_warning() {
    kiln_only!("fails, which the spec advises against");
    if !command::exists("setpriv") {
        skip!("no setpriv");
    }
    let c = with_all(json!(["CAP_KILL", "CAP_SYS_MODULE"])).container();
    // A runtime without CAP_SYS_MODULE: a service with a bounding set.
    let wrapper = ["setpriv", "--bounding-set=-sys_module", "--inh-caps=-sys_module"];
    let outcome = c.run_cli(&[]).under(&wrapper).output().ok().prints(KILL);
    assert!(outcome.stderr.contains("CAP_SYS_MODULE"), "{outcome}");
    assert!(!outcome.stderr.contains("CAP_KILL"), "{outcome}");
    let c = with_all(json!(["CAP_KILL", "CAP_SYS_MODULE"])).args(&["sleep", "60"]).container();
    c.detach().ok();
    let exec = c.cli(&["exec", &c.id, "sh", "-c", SHOW]).under(&wrapper).output().ok();
    assert!(exec.stderr.contains("CAP_SYS_MODULE") && !exec.stderr.contains("KILL"), "{exec}");
    // In a user namespace of its own the container has them all.
    let c = with_all(json!(["CAP_KILL", "CAP_SYS_MODULE"])).user_namespace(300_000).container();
    let outcome = c.run_cli(&[]).under(&wrapper).output().ok();
    assert!(outcome.stderr.is_empty(), "{outcome}");
}

#[test]
fn no_section_means_none() {
    let bundle = Bundle::sh(SHOW).unset("/process/capabilities");
    bundle.container().run().ok().prints("0000000000000000\n");
}
