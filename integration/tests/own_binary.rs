//! The runtime's own files from inside: CVE-2019-5736, where a container wrote
//! to the binary on the host through `/proc/PID/exe`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_integration::{Bundle, binary, command, eventually, examples, needs_wasm, proc, skip};

/// Inode, size and time of the last change of every file that kiln runs from:
/// the kernel sets that time, nobody can put it back.
fn all_files() -> Vec<(PathBuf, [i64; 4])> {
    let mut paths = vec![binary::path().to_path_buf()];
    paths.extend(examples::engine().map(|dir| files(&dir)).unwrap_or_default());
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), state(&path))).collect()
}

fn state(path: &Path) -> [i64; 4] {
    let meta = fs::metadata(path).unwrap();
    [meta.ino().cast_signed(), meta.len().cast_signed(), meta.ctime(), meta.ctime_nsec()]
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// What a debugging sidecar may have. Not CAP_SYS_ADMIN, with which the host's
/// root can mount its disk: that container has no walls.
const POWERFUL: &[&str] =
    &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_CHOWN", "CAP_FOWNER"];

/// A line of shell that says which of these can be opened for writing. It does
/// not write: the binary is one that others will run.
fn attack(paths: &str) -> String {
    format!(
        "for p in {paths}; do if (exec 9>>$p) 2>/dev/null; then \
        echo \"writable: $p $(readlink $p)\"; fi; done"
    )
}

#[test]
fn an_entrypoint_of_proc_self_exe_cannot_write_the_runtime() {
    let before = all_files();
    // The runtime executes itself; another process of the container tries to
    // write to what is executed.
    let script = format!("while :; do {} >> /log; done", attack("/proc/[0-9]*/exe"));
    let attacker = Bundle::sh(&script).capabilities(POWERFUL).writable().container();
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
    let log = fs::read_to_string(attacker.bundle.rootfs().join("log")).unwrap();
    assert_eq!(log, "");
    drop(attacker);
    assert_eq!(all_files(), before);
}

#[test]
fn a_script_of_proc_self_exe_cannot_write_the_runtime() {
    let before = all_files();
    let bundle = Bundle::new().args(&["/script"]).capabilities(POWERFUL).writable();
    let script = bundle.rootfs().join("script");
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    bundle.container().run();
    assert_eq!(all_files(), before);
}

/// While it waits for `start`, init is the runtime's own program.
#[test]
fn the_waiting_init_cannot_be_written_through() {
    let before = all_files();
    let holder = Bundle::new().args(&["sleep", "100"]).container();
    holder.detach().ok();
    let path = format!("/proc/{}/ns/pid", holder.pid());
    let waiting = Bundle::new().namespace("pid", Some(&path)).container();
    waiting.create().ok();
    let script = attack("/proc/[0-9]*/exe") + "; ls -l /proc/[0-9]*/exe; true";
    let attacker = Bundle::sh(&script).capabilities(POWERFUL).namespace("pid", Some(&path));
    let outcome = attacker.container().run().ok();
    assert!(!outcome.stdout.contains("writable"), "{outcome}");
    assert_eq!(all_files(), before);
}

/// A wasm container's init never executes anything else.
#[test]
fn a_running_module_cannot_be_written_through() {
    needs_wasm!();
    let before = all_files();
    let wasm = Bundle::wasm("loop", &[]).container();
    wasm.detach().ok();
    let pid = wasm.pid();
    eventually("the module to run", || proc::status_field(pid, "State").unwrap().starts_with('R'));
    let path = format!("/proc/{pid}/ns/pid");
    let attacker = Bundle::sh(&attack("/proc/1/exe")).capabilities(POWERFUL);
    let outcome = attacker.namespace("pid", Some(&path)).container().run().ok();
    assert!(!outcome.stdout.contains("writable"), "{outcome}");
    assert_eq!(all_files(), before);
}

/// Whoever gets hold of such a descriptor is on the host (CVE-2024-21626): of
/// an init that executes nothing, they stay open for its life.
#[test]
fn a_running_module_has_no_folder_of_the_host() {
    needs_wasm!();
    let c = Bundle::wasm("loop", &[]).container();
    c.detach().ok();
    let pid = c.pid();
    eventually("the module to run", || proc::status_field(pid, "State").unwrap().starts_with('R'));
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let own: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut outside = Vec::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap();
        let number = fd.file_name().into_string().unwrap();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim();
        if fd.path().is_dir() && !own.contains(&mount) {
            outside.push(format!("{number} -> {}", target.display()));
        }
    }
    assert!(outside.is_empty(), "{outside:?}");
}

#[test]
fn a_module_cannot_write_its_own_engine() {
    needs_wasm!();
    let before = all_files();
    for path in ["/proc/self/exe", "/proc/1/exe"] {
        let c = Bundle::wasm("files", &["append", path, "overwritten"]);
        c.capabilities(POWERFUL).writable().container().run().exits(1);
    }
    assert_eq!(all_files(), before);
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
