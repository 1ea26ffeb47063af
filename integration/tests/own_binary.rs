//! The runtime's own files from inside: CVE-2019-5736, where a container wrote
//! to the binary on the host through `/proc/PID/exe`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_integration::{Bundle, binary, command, eventually, examples, needs_wasm, proc, skip};
use sha2::{Digest, Sha256};

/// The hash of every file that kiln runs from.
fn hashes() -> Vec<(PathBuf, String)> {
    let mut paths = vec![binary::path().to_path_buf()];
    paths.extend(examples::engine().map(|dir| files(&dir)).unwrap_or_default());
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), hash(&path))).collect()
}

fn hash(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// With all rights that a container may have; the user is the host's root.
const POWERFUL: &[&str] = &[
    "CAP_SYS_PTRACE",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_SYS_ADMIN",
    "CAP_CHOWN",
    "CAP_FOWNER",
];

#[test]
fn an_entrypoint_of_proc_self_exe_cannot_write_the_runtime() {
    let before = hashes();
    // The runtime executes itself; another process of the container tries to
    // write to what is executed.
    let script = "while :; do for p in /proc/[0-9]*; do echo overwritten >> $p/exe; done; done \
        2>/dev/null";
    let attacker = Bundle::sh(script).capabilities(POWERFUL).container();
    let victim = |pid: i32| {
        let bundle = Bundle::new().args(&["/proc/self/exe", "--version"]);
        bundle.namespace("pid", Some(&format!("/proc/{pid}/ns/pid"))).container()
    };
    attacker.detach().ok();
    let pid = attacker.pid();
    for _ in 0..10 {
        victim(pid).run();
    }
    assert!(proc::alive(pid), "the attacker tried all the time");
    drop(attacker);
    assert_eq!(hashes(), before);
}

#[test]
fn a_script_of_proc_self_exe_cannot_write_the_runtime() {
    let before = hashes();
    let bundle = Bundle::new().args(&["/script"]).capabilities(POWERFUL).writable();
    let script = bundle.rootfs().join("script");
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    bundle.container().run();
    assert_eq!(hashes(), before);
}

/// While it waits for `start`, init is the runtime's own program.
#[test]
fn the_waiting_init_cannot_be_written_through() {
    let before = hashes();
    let holder = Bundle::new().args(&["sleep", "100"]).container();
    holder.detach().ok();
    let path = format!("/proc/{}/ns/pid", holder.pid());
    let waiting = Bundle::new().namespace("pid", Some(&path)).container();
    waiting.create().ok();
    let script = "for p in /proc/[0-9]*; do echo overwritten >> $p/exe; done 2>/dev/null; \
        ls -l /proc/[0-9]*/exe; true";
    let attacker = Bundle::sh(script).capabilities(POWERFUL).namespace("pid", Some(&path));
    attacker.container().run().ok();
    assert_eq!(hashes(), before);
}

/// A wasm container's init never executes anything else.
#[test]
fn a_running_module_cannot_be_written_through() {
    needs_wasm!();
    let before = hashes();
    let wasm = Bundle::wasm("loop", &[]).container();
    wasm.detach().ok();
    let pid = wasm.pid();
    eventually("the module to run", || proc::status_field(pid, "State").unwrap().starts_with('R'));
    let path = format!("/proc/{pid}/ns/pid");
    let script = "if echo overwritten >> /proc/1/exe; then echo written; fi; \
        for l in /proc/1/map_files/* /proc/1/fd/*; do echo x >> $l; done 2>/dev/null; true";
    let attacker = Bundle::sh(script).capabilities(POWERFUL).namespace("pid", Some(&path));
    let outcome = attacker.container().run().ok();
    assert!(!outcome.stdout.contains("written"), "{outcome}");
    assert_eq!(hashes(), before);
}

#[test]
fn a_module_cannot_write_its_own_engine() {
    needs_wasm!();
    let before = hashes();
    for path in ["/proc/self/exe", "/proc/1/exe"] {
        let c = Bundle::wasm("files", &["append", path, "overwritten"]);
        c.capabilities(POWERFUL).writable().container().run().exits(1);
    }
    assert_eq!(hashes(), before);
}

/// What a Linux container costs must not depend on what wasm needs.
#[test]
fn a_linux_container_loads_no_engine() {
    let c = Bundle::new().container();
    let log = c.bundle.scratch().join("strace");
    let trace = "trace=openat,openat2,open,execve,execveat";
    let strace = ["strace", "-f", "-qq", "-s", "4096", "-e", trace, "-o", log.to_str().unwrap()];
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    c.run_cli(&[]).under(&strace).output().ok();
    let calls = fs::read_to_string(log).unwrap().to_lowercase();
    assert!(calls.contains("exec"), "{calls}");
    for name in ["wasmedge", "kiln-engine", "libllvm", "libz3"] {
        assert!(!calls.contains(name), "{name} in {calls}");
    }
}

#[test]
fn the_waiting_init_of_a_linux_container_maps_no_engine() {
    let c = Bundle::new().container();
    c.create().ok();
    let maps = fs::read_to_string(format!("/proc/{}/maps", c.pid())).unwrap().to_lowercase();
    for name in ["wasmedge", "libllvm", "libz3"] {
        assert!(!maps.contains(name), "{name} in {maps}");
    }
}
