//! seccomp: actions, arguments, architectures, and the cache of compiled
//! filters.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_integration::{Bundle, json, kiln_only, seccomp_profile};

fn filter(bundle: Bundle, default: &str, names: &[&str], action: &str) -> Bundle {
    let rule = json!({ "names": names, "action": action });
    let seccomp = json!({
        "defaultAction": default, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [rule],
    });
    bundle.set("/linux/seccomp", seccomp)
}

fn allow_but(names: &[&str], action: &str, script: &str) -> Bundle {
    filter(Bundle::sh(script), "SCMP_ACT_ALLOW", names, action)
}

#[test]
fn errno_is_eperm_by_default() {
    let c = allow_but(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", "mkdir /tmp/x").writable();
    let outcome = c.container().run().exits(1);
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome}");
}

#[test]
fn errno_of_the_rule() {
    let bundle = allow_but(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", "mkdir /tmp/x").writable();
    // 28 is ENOSPC.
    let c = bundle.set("/linux/seccomp/syscalls/0/errnoRet", json!(28)).container();
    let outcome = c.run().exits(1);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
}

#[test]
fn the_default_action_has_its_errno() {
    let mut profile = seccomp_profile();
    profile["defaultAction"] = json!("SCMP_ACT_ERRNO");
    profile["defaultErrnoRet"] = json!(28);
    let c = Bundle::sh("mount -t tmpfs x /tmp; exit 3").set("/linux/seccomp", profile);
    let outcome = c.container().run().exits(3);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
}

#[test]
fn kill_ends_the_process() {
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL"] {
        // 128 + SIGSYS
        allow_but(&["mkdir", "mkdirat"], action, "exec mkdir /tmp/x").container().run().exits(159);
    }
}

#[test]
fn trap_sends_a_signal() {
    let c = allow_but(&["mkdir", "mkdirat"], "SCMP_ACT_TRAP", "mkdir /tmp/x; echo $?");
    c.container().run().ok().prints("159\n");
}

#[test]
fn log_lets_the_call_through() {
    let c = allow_but(&["mkdir", "mkdirat"], "SCMP_ACT_LOG", "mkdir /tmp/x").writable();
    c.container().run().ok();
}

#[test]
fn only_the_listed_are_allowed() {
    let mut profile = seccomp_profile();
    let names = profile["syscalls"][0]["names"].as_array_mut().unwrap();
    names.retain(|name| name != "mkdir" && name != "mkdirat");
    let c = Bundle::sh("mkdir /tmp/x || echo refused; touch /tmp/y && echo made").writable();
    c.set("/linux/seccomp", profile).container().run().ok().prints("refused\nmade\n");
}

#[test]
fn arguments_are_compared() {
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "args": [{ "index": 1, "value": 10, "op": "SCMP_CMP_EQ" }],
        }],
    });
    let script = "trap : USR1 USR2; kill -USR2 $$ && echo allowed; kill -USR1 $$ || echo refused";
    let c = Bundle::sh(script).set("/linux/seccomp", seccomp).container();
    c.run().ok().prints("allowed\nrefused\n");
}

#[test]
fn masked_arguments_are_compared() {
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "args": [{ "index": 1, "value": 8, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ" }],
        }],
    });
    // USR1 is 10, with the bit 8; CONT is 18, without it.
    let script = "trap : USR1 CONT; kill -CONT $$ && echo allowed; kill -USR1 $$ || echo refused";
    let c = Bundle::sh(script).set("/linux/seccomp", seccomp).container();
    c.run().ok().prints("allowed\nrefused\n");
}

#[test]
fn unknown_names_are_ignored() {
    let names = ["no_such_call", "mkdir", "mkdirat"];
    let c = allow_but(&names, "SCMP_ACT_ERRNO", "mkdir /tmp/x || echo refused").container();
    c.run().ok().prints("refused\n");
}

#[test]
fn the_filter_is_on_the_process() {
    let script = "grep ^Seccomp: /proc/self/status | tr '\\t' ' '";
    let c = allow_but(&["mkdir"], "SCMP_ACT_ERRNO", script).container();
    c.run().ok().prints("Seccomp: 2\n");
    Bundle::sh(script).container().run().ok().prints("Seccomp: 0\n");
}

#[test]
fn a_filter_works_without_no_new_privileges() {
    let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr '\\t' ' '";
    let c = allow_but(&["mkdir"], "SCMP_ACT_ERRNO", script);
    let c = c.set("/process/noNewPrivileges", json!(false)).container();
    c.run().ok().prints("NoNewPrivs: 0\nSeccomp: 2\n");
}

#[test]
fn the_default_profile_of_containerd() {
    let script = "echo started; mount -t tmpfs x /tmp || echo refused";
    let bundle = Bundle::sh(script).capabilities(&["CAP_SYS_ADMIN"]);
    let c = bundle.set("/linux/seccomp", seccomp_profile()).container();
    c.run().ok().prints("started\nrefused\n");
}

/// The second run takes the filter from the cache; it must be the same filter.
#[test]
fn a_cached_filter_confines_as_well() {
    for _ in 0..3 {
        let c = Bundle::sh("mount -t tmpfs x /tmp || echo refused; mkdir /tmp/x && echo made");
        let c = c.writable().capabilities(&["CAP_SYS_ADMIN"]);
        let c = c.set("/linux/seccomp", seccomp_profile()).container();
        c.run().ok().prints("refused\nmade\n");
    }
}

/// Filters that differ in one value must not share an entry of the cache.
#[test]
fn cached_filters_are_told_apart() {
    for (errno, text) in [(28, "No space left"), (5, "Input/output error"), (28, "No space left")] {
        let bundle = allow_but(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", "mkdir /tmp/x");
        let c = bundle.set("/linux/seccomp/syscalls/0/errnoRet", json!(errno)).container();
        let outcome = c.run().exits(1);
        assert!(outcome.stderr.contains(text), "{outcome}");
    }
}

#[test]
fn a_broken_cache_is_not_used() {
    kiln_only!("has no cache");
    let bundle = allow_but(&["mkdirat", "mkdir"], "SCMP_ACT_ERRNO", "mkdir /tmp/x");
    let c = bundle.set("/linux/seccomp/syscalls/0/errnoRet", json!(39)).container();
    let cache = c.bundle.home().join("cache");
    let run = || c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().exits(1);
    run();
    let files = files_under(&cache);
    assert!(!files.is_empty(), "the filter was cached");
    for content in [&b""[..], b"broken", &[0; 4096], &[0xff; 80]] {
        files.iter().for_each(|file| fs::write(file, content).unwrap());
        let outcome = run();
        assert!(outcome.stderr.contains("Directory not empty"), "{outcome}");
    }
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path] }).collect()
}

/// A filter that others could have written would not confine.
#[test]
fn a_cache_is_roots_alone() {
    kiln_only!("has no cache");
    let c = allow_but(&["mkdir"], "SCMP_ACT_ERRNO", "true").container();
    let cache = c.bundle.home().join("cache");
    c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().ok();
    let files = files_under(&cache);
    assert!(!files.is_empty(), "the filter was cached");
    for path in files.iter().chain([&cache.join("seccomp")]) {
        let meta = fs::metadata(path).unwrap();
        assert_eq!(meta.uid(), 0, "{}", path.display());
        assert_eq!(meta.permissions().mode() & 0o022, 0, "{}", path.display());
    }
}

#[test]
fn a_cache_that_others_may_write_is_not_used() {
    kiln_only!("has no cache");
    let bundle = allow_but(&["mkdirat", "mkdir"], "SCMP_ACT_ERRNO", "mkdir /tmp/x");
    let c = bundle.container();
    let cache = c.bundle.home().join("cache");
    let run = || c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().exits(1);
    run();
    fs::set_permissions(cache.join("seccomp"), fs::Permissions::from_mode(0o777)).unwrap();
    for file in files_under(&cache) {
        fs::remove_file(file).unwrap();
    }
    run();
    assert_eq!(files_under(&cache), Vec::<PathBuf>::new(), "nothing was written there");
}
