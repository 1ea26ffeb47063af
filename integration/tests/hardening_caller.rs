//! What a container can do to the one who called kiln: to the terminal it was given, the keyring,
//! and the files whose paths the caller named.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use kiln_integration::console::{ConsoleSocket, Terminal};
use kiln_integration::{Bundle, command, json, reaper, skip};

/// A bundle with the host's Perl in it, which can make any system call.
fn perl(program: &str) -> Bundle {
    let bundle =
        Bundle::new().args(&["/usr/bin/perl", "-e", program]).bind("/usr", "/usr", &["ro"]);
    for dir in ["lib", "lib64"] {
        if Path::new("/usr").join(dir).exists() {
            symlink(format!("usr/{dir}"), bundle.rootfs().join(dir)).unwrap();
        }
    }
    fs::create_dir(bundle.rootfs().join("usr")).unwrap();
    bundle
}

/// Types into the caller's terminal, which it has as its stdin, with and without a try to make it
/// its own first.
#[test]
fn nothing_can_be_typed_into_the_callers_terminal() {
    if !command::exists("perl") {
        skip!("perl is not installed");
    }
    // TIOCSCTTY (not forced, and forced) and TIOCSTI.
    let program = r#"$a = 0; ioctl(STDIN, 0x540e, $a); ioctl(STDIN, 0x540e, 1);
        for $c (split //, "echo typed\n") { print ioctl(STDIN, 0x5412, $c) ? "typed" : "refused"; }"#;
    let (terminal, slave) = Terminal::with_slave();
    // Its session's, as a person's terminal is the shell's: setsid(1) makes it so.
    let c = perl(program).container();
    let out = c.bundle.scratch().join("out");
    let cli = c.run_cli(&[]).under(&["setsid", "--ctty", "--wait"]);
    let mut command = cli.command();
    command.stdin(Stdio::from(slave)).stdout(File::create(&out).unwrap());
    let mut child = reaper::spawn(command.stderr(Stdio::null()));
    drop(command);
    let status = command::wait_child(&mut child, std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(0));
    let said = fs::read_to_string(out).unwrap();
    assert!(said.contains("refused") && !said.contains("typed"), "{said}");
    drop(terminal);
}

/// The session keyring has a name and holds the caller's keys.
#[test]
fn the_callers_session_keyring_is_another() {
    if !command::exists("perl") || cfg!(not(target_arch = "x86_64")) {
        skip!("perl is not installed, or this is not x86-64");
    }
    // keyctl(2): JOIN_SESSION_KEYRING, add_key(2) of a user key; then SEARCH for it from inside.
    let caller = r#"my $n = "kiln-it"; syscall(250, 1, $n) > 0 or exit 77;
        my ($t, $d, $p) = ("user", "kiln-it-key", "hunter2");
        syscall(248, $t, $d, $p, 7, -3) > 0 or exit 77; exec @ARGV;"#;
    let search = r#"my ($t, $d) = ("user", "kiln-it-key");
        print syscall(250, 10, -3, $t, $d, 0) > 0 ? "found" : "none";"#;
    let c = perl(search).container();
    let outcome = c.run_cli(&[]).under(&["perl", "-e", caller]).output();
    if outcome.status.code() == Some(77) {
        skip!("this kernel has no keyrings");
    }
    outcome.ok().prints("none");
    let kept = c.run_cli(&["--no-new-keyring"]).under(&["perl", "-e", caller]).output();
    kept.ok().prints("found");
    // Nor by exec.
    let c = perl("sleep 1000").container();
    c.detach().ok();
    let exec = c.exec_cli(&[], &["/usr/bin/perl", "-e", search]);
    exec.under(&["perl", "-e", caller]).output().ok().prints("none");
}

/// As runc does it: the file takes the place of a link, and what that leads to stays as it was.
#[test]
fn a_pid_file_takes_the_place_of_a_link() {
    let c = Bundle::new().container();
    let outside = c.bundle.scratch().join("outside");
    fs::write(&outside, "outside\n").unwrap();
    let pid_file = c.bundle.scratch().join("pid");
    symlink(&outside, &pid_file).unwrap();
    c.run_cli(&["--pid-file", pid_file.to_str().unwrap()]).output().ok();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "outside\n");
    assert!(fs::symlink_metadata(&pid_file).unwrap().is_file());
    assert!(fs::read_to_string(&pid_file).unwrap().parse::<i32>().is_ok());
}

/// What is no socket gets nothing of the terminal, and stays as it was.
#[test]
fn a_console_socket_that_is_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "file\n").unwrap();
    let link = dir.path().join("link");
    symlink(&file, &link).unwrap();
    for path in [&file, &link, &dir.path().to_path_buf(), &"/dev/null".into()] {
        let c = Bundle::new().set("/process/terminal", json!(true)).container();
        c.create_cli(&["--console-socket", path.to_str().unwrap()]).output().fails(&[]);
        c.assert_nothing_left();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "file\n");
    // A link to a socket is the caller's own business.
    let socket = ConsoleSocket::listen(dir.path());
    let link = dir.path().join("to-socket");
    symlink(socket.path(), &link).unwrap();
    let c = Bundle::new().set("/process/terminal", json!(true)).container();
    c.create_cli(&["--console-socket", link.to_str().unwrap()]).output().ok();
    drop(socket.accept());
}

/// The variables of whoever called kiln: not in the process, and not in what it may read.
#[test]
fn the_callers_environment_is_not_the_containers() {
    let script = "env; cat /proc/self/environ /proc/1/environ | tr '\\0' '\\n'";
    let c = Bundle::sh(script).container();
    let outcome = c.run_cli(&[]).env("SECRET", "hunter2").env("KILN_CACHE_DIR", "/evil").output();
    let outcome = outcome.ok();
    assert!(!outcome.stdout.contains("hunter2") && !outcome.stdout.contains("KILN"), "{outcome}");
    let c = Bundle::new().args(&["sleep", "1000"]).container();
    c.detach().ok();
    let exec = c.exec_cli(&[], &["sh", "-c", script]).env("SECRET", "hunter2").output().ok();
    assert!(!exec.stdout.contains("hunter2"), "{exec}");
    // And the container's own say nothing to kiln: no cache is made where they point to.
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["acct"], "action": "SCMP_ACT_ERRNO" } ] });
    let bundle = Bundle::new().set("/linux/seccomp", seccomp).writable();
    let evil = bundle.scratch().join("evil");
    let entry = format!("KILN_CACHE_DIR={}", evil.display());
    let c = bundle.push("/process/env", json!(entry)).container();
    c.run().ok();
    assert!(!evil.exists() && !c.bundle.rootfs().join(evil.strip_prefix("/").unwrap()).exists());
}
