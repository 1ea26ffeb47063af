//! Faults put into a command by strace(1): at which of its system calls it can
//! be stopped, and what is true of the container afterwards.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::process::ExitStatusExt;

use serde_json::Value;

use crate::{Cli, Container, Outcome, eventually, leftovers, proc};

/// Calls that nobody but the process itself can see the effect of: a kill after
/// one is the same as a kill before it.
const PRIVATE: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "epoll_ctl",
    "fcntl",
    "fstat",
    "fstatfs",
    "getcwd",
    "getdents64",
    "geteuid",
    "getgid",
    "getpid",
    "getrandom",
    "getrlimit",
    "getsockopt",
    "getuid",
    "ioctl",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "poll",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "stat",
    "statfs",
    "statx",
    "uname",
];

/// A system call of a command: its name, and the how manieth of that name.
pub type Point = (String, usize);

/// At how many points a command is disturbed at most, spread evenly over all:
/// `KILN_TEST_POINTS`, for a machine that is slow; without it at every one.
fn limit() -> usize {
    let limit = std::env::var("KILN_TEST_POINTS").ok().and_then(|text| text.parse().ok());
    limit.unwrap_or(usize::MAX)
}

/// How many rounds of a race to run: all, or a tenth of them on a machine that is slow.
pub fn rounds(all: usize) -> usize {
    if limit() == usize::MAX { all } else { all.div_ceil(10) }
}

fn spread(points: Vec<Point>) -> Vec<Point> {
    let step = points.len().div_ceil(limit()).max(1);
    // From the end: the last call is always among them.
    let mut points: Vec<_> = points.into_iter().rev().step_by(step).collect();
    points.reverse();
    points
}

/// The name of the call in a line of strace's, `[pid N] ` before it or not.
fn name(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('(')?;
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (!name.is_empty() && name.chars().all(is_name)).then_some(name)
}

/// Runs the command undisturbed and lists the calls of each of its processes,
/// itself first: of the one with the lowest pid.
fn calls(cli: Cli, c: &Container, follow: bool) -> Vec<Vec<String>> {
    let dir = c.bundle.scratch().join("strace");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    let log = dir.join("log");
    let follow_flag = if follow { "-ff" } else { "-qq" };
    let words = ["strace", follow_flag, "-qq", "-o", log.to_str().unwrap()];
    let running = cli.under(&words).spawn();
    if follow {
        // strace would wait for the init that waits for `start`.
        let pid = running.pid();
        let created = || c.on_id("state", &[]).stdout.contains("\"created\"");
        eventually("an end or a container", || !proc::alive(pid) || created());
        c.delete_force().ok();
    }
    drop(running.wait());
    let mut logs = BTreeMap::new();
    for entry in fs::read_dir(&dir).unwrap().flatten() {
        let path = entry.path();
        let pid = path.extension().map_or(0, |pid| pid.to_str().unwrap().parse::<i32>().unwrap());
        logs.insert(pid, fs::read_to_string(path).unwrap());
    }
    let of = |text: String| text.lines().filter_map(name).map(str::to_owned).collect();
    logs.into_values().map(of).collect()
}

fn count(calls: &[String]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    calls.iter().for_each(|name| *counts.entry(name.as_str()).or_default() += 1);
    counts
}

/// The calls of the command itself that a kill can be told apart by, `execve`
/// and the first ones left out.
pub fn own_points(cli: Cli, c: &Container) -> Vec<Point> {
    let calls = calls(cli, c, false).into_iter().next().unwrap();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut points = Vec::new();
    let mut before = "execve";
    for name in calls.iter().map(String::as_str) {
        let count = counts.entry(name).or_default();
        *count += 1;
        if name != "execve" && (!PRIVATE.contains(&before) || name == "exit_group") {
            points.push((name.to_owned(), *count));
        }
        before = name;
    }
    assert!(points.len() > 10, "strace saw {} calls", calls.len());
    spread(points)
}

/// The calls of the processes that the command makes, as far as strace can tell
/// them from its own: by a count that its own do not reach.
pub fn childrens_points(cli: Cli, c: &Container) -> Vec<Point> {
    let calls = calls(cli, c, true);
    let (own, others) = calls.split_first().unwrap();
    let own = count(own);
    let mut points = BTreeMap::new();
    for child in others {
        for (name, count) in count(child) {
            let least = own.get(name).copied().unwrap_or(0);
            for number in least + 1..=count {
                points.insert((name.to_owned(), number), ());
            }
        }
    }
    points.retain(|(name, _), ()| name != "execve" && !PRIVATE.contains(&name.as_str()));
    spread(points.into_keys().collect())
}

/// Each call of the command itself, from the first of its own on: libc's start
/// is left out, and so are calls that cannot fail or whose failure changes
/// nothing, and those that make memory: without it a Rust program aborts.
pub fn failing_points(cli: Cli, c: &Container) -> Vec<Point> {
    const LEFT_OUT: &[&str] = &[
        "brk",
        "close",
        "exit_group",
        "fcntl",
        "getegid",
        "geteuid",
        "getgid",
        "getpid",
        "getrandom",
        "gettid",
        "getuid",
        "madvise",
        "mmap",
        "mprotect",
        "munmap",
        "rt_sigaction",
        "rt_sigprocmask",
        "sigaltstack",
        "umask",
    ];
    let calls = calls(cli, c, false).into_iter().next().unwrap();
    // Rust's runtime is complete with the stack for its signal handlers.
    let started = calls.iter().rposition(|name| name == "gettid" || name == "sched_getaffinity");
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut points = Vec::new();
    for (index, name) in calls.iter().map(String::as_str).enumerate() {
        let count = counts.entry(name).or_default();
        *count += 1;
        if !LEFT_OUT.contains(&name) && Some(index) > started {
            points.push((name.to_owned(), *count));
        }
    }
    spread(points)
}

/// The command with this fault at a call: `signal=KILL`, `error=EIO`. With
/// `follow` its children's calls count, too, each process's by themselves.
pub fn with_fault(cli: Cli, (name, count): &Point, fault: &str, follow: bool) -> Cli {
    let trace = format!("trace={name}");
    let inject = format!("inject={name}:{fault}:when={count}");
    let follow = if follow { "-f" } else { "-qq" };
    cli.under(&["strace", follow, "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject])
}

/// Runs the command and kills it when it enters that call; whether it did, and
/// did not end before.
pub fn killed_at(cli: Cli, point: &Point) -> bool {
    // strace ends by the signal that ended what it traced.
    with_fault(cli, point, "signal=KILL", false).output().status.signal() == Some(9)
}

/// Whether the process is one of the container's.
fn is_of(pid: i64, c: &Container) -> bool {
    let pid = i32::try_from(pid).unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    proc::alive(pid) && (cgroup.contains(&c.id) || leftovers::is_inside(pid, c.bundle.home()))
}

/// Waits until what `state` says is so, which is at once but for a process that
/// is on its way out, and gives the status; nothing if `state` is an error.
///
/// # Panics
/// If it does not come true, or `state` is no JSON, or no error in one line.
#[track_caller]
pub fn true_status(c: &Container) -> Option<String> {
    let mut status = None;
    eventually("the state to be true", || {
        let outcome = c.on_id("state", &[]);
        if !outcome.status.success() {
            one_error(&outcome);
            status = None;
            return true;
        }
        let state: Value =
            serde_json::from_str(&outcome.stdout).unwrap_or_else(|err| panic!("{err}: {outcome}"));
        let text = state["status"].as_str().unwrap_or_else(|| panic!("{outcome}"));
        let pid = state["pid"].as_i64().unwrap();
        status = Some(text.to_owned());
        match text {
            "stopped" => pid == 0,
            "created" | "running" => is_of(pid, c),
            // Only as long as somebody is at work, who is dead.
            _ => false,
        }
    });
    status
}

/// Asserts that `delete --force` succeeds, leaves nothing, and succeeds again.
#[track_caller]
pub fn assert_deletable(c: &Container, when: &str) {
    let outcome = c.delete_force();
    assert!(outcome.status.success(), "{when}: {outcome}");
    assert!(!outcome.stderr.contains("panicked"), "{when}: {outcome}");
    let left = leftovers::find(&c.id, &c.root(), c.bundle.home());
    assert!(left.is_empty(), "{when}: {left:#?}\n{outcome}");
    let again = c.delete_force();
    assert!(again.status.success(), "{when}, deleted a second time: {again}");
}

/// Asserts that a command failed as it should: one line, and no panic.
#[track_caller]
pub fn one_error(outcome: &Outcome) {
    let errors = outcome.stderr.lines().filter(|line| !line.contains("level=warning"));
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    assert_eq!(errors.count(), 1, "one line of error in {outcome}");
}
