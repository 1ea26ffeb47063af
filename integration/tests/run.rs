//! `run`, and the flags that it shares with `create`: exit statuses, signals,
//! stdio, pid file, descriptors, detach, keep.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, eventually, json, kiln_only, proc, reap};
use rustix::process::Signal;

#[test]
fn passes_on_the_exit_status() {
    for code in [0, 1, 7, 100, 255] {
        let c = Bundle::sh(&format!("exit {code}")).container();
        c.run().exits(code).prints("");
        c.assert_nothing_left();
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    // The first process of a pid namespace cannot signal itself, so a child does
    // from a container that shares the host's.
    for (signal, number) in [("KILL", 9), ("TERM", 15), ("ABRT", 6)] {
        let c = Bundle::sh(&format!("kill -{signal} $$")).without_namespace("pid").container();
        c.run().exits(128 + number);
    }
}

#[test]
fn forwards_signals_to_the_container() {
    for (signal, code) in [(Signal::TERM, 41), (Signal::INT, 42), (Signal::USR1, 43)] {
        let script = "trap 'exit 41' TERM; trap 'exit 42' INT; trap 'exit 43' USR1; \
            echo up > /up; while :; do sleep 0.01; done";
        let c = Bundle::sh(script).writable().container();
        let running = c.run_cli(&[]).spawn();
        c.await_file("/up");
        running.signal(signal);
        running.wait().exits(code);
        c.assert_nothing_left();
    }
}

/// The first process of a pid namespace has no default actions, so a program
/// that does not expect the signal lives on, and `run` with it.
#[test]
fn a_killed_container_ends_run() {
    let c = Bundle::sh("echo up > /up; sleep 100").writable().container();
    let running = c.run_cli(&[]).spawn();
    c.await_file("/up");
    c.kill("KILL").ok();
    running.wait().exits(137);
    c.assert_nothing_left();
}

#[test]
fn stdio_is_the_callers() {
    let c = Bundle::sh("cat; echo to-stderr >&2").container();
    let outcome = c.run_cli(&[]).stdin("line 1\nline 2\n").output().ok();
    let outcome = outcome.prints("line 1\nline 2\n");
    assert_eq!(outcome.stderr, "to-stderr\n");
}

#[test]
fn stdio_of_create_is_the_containers() {
    let c = Bundle::sh("cat > /got").writable().container();
    c.create_cli(&[]).stdin("from create").output().ok();
    let pid = c.pid();
    c.start().ok();
    assert_eq!(reap(pid), 0);
    assert_eq!(c.await_file("/got"), "from create");
}

#[test]
fn a_large_stdin_passes_through() {
    let text = "0123456789abcdef".repeat(1 << 16);
    let c = Bundle::sh("wc -c").container();
    c.run_cli(&[]).stdin(&text).output().ok().prints("1048576\n");
}

#[test]
fn detach_leaves_the_container_running() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok().prints("");
    assert_eq!(c.status(), "running");
}

#[test]
fn detach_leaves_a_stopped_container() {
    let c = Bundle::sh("exit 9").container();
    c.detach().ok();
    c.await_status("stopped");
    c.delete().ok();
    c.assert_nothing_left();
}

#[test]
fn detached_init_is_handed_to_the_callers_subreaper() {
    let c = Bundle::sh("echo up > /up; sleep 0.05; exit 9").writable().container();
    let pid_file = c.bundle.scratch().join("pid");
    c.run_cli(&["--detach", "--pid-file", pid_file.to_str().unwrap()]).output().ok();
    let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    assert_eq!(reap(pid), 9);
}

#[test]
fn keep_leaves_the_container_after_run() {
    let c = Bundle::sh("exit 7").container();
    c.run_cli(&["--keep"]).output().exits(7);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
    c.assert_nothing_left();
}

#[test]
fn run_deletes_the_container() {
    let c = Bundle::new().container();
    c.run().ok();
    c.on_id("state", &[]).fails(&["does not exist"]);
    c.assert_nothing_left();
}

#[test]
fn pid_file_is_complete_and_bare() {
    for operation in ["create", "run"] {
        let c = Bundle::new().args(&["sleep", "100"]).container();
        let path = c.bundle.scratch().join("pid");
        let flags = match operation {
            "create" => vec!["--pid-file", path.to_str().unwrap()],
            _ => vec!["--detach", "--pid-file", path.to_str().unwrap()],
        };
        match operation {
            "create" => c.create_cli(&flags).output().ok(),
            _ => c.run_cli(&flags).output().ok(),
        };
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, c.pid().to_string(), "decimal, without a newline");
        let scratch = fs::read_dir(c.bundle.scratch()).unwrap().count();
        assert_eq!(scratch, 1, "no temporary file beside it");
    }
}

#[test]
fn a_pid_file_that_cannot_be_written_fails_and_leaves_nothing() {
    let c = Bundle::new().container();
    c.create_cli(&["--pid-file", "/no/such/folder/pid"]).output().fails(&["/no/such/folder"]);
    c.assert_nothing_left();
}

#[test]
fn preserve_fds_passes_descriptors_from_3_on() {
    let c = Bundle::sh("cat <&3; cat <&4; ls /proc/self/fd | wc -l").container();
    let (a, b) = (c.bundle.scratch().join("a"), c.bundle.scratch().join("b"));
    fs::write(&a, "three\n").unwrap();
    fs::write(&b, "four\n").unwrap();
    let script = format!("exec 3<{} 4<{} 5</dev/null; exec \"$@\"", a.display(), b.display());
    let wrapper = ["bash", "-c", &script, "bash"];
    let outcome = c.run_cli(&["--preserve-fds", "2"]).under(&wrapper).output().ok();
    // 0, 1, 2, 3, 4 and the one that ls reads the folder through.
    outcome.prints("three\nfour\n6\n");
}

#[test]
fn sockets_of_a_service_manager_are_passed_on_and_announced() {
    let c = Bundle::sh("echo $LISTEN_FDS $LISTEN_PID; cat <&3").container();
    let file = c.bundle.scratch().join("socket");
    fs::write(&file, "three\n").unwrap();
    let script = format!("exec 3<{}; exec \"$@\"", file.display());
    let cli = c.run_cli(&[]).env("LISTEN_FDS", "1").under(&["bash", "-c", &script, "bash"]);
    cli.output().ok().prints("1 1\nthree\n");
}

#[test]
fn cpu_affinity_of_the_caller_ends_with_the_caller() {
    kiln_only!("crun 1.8 keeps it");
    let c = Bundle::sh("grep Cpus_allowed_list /proc/self/status").container();
    let all = c.run().ok().stdout;
    let pinned = c.run_cli(&[]).under(&["taskset", "-c", "0"]).output().ok();
    pinned.prints(&all);
}

#[test]
fn leaked_descriptors_are_not_seen_inside() {
    let c = Bundle::sh("ls -l /proc/self/fd; ls /proc/self/fd | wc -l").container();
    let script = "exec 3</etc/passwd 7</ 19</dev/null 210</etc; exec \"$@\"";
    let outcome = c.run_cli(&[]).under(&["bash", "-c", script, "bash"]).output().ok();
    assert!(outcome.stdout.ends_with("\n4\n"), "only 0, 1, 2 and ls's own: {outcome}");
    assert!(!outcome.stdout.contains("/etc"), "{outcome}");
}

#[test]
fn leaked_descriptors_are_not_seen_inside_after_create_and_start() {
    let c = Bundle::sh("ls /proc/self/fd | wc -l > /count").writable().container();
    let leak = ["bash", "-c", "exec 3</etc/passwd 77</; exec \"$@\"", "bash"];
    c.create_cli(&[]).under(&leak).output().ok();
    let pid = c.pid();
    c.cli(&["start", &c.id]).under(&leak).output().ok();
    assert_eq!(reap(pid), 0);
    assert_eq!(c.await_file("/count"), "4\n");
}

#[test]
fn a_file_description_of_the_runtime_is_not_in_the_init() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    let pid = c.pid();
    eventually("the program to be executed", || {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("bin/busybox"))
    });
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let names: Vec<_> = fds.map(|fd| fd.file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(proc::alive(pid));
}

#[test]
fn an_init_that_waits_for_start_holds_nothing_of_the_host() {
    kiln_only!("what others hold is theirs to say");
    let c = Bundle::new().container();
    c.create().ok();
    let fds = fs::read_dir(format!("/proc/{}/fd", c.pid())).unwrap().flatten();
    let targets: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    let host = [c.bundle.path(), c.root()];
    let held: Vec<_> =
        targets.iter().filter(|target| host.iter().any(|dir| target.starts_with(dir))).collect();
    assert!(held.is_empty(), "{held:?} of {targets:?}");
}

#[test]
fn no_new_keyring_still_runs() {
    let c = Bundle::sh("echo in").container();
    c.run_cli(&["--no-new-keyring"]).output().ok().prints("in\n");
}

/// An initramfs cannot be pivoted away from; the flag moves the root instead.
#[test]
fn no_pivot_still_confines_the_root() {
    let c = Bundle::sh("ls /; test ! -e /etc/debian_version").container();
    c.run_cli(&["--no-pivot"]).output().ok().shows("bin\n");
    c.assert_nothing_left();
}

/// mount_namespaces(7): as long as a procfs without masks is below, a user namespace may mount one.
#[test]
fn no_pivot_leaves_no_procfs_of_the_host() {
    let script = "unshare -mrpf sh -c 'mount -t proc none /proc' 2>&1 || echo refused";
    let bundle = Bundle::sh(script);
    let bundle = ["bounding", "permitted", "effective"].into_iter().fold(bundle, |bundle, set| {
        bundle.push(&format!("/process/capabilities/{set}"), json!("CAP_SETFCAP"))
    });
    let bundle = bundle.set("/linux/maskedPaths", json!(["/proc/sysrq-trigger"]));
    let c = bundle.container();
    c.run_cli(&["--no-pivot"]).output().ok().shows("refused");
    c.run_cli(&[]).output().ok().shows("refused");
}

#[test]
fn nothing_of_the_callers_working_directory_is_kept() {
    let c = Bundle::sh("pwd; readlink /proc/self/cwd").container();
    c.run_cli(&[]).dir(c.bundle.scratch()).output().ok().prints("/\n/\n");
}
