//! No descriptor of the host's reaches a container, or serves as a way out of it
//! (CVE-2024-21626): neither one that the caller leaked nor one of kiln's own.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_integration::{Bundle, Container, Outcome, json, kiln_only};

/// Runs the command with directories of the host open as descriptors 3 to 7, and 9.
const LEAKING: [&str; 4] =
    ["sh", "-c", "exec 3</ 4</etc 5</root 6</proc 7</tmp 9</; exec \"$@\"", "sh"];

/// A way up from any directory to the host's root.
const UP: &str = "../../../../../../../../../..";

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The descriptors that kiln could have open; on a slow machine the first few.
fn numbers() -> std::ops::RangeInclusive<u32> {
    3..=3 + kiln_integration::rounds(11)
}

/// A program of the host that says what it was called with, should it ever be executed.
fn program_of_the_host(bundle: &Bundle) -> String {
    let path = bundle.scratch().join("echo");
    fs::copy("/bin/busybox", &path).unwrap();
    path.display().to_string()
}

/// Its interpreter's path is resolved by execve(2) itself.
#[test]
fn a_scripts_interpreter_is_never_the_hosts() {
    for number in numbers() {
        let bundle = Bundle::new().args(&["/script"]);
        let host = program_of_the_host(&bundle);
        let text = format!("#!/proc/self/fd/{number}/{UP}{host}\n");
        executable(&bundle.rootfs().join("script"), &text);
        let c = bundle.container();
        c.run_cli(&[]).under(&LEAKING).output().fails(&["/script"]).prints("");
        c.create_cli(&[]).under(&LEAKING).output().ok();
        c.start().fails(&["/script"]);
    }
}

/// What `create` has checked may be another file by `start`.
#[test]
fn a_program_exchanged_after_create_is_never_the_hosts() {
    for number in numbers() {
        let bundle = Bundle::new().args(&["/script"]);
        let host = program_of_the_host(&bundle);
        let script = bundle.rootfs().join("script");
        executable(&script, "#!/bin/true\n");
        let c = bundle.container();
        c.create_cli(&[]).under(&LEAKING).output().ok();
        fs::remove_file(&script).unwrap();
        symlink(format!("/proc/self/fd/{number}/{UP}{host}"), &script).unwrap();
        c.start().fails(&["/script"]);
    }
}

/// Hooks in the container execute what the image has.
#[test]
fn a_hooks_interpreter_is_never_the_hosts() {
    for number in numbers() {
        let bundle = Bundle::new().set("/hooks/startContainer", json!([{ "path": "/script" }]));
        let text = format!("#!/proc/self/fd/{number}/{UP}{}\n", program_of_the_host(&bundle));
        executable(&bundle.rootfs().join("script"), &text);
        bundle.container().run().fails(&["startContainer"]);
    }
}

#[test]
fn an_entrypoint_behind_a_descriptor_is_refused() {
    for number in numbers() {
        let bundle = Bundle::new();
        let host = program_of_the_host(&bundle);
        let c = bundle.args(&[&format!("/proc/self/fd/{number}/{UP}{host}")]).container();
        c.run_cli(&[]).under(&LEAKING).output().fails(&[]).prints("");
    }
}

/// Fails, or is inside of the rootfs, which alone has the mark.
#[track_caller]
fn fails_or_is_inside(outcome: &Outcome) {
    let inside = outcome.status.success() && outcome.stdout.ends_with("the mark\n");
    assert!(inside || outcome.status.code() == Some(1), "{outcome}");
}

fn marked(cwd: &str) -> Bundle {
    // As high as it goes.
    let script = format!("pwd -P; cat {UP}/mark");
    let bundle = Bundle::sh(&script).set("/process/cwd", json!(cwd)).writable();
    fs::write(bundle.rootfs().join("mark"), "the mark\n").unwrap();
    bundle
}

#[test]
fn a_working_directory_behind_a_descriptor() {
    let mut ways: Vec<_> = numbers().map(|number| format!("/proc/self/fd/{number}")).collect();
    ways.extend([3, 5, 9].map(|number| format!("/proc/self/fd/{number}/{UP}")));
    ways.extend(["/proc/thread-self/fd/3", "/proc/1/fd/3/etc", "/dev/fd/3"].map(String::from));
    ways.extend(["/proc/self/cwd", "/proc/1/root", "/proc/1/cwd/.."].map(String::from));
    for way in ways {
        for flags in [&[][..], &["--preserve-fds", "4"]] {
            let c = marked(&way).container();
            fails_or_is_inside(&c.run_cli(flags).under(&LEAKING).output());
        }
    }
}

#[test]
fn a_working_directory_that_is_a_link_to_a_descriptor() {
    for (number, user) in [(3, 0), (4, 0), (9, 0), (3, 1000)] {
        let bundle = marked("/work").set("/process/user", json!({ "uid": user, "gid": user }));
        symlink(format!("/proc/self/fd/{number}"), bundle.rootfs().join("work")).unwrap();
        let c = bundle.container();
        fails_or_is_inside(&c.run_cli(&["--preserve-fds", "2"]).under(&LEAKING).output());
    }
}

/// The shell's own listing has one more, the directory that it lists.
const LIST: &str = "cd /proc/self/fd; for fd in *; do test -e $fd && echo $fd; done; true";

#[test]
fn only_stdio_and_what_is_preserved() {
    let c = Bundle::sh(LIST).container();
    c.run_cli(&[]).under(&LEAKING).output().ok().prints("0\n1\n2\n");
    c.run_cli(&["--preserve-fds", "2"]).under(&LEAKING).output().ok().prints("0\n1\n2\n3\n4\n");
    let c = Bundle::sh(LIST).container();
    let cli = c.run_cli(&["--preserve-fds", "1"]).env("LISTEN_FDS", "1");
    cli.under(&LEAKING).output().ok().prints("0\n1\n2\n3\n4\n");
}

/// One of kiln's own would take the number, and be preserved.
#[test]
fn a_preserved_descriptor_that_is_not_open() {
    kiln_only!("the error has another name for it");
    let c = Bundle::sh(LIST).container();
    c.run_cli(&["--preserve-fds", "7"]).under(&LEAKING).output().fails(&["descriptor 8"]);
    c.run_cli(&[]).env("LISTEN_FDS", "1").output().fails(&["LISTEN_FDS", "descriptor 3"]);
    c.assert_nothing_left();
}

/// What a process looks at that has the right to (CAP_SYS_PTRACE, in a pod's pid namespace).
#[test]
fn the_waiting_init_has_nothing_of_the_host() {
    let c = Bundle::new().container();
    c.create_cli(&[]).under(&LEAKING).output().ok();
    for fd in fs::read_dir(format!("/proc/{}/fd", c.pid())).unwrap().flatten() {
        let number: u32 = fd.file_name().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(fd.path()).unwrap();
        let socket = target.to_string_lossy().starts_with("socket:");
        assert!(number < 3 || socket, "{number} -> {}", target.display());
    }
    for link in ["root", "cwd"] {
        let link = fs::read_link(format!("/proc/{}/{link}", c.pid())).unwrap();
        // As this process's root sees it: the container's own root, not the host's.
        assert_eq!(link, Path::new("/"));
    }
    let root = format!("/proc/{}/root/{UP}", c.pid());
    assert!(Path::new(&root).join("bin/busybox").exists());
    assert!(!Path::new(&root).join("etc/debian_version").exists());
}

#[test]
fn hooks_in_the_container_have_nothing_of_the_host() {
    let script = "ls -l /proc/self/fd > /log; cat > /dev/null";
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script],
        "env": ["PATH=/bin"] }]);
    let bundle = Bundle::new().writable().set("/hooks/startContainer", hook);
    let c = bundle.container();
    c.run_cli(&[]).under(&LEAKING).output().ok();
    let log = fs::read_to_string(c.bundle.rootfs().join("log")).unwrap();
    let numbers: Vec<_> = log.lines().filter_map(|line| line.split(" -> ").next()).collect();
    // Three, what the shell redirects to, and the directory that is listed.
    assert!(log.contains(" -> ") && numbers.len() <= 6, "{log}");
    assert!(!log.contains("-> /tmp") && !log.contains("-> /root"), "{log}");
}

/// A container with a way in for `exec`, and the mark of its rootfs.
fn running() -> Container {
    let bundle = Bundle::new().args(&["sleep", "1000"]).writable();
    fs::write(bundle.rootfs().join("mark"), "the mark\n").unwrap();
    let c = bundle.container();
    c.detach().ok();
    c
}

#[test]
fn exec_of_a_script_whose_interpreter_is_behind_a_descriptor() {
    let c = running();
    let host = program_of_the_host(&c.bundle);
    for number in numbers() {
        let text = format!("#!/proc/self/fd/{number}/{UP}{host}\n");
        executable(&c.bundle.rootfs().join(format!("script{number}")), &text);
        let script = format!("/script{number}");
        let outcome = c.exec_cli(&[], &[&script]).under(&LEAKING).output();
        assert!(!outcome.status.success() && outcome.stdout.is_empty(), "{outcome}");
        let path = format!("/proc/self/fd/{number}/{UP}{host}");
        let outcome = c.exec_cli(&[], &[&path]).under(&LEAKING).output();
        assert!(!outcome.status.success() && outcome.stdout.is_empty(), "{outcome}");
    }
}

#[test]
fn exec_in_a_working_directory_behind_a_descriptor() {
    let c = running();
    let script = format!("pwd -P; cat {UP}/mark");
    let mut ways: Vec<_> = numbers().map(|number| format!("/proc/self/fd/{number}")).collect();
    ways.extend([3, 9].map(|number| format!("/proc/self/fd/{number}/{UP}")));
    ways.extend(["/proc/1/root", "/proc/self/cwd", "/dev/fd/3", "/link"].map(String::from));
    symlink("/proc/self/fd/3", c.bundle.rootfs().join("link")).unwrap();
    for way in ways {
        for flags in [&["--cwd", &*way][..], &["--cwd", &*way, "--preserve-fds", "4"]] {
            let outcome = c.exec_cli(flags, &["sh", "-c", &script]).under(&LEAKING).output();
            let inside = outcome.status.success() && outcome.stdout.ends_with("the mark\n");
            assert!(inside || outcome.status.code() == Some(255), "{way}: {outcome}");
        }
    }
}

#[test]
fn exec_gives_only_stdio_and_what_is_preserved() {
    let c = running();
    let exec = |flags: &[&str]| c.exec_cli(flags, &["sh", "-c", LIST]).under(&LEAKING);
    exec(&[]).output().ok().prints("0\n1\n2\n");
    let log = c.bundle.scratch().join("log");
    fs::write(&log, "").unwrap();
    exec(&["--preserve-fds", "2"]).output().ok().prints("0\n1\n2\n3\n4\n");
    let outcome = exec(&["--preserve-fds", "7"]).output();
    assert!(outcome.stderr.contains("descriptor 8"), "{outcome}");
}

/// What runs in the container looks at every process that it sees while others are exec'd.
#[test]
fn a_process_of_the_container_sees_nothing_of_the_host_in_an_exec() {
    let spy = "while :; do for d in /proc/[0-9]*; do \
        test -e $d/root/etc/debian_version && echo \"root of $d\"; \
        for f in $d/fd/*; do test -d $f/. && test -e $f/../../../../../etc/debian_version && \
        echo \"$f $(readlink $f)\"; done; done >> /log 2>/dev/null; done";
    let powers = ["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"];
    let bundle = Bundle::sh(spy).writable().capabilities(&powers);
    let c = bundle.container();
    c.detach().ok();
    for _ in 0..kiln_integration::rounds(30) {
        c.exec_cli(&[], &["true"]).under(&LEAKING).output().ok();
    }
    assert_eq!(fs::read_to_string(c.bundle.rootfs().join("log")).unwrap(), "");
}
