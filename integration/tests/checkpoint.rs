//! `checkpoint` and `restore`, by the machine's CRIU.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use kiln_integration::console::ConsoleSocket;
use kiln_integration::{
    Bundle, Cli, Container, Outcome, cgroup, eventually, json, kiln_only, proc, reap, reaper,
};

/// Why this machine's CRIU cannot be used; None if it can.
fn no_criu() -> Option<&'static str> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let why = WHY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("criu");
        command.arg("check").current_dir(dir.path());
        let out = match command.output() {
            Err(error) => return Some(format!("criu: {error}")),
            Ok(out) => out,
        };
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let last = text.lines().last().unwrap_or("it does not say why");
        (!out.status.success()).then(|| format!("criu check: {}: {last}", out.status))
    });
    why.as_deref()
}

macro_rules! needs_criu {
    () => {
        if let Some(why) = no_criu() {
            kiln_integration::skip!("{why}");
        }
    };
}

/// Counts in /n, without end; `exit` in /command ends it with the status that follows.
const COUNTER: &str = "n=0; while :; do n=$((n + 1)); echo $n >> /n; \
    if test -e /exit; then exit $(cat /exit); fi; sleep 0.05; done";

fn counter() -> Bundle {
    Bundle::sh(COUNTER).writable()
}

/// The last whole line of a file that only grows: a file that is replaced is written out by ext4 at
/// once, and CRIU cannot stop a process that waits for the disk.
fn last(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    whole.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn count(c: &Container) -> u64 {
    last(&c.bundle.rootfs().join("n"))
}

fn await_count(c: &Container, least: u64) {
    eventually(&format!("a count of {least}"), || count(c) >= least);
}

/// Where the images of a container are in these tests.
fn images(c: &Container) -> String {
    c.bundle.scratch().join("images").to_str().unwrap().to_owned()
}

fn checkpoint(c: &Container, flags: &[&str]) -> Outcome {
    c.cli(&["checkpoint", "--image-path", &images(c)]).args(flags).arg(&c.id).output()
}

fn restore(c: &Container, flags: &[&str]) -> Outcome {
    restore_from(c, &images(c), flags)
}

fn restore_from(c: &Container, images: &str, flags: &[&str]) -> Outcome {
    let bundle = c.bundle.path();
    c.cli(&["restore", "--image-path", images, "--bundle"])
        .arg(bundle)
        .args(flags)
        .arg(&c.id)
        .output()
}

/// Counts up to 5 at least, and is checkpointed.
fn checkpointed(bundle: Bundle, flags: &[&str]) -> Container {
    let c = bundle.container();
    c.detach().ok();
    await_count(&c, 5);
    checkpoint(&c, flags).ok();
    c
}

/// Whether it counts on.
fn await_more(c: &Container) {
    let now = count(c);
    await_count(c, now + 3);
}

#[test]
fn a_container_goes_on_where_it_was() {
    needs_criu!();
    let c = counter().container();
    c.detach().ok();
    await_count(&c, 5);
    let pid = c.pid();
    checkpoint(&c, &[]).ok();
    assert!(!proc::alive(pid));
    c.assert_nothing_left();
    let stopped_at = count(&c);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(count(&c), stopped_at);
    restore(&c, &["--detach"]).ok();
    assert_eq!(c.status(), "running");
    await_count(&c, stopped_at + 3);
    let pid = c.pid();
    fs::write(c.bundle.rootfs().join("exit"), "7").unwrap();
    assert_eq!(reap(pid), 7);
    c.await_status("stopped");
    c.delete().ok();
    c.assert_nothing_left();
}

#[test]
fn what_was_restored_is_a_container_like_any_other() {
    needs_criu!();
    let c = checkpointed(counter().set("/linux/resources/pids/limit", json!(50)), &[]);
    let pid_file = c.bundle.scratch().join("pid");
    restore(&c, &["-d", "--pid-file", pid_file.to_str().unwrap()]).ok();
    let pid = c.pid();
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    // All of it is in the container's cgroup, with the config's limits.
    let dir = cgroup::directory(pid, "pids").unwrap();
    assert!(dir.to_string_lossy().contains(&c.id), "{}", dir.display());
    assert_eq!(fs::read_to_string(dir.join("pids.max")).unwrap().trim(), "50");
    let ps = c.on_id("ps", &["--format", "json"]).ok();
    let pids: Vec<i32> = serde_json::from_str(&ps.stdout).unwrap();
    assert!(pids.contains(&pid), "{ps}");
    for kind in ["pid", "mnt", "net", "ipc", "uts"] {
        assert_ne!(proc::namespace(pid, kind), proc::own_namespace(kind));
    }
    c.on_id("pause", &[]).ok();
    assert_eq!(c.status(), "paused");
    c.on_id("resume", &[]).ok();
    await_more(&c);
    // Its init has never executed anything, but is no engine either.
    checkpoint(&c, &["--leave-running"]).ok();
    await_more(&c);
    c.kill("KILL").ok();
    assert_eq!(reap(pid), 137);
    c.delete().ok();
    c.assert_nothing_left();
}

#[test]
fn in_the_foreground_the_exit_status_is_the_containers() {
    needs_criu!();
    let c = checkpointed(counter(), &[]);
    fs::write(c.bundle.rootfs().join("exit"), "9").unwrap();
    restore(&c, &[]).exits(9);
    c.assert_nothing_left();
}

#[test]
fn a_signal_to_restore_is_passed_on() {
    needs_criu!();
    let script = format!("trap 'exit 4' TERM; {COUNTER}");
    let c = checkpointed(Bundle::sh(&script).writable(), &[]);
    let bundle = c.bundle.path();
    let cli = c.cli(&["restore", "--image-path", &images(&c), "-b"]).arg(bundle).arg(&c.id);
    let running = cli.spawn();
    await_more(&c);
    running.signal(rustix::process::Signal::TERM);
    running.wait().exits(4);
    c.assert_nothing_left();
}

#[test]
fn leave_running_leaves_it_running() {
    needs_criu!();
    let c = counter().container();
    c.detach().ok();
    await_count(&c, 5);
    let pid = c.pid();
    checkpoint(&c, &["--leave-running"]).ok();
    assert_eq!((c.status().as_str(), c.pid()), ("running", pid));
    await_more(&c);
    // The name is taken.
    restore(&c, &["-d"]).fails(&["already exists"]);
    c.kill("KILL").ok();
    assert_eq!(reap(pid), 137);
    c.delete().ok();
    restore(&c, &["-d"]).ok();
    await_more(&c);
}

#[test]
fn memory_is_dumped_before_and_the_rest_later() {
    needs_criu!();
    let c = counter().container();
    c.detach().ok();
    await_count(&c, 5);
    let before = c.bundle.scratch().join("before");
    let before = before.to_str().unwrap();
    c.cli(&["checkpoint", "--pre-dump", "--image-path", before, &c.id]).output().ok();
    assert_eq!(c.status(), "running");
    await_more(&c);
    checkpoint(&c, &["--parent-path", "/absolute"]).fails(&["--parent-path", "relative"]);
    checkpoint(&c, &["--parent-path", "../nothing"]).fails(&["--parent-path", "no such file"]);
    checkpoint(&c, &["--parent-path", "../before"]).ok();
    let now = count(&c);
    assert!(c.bundle.scratch().join("images/parent").exists());
    restore(&c, &["-d"]).ok();
    await_count(&c, now + 3);
}

#[test]
fn a_failure_leaves_the_container_running() {
    needs_criu!();
    // A lock on a file, which CRIU refuses without --file-locks.
    let script = format!("exec 9>/lock; /usr/bin/flock -n 9 || exit 3; {COUNTER}");
    let c = Bundle::sh(&script).writable();
    // The host's flock, from util-linux, with its libraries.
    for dir in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{dir}"), c.rootfs().join(dir)).unwrap();
    }
    let c = c.bind("/usr", "/usr", &["rbind", "ro"]).container();
    c.detach().ok();
    await_count(&c, 5);
    let work = c.bundle.scratch().join("work");
    let log = work.join("dump.log");
    checkpoint(&c, &["--work-path", work.to_str().unwrap()]).fails(&[
        "checkpoint container",
        "Error (criu/",
        log.to_str().unwrap(),
    ]);
    assert!(log.exists());
    assert_eq!(c.status(), "running");
    await_more(&c);
    checkpoint(&c, &["--file-locks"]).ok();
    let locked = || {
        let file = File::open(c.bundle.rootfs().join("lock")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    };
    assert!(!locked());
    restore(&c, &["-d", "--file-locks"]).ok();
    await_more(&c);
    assert!(locked());
}

#[test]
fn pipes_are_the_restoring_callers() {
    needs_criu!();
    let c = Bundle::sh("echo before; while read line; do echo got $line; done; exit 6").container();
    let mut command = c.run_cli(&["-d"]).command();
    let mut child =
        reaper::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut out = child.stdout.take().unwrap();
    let _stdin = child.stdin.take().unwrap();
    assert!(reaper::wait(&mut child).success());
    let mut text = [0; 7];
    out.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"before\n");
    checkpoint(&c, &[]).ok();

    let cli = c.cli(&["restore", "--image-path", &images(&c), "-b"]).arg(c.bundle.path());
    let mut command = cli.arg(&c.id).command();
    let mut child =
        reaper::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()));
    let (mut stdin, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"hello\n").unwrap();
    drop(stdin);
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got hello\n");
    assert_eq!(reaper::wait(&mut child).code(), Some(6));
    c.assert_nothing_left();
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    needs_criu!();
    let bundle = Bundle::sh("tty; while read line; do echo got $line; done");
    let bundle = bundle.set("/process/terminal", json!(true));
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = bundle.container();
    c.run_cli(&["-d", "--console-socket", socket.path()]).output().ok();
    let mut terminal = socket.accept();
    terminal.read_until("/dev/pts/0");
    checkpoint(&c, &[]).ok();
    drop(terminal);
    restore(&c, &["-d"]).fails(&["--console-socket"]);
    c.assert_nothing_left();
    restore(&c, &["-d", "--console-socket", socket.path()]).ok();
    let mut terminal = socket.accept();
    terminal.send("hello\n");
    assert!(terminal.read_until("got hello").contains("got hello"));
}

#[test]
fn a_tcp_connection_over_the_loopback_interface() {
    needs_criu!();
    // One end echoes what the other sends: a number that grows while both live.
    let script = "nc -l -p 7000 -e /bin/cat & sleep 1; \
        (n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done) | nc 127.0.0.1 7000 | \
        while read n; do echo $n >> /n; done; exit 3";
    let c = Bundle::sh(script).writable().container();
    std::os::unix::fs::symlink("busybox", c.bundle.rootfs().join("bin/nc")).unwrap();
    c.detach().ok();
    await_count(&c, 5);
    checkpoint(&c, &[]).fails(&["Error (criu/"]);
    assert_eq!(c.status(), "running");
    checkpoint(&c, &["--tcp-established"]).ok();
    let now = count(&c);
    restore(&c, &["-d", "--tcp-established"]).ok();
    await_count(&c, now + 3);
}

#[test]
fn bind_mounts_lead_to_where_the_new_bundle_says() {
    needs_criu!();
    let old = counter();
    let first = old.scratch().join("first");
    fs::create_dir(&first).unwrap();
    let script = "n=0; while :; do n=$((n + 1)); echo $n >> /run/data/n; sleep 0.05; done";
    let old = old.bind(&first, "/var/run/data", &["rbind"]).args(&["sh", "-c", script]);
    // The mount is behind a symlink in the rootfs.
    for dir in ["run", "var"] {
        fs::create_dir(old.rootfs().join(dir)).unwrap();
    }
    std::os::unix::fs::symlink("../run", old.rootfs().join("var/run")).unwrap();
    let c = old.container();
    c.detach().ok();
    let read = |dir: &Path| last(&dir.join("n"));
    eventually("a count in the volume", || read(&first) > 5);
    checkpoint(&c, &[]).ok();
    let images = images(&c);
    let stopped_at = read(&first);

    let new = counter();
    let second = new.scratch().join("second");
    fs::create_dir(&second).unwrap();
    // The rootfs is a fresh one: what is mounted on is made.
    fs::create_dir(new.rootfs().join("var")).unwrap();
    fs::create_dir(new.rootfs().join("run")).unwrap();
    std::os::unix::fs::symlink("../run", new.rootfs().join("var/run")).unwrap();
    for dir in ["proc", "sys", "dev"] {
        fs::remove_dir(new.rootfs().join(dir)).unwrap();
    }
    let new = new.bind(&second, "/var/run/data", &["rbind"]).container();
    restore_from(&new, &images, &["-d"]).ok();
    eventually("the count in the other volume", || read(&second) > stopped_at);
    assert!(read(&first) <= stopped_at);
}

#[test]
fn a_network_namespace_that_is_joined() {
    needs_criu!();
    let name = format!("kt-criu-{}", std::process::id());
    let ip =
        |words: &[&str]| reaper::wait(&mut reaper::spawn(Command::new("ip").args(words))).success();
    assert!(ip(&["netns", "add", &name]));
    let path = format!("/run/netns/{name}");
    let c = checkpointed(counter().namespace("network", Some(&path)), &["--empty-ns", "network"]);
    restore(&c, &["-d", "--empty-ns=network"]).ok();
    await_more(&c);
    let namespace = proc::namespace(c.pid(), "net");
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    c.delete_force().ok();
    assert!(ip(&["netns", "delete", &name]));
    assert_eq!(namespace, format!("net:[{inode}]"));
}

#[test]
fn hooks_run_as_the_container_comes_back() {
    needs_criu!();
    let bundle = counter();
    let seen = bundle.scratch().join("seen");
    let hook = |stage: &str| {
        let script = format!("cat > /dev/null; echo {stage} >> {}", seen.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    let stages = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let bundle = stages
        .iter()
        .fold(bundle, |bundle, stage| bundle.set(&format!("/hooks/{stage}"), hook(stage)));
    let c = checkpointed(bundle, &[]);
    let lines = || fs::read_to_string(&seen).unwrap().replace('\n', " ");
    // As for runc, a checkpoint ends the container, with its poststop hooks.
    assert_eq!(lines(), "prestart createRuntime createContainer poststart poststop ");
    fs::remove_file(&seen).unwrap();
    restore(&c, &["-d"]).ok();
    assert_eq!(lines(), "prestart createRuntime ");
    await_more(&c);
    c.delete_force().ok();
    assert_eq!(lines(), "prestart createRuntime poststop ");
}

#[test]
fn a_restore_that_fails_leaves_nothing_but_the_images() {
    needs_criu!();
    let c = checkpointed(counter(), &[]);
    let hooks = json!([{ "path": "/bin/false" }]);
    let mut c = c;
    c.bundle.config["hooks"] = json!({ "createRuntime": hooks });
    c.bundle.write();
    restore(&c, &["-d"]).fails(&["createRuntime", "/bin/false"]);
    c.assert_nothing_left();
    c.bundle.config["hooks"] = json!({});
    c.bundle.write();
    // CRIU's own failure.
    let core = fs::read_dir(images(&c)).unwrap().flatten();
    let core = core.map(|entry| entry.path());
    let core = core.into_iter().find(|path| path.to_string_lossy().contains("/core-")).unwrap();
    let whole = fs::read(&core).unwrap();
    fs::write(&core, &whole[..whole.len() / 2]).unwrap();
    restore(&c, &["-d"]).fails(&["restore container", "Error (criu/", "restore.log"]);
    c.assert_nothing_left();
    fs::write(&core, &whole).unwrap();
    restore(&c, &["-d"]).ok();
    await_more(&c);
}

/// What is mounted where and how, as text that can be compared.
fn mounts(pid: i32) -> Vec<String> {
    let line = |mount: proc::Mount| {
        let access = if mount.options.iter().any(|word| word == "ro") { "ro" } else { "rw" };
        let mut options = mount.options;
        options.retain(|word| word != access);
        options.sort();
        format!("{:?} {} {access} {options:?}", mount.point, mount.kind)
    };
    let mut lines: Vec<_> = proc::mounts(&pid.to_string()).into_iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn a_read_only_container_with_a_user_and_seccomp() {
    needs_criu!();
    let script = "n=0; while :; do n=$((n + 1)); echo $n > /tmp/n; sleep 0.05; done";
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["sethostname"], "action": "SCMP_ACT_ERRNO" }],
    });
    let bundle = Bundle::sh(script);
    // Of one filesystem, and both read-only: CRIU forgets the second's.
    let volumes = ["one", "two"].map(|name| bundle.scratch().join(name));
    volumes.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let c = bundle
        .bind(&volumes[0], "/one", &["bind", "ro", "nosuid"])
        .bind(&volumes[1], "/two", &["bind", "ro", "nosuid"])
        .mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "mode=1777"])
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .set("/linux/seccomp", seccomp)
        .container();
    c.detach().ok();
    let inside = |pid: i32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/root/tmp/n")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let pid = c.pid();
    eventually("a count", || inside(pid) > 5);
    let before = inside(pid);
    let mounts_before = mounts(pid);
    assert!(mounts_before[0].contains(" ro "), "{mounts_before:?}");
    checkpoint(&c, &[]).ok();
    restore(&c, &["-d"]).ok();
    let pid = c.pid();
    eventually("a higher count", || inside(pid) > before);
    assert_eq!(proc::status_field(pid, "Seccomp").unwrap(), "2");
    assert_eq!(proc::status_field(pid, "Uid").unwrap().split_whitespace().next(), Some("1000"));
    assert_eq!(mounts(pid), mounts_before);
}

#[test]
fn what_is_not_running_is_not_checkpointed() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    checkpoint(&c, &[]).fails(&["does not exist"]);
    c.create().ok();
    checkpoint(&c, &[]).fails(&["created"]);
    assert_eq!(c.status(), "created");
    c.start().ok();
    c.kill("KILL").ok();
    c.await_status("stopped");
    checkpoint(&c, &[]).fails(&["stopped"]);
}

#[test]
fn without_criu_the_error_says_so() {
    kiln_only!("they name the program only");
    let c = counter().container();
    c.detach().ok();
    let empty = c.bundle.scratch();
    let path = |cli: Cli| cli.env("PATH", &empty).output();
    let cli = c.cli(&["checkpoint", "--image-path", &images(&c), &c.id]);
    path(cli).fails(&["execute criu: it is not in PATH", "CRIU"]);
    assert_eq!(c.status(), "running");
    c.delete_force().ok();
    fs::write(format!("{}/descriptors.json", images(&c)), "[]").unwrap();
    let cli = c.cli(&["restore", "--image-path", &images(&c), "-b"]).arg(c.bundle.path());
    path(cli.arg(&c.id)).fails(&["execute criu: it is not in PATH"]);
    c.assert_nothing_left();
}

#[test]
fn a_directory_without_images_is_no_checkpoint() {
    let c = counter().container();
    restore(&c, &["-d"]).fails(&["images", "no such file"]);
    fs::create_dir(images(&c)).unwrap();
    restore(&c, &["-d"]).fails(&["descriptors.json"]);
    c.assert_nothing_left();
}

#[test]
fn flags_are_checked() {
    kiln_only!("the words are its own");
    let c = counter().container();
    c.detach().ok();
    checkpoint(&c, &["--manage-cgroups-mode", "some"]).fails(&["--manage-cgroups-mode", "some"]);
    checkpoint(&c, &["--empty-ns", "mount"]).fails(&["--empty-ns", "mount"]);
    checkpoint(&c, &["--page-server", "nowhere"]).fails(&["--page-server", "ADDRESS:PORT"]);
    checkpoint(&c, &["--status-fd", "77"]).fails(&["--status-fd 77"]);
    // Podman asks like this whether it is there.
    c.cli(&["checkpoint", "--help"]).output().ok().shows("--image-path");
    c.cli(&["restore", "--help"]).output().ok().shows("--lsm-profile");
    assert_eq!(c.status(), "running");
}
