//! Each system call of an operation fails once, with an error that it may well
//! give and that nobody expects: the operation succeeds without it, or fails
//! with status 1 and one line that names the step, and leaves nothing.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::faults::{
    Point, assert_deletable, childrens_points, failing_points, true_status, with_fault,
};
use kiln_integration::{
    Bundle, Cli, Container, Outcome, cgroup, command, eventually, json, kiln_only, leftovers, skip,
};

/// No space, a broken disk, no descriptors, no memory; in turn.
const ERRORS: [&str; 4] = ["ENOSPC", "EIO", "EMFILE", "ENOMEM"];

macro_rules! needs_strace {
    () => {
        kiln_only!("1.1.5 has threads of Go's that strace does not follow");
        if !command::exists("strace") {
            skip!("strace is not installed");
        }
    };
}

/// What is wrong with a failure: nothing if it is one line, says what failed at
/// what, and has this status.
fn problem(outcome: &Outcome, status: i32) -> Option<String> {
    let errors: Vec<_> =
        outcome.stderr.lines().filter(|line| !line.contains("level=warning")).collect();
    let named = |line: &str| line.strip_prefix("kiln: ").is_some_and(|line| line.contains(": "));
    match &errors[..] {
        _ if outcome.stderr.contains("panicked") => Some("it panicked".to_owned()),
        _ if outcome.status.code() != Some(status) => Some(format!("not status {status}")),
        [line] if named(line) => None,
        [_] => Some("the step is not named".to_owned()),
        lines => Some(format!("{} lines of error", lines.len())),
    }
}

/// Every point, each with its error; how the operation ended is for `judge`.
fn try_all(points: &[Point], run: &dyn Fn(&Point, &str) -> Option<String>) {
    let problems: Vec<_> = points
        .iter()
        .enumerate()
        .filter_map(|(index, point)| {
            let error = ERRORS[index % ERRORS.len()];
            run(point, error).map(|problem| format!("{point:?} {error}: {problem}"))
        })
        .collect();
    eprintln!("failed at {} points", points.len());
    assert!(problems.is_empty(), "{} of {}: {problems:#?}", problems.len(), points.len());
}

fn fails(cli: Cli, point: &Point, error: &str, follow: bool) -> Outcome {
    with_fault(cli, point, &format!("error={error}"), follow).output()
}

fn left(c: &Container) -> Option<String> {
    let left = leftovers::find(&c.id, &c.root(), c.bundle.home());
    (!left.is_empty()).then(|| format!("left: {left:?}"))
}

/// For `create` and `run`: the container is there in this status, or not at all.
fn creates(c: &Container, status: &str, cli: &dyn Fn() -> Cli) {
    let points = failing_points(cli(), c);
    c.delete_force().ok();
    try_all(&points, &|point, error| {
        let outcome = fails(cli(), point, error, false);
        let problem = if outcome.status.success() {
            let is = true_status(c);
            assert_deletable(c, &format!("{point:?} {error}"));
            (is.as_deref() != Some(status)).then(|| format!("status {is:?}"))
        } else {
            left(c).or_else(|| problem(&outcome, 1))
        };
        problem.map(|problem| format!("{problem}: {outcome}"))
    });
    c.create().ok();
}

fn sleeping() -> Bundle {
    Bundle::new().args(&["sleep", "100"])
}

fn with_everything() -> Bundle {
    let hook = json!([{ "path": "/bin/true" }]);
    let bundle = sleeping().user_namespace(200_000).set("/hooks/createRuntime", hook.clone());
    let bundle = bundle.set("/hooks/createContainer", hook).namespace("cgroup", None);
    bundle.set("/linux/resources/pids", json!({ "limit": 50 }))
}

#[test]
fn create_with_each_call_failing() {
    needs_strace!();
    let c = sleeping().container();
    creates(&c, "created", &|| c.create_cli(&[]));
}

#[test]
fn create_with_everything_with_each_call_failing() {
    needs_strace!();
    let c = with_everything().container();
    creates(&c, "created", &|| c.create_cli(&[]));
}

#[test]
fn run_detached_with_each_call_failing() {
    needs_strace!();
    let c = sleeping().container();
    let pid_file = c.bundle.scratch().join("pid");
    let flags = ["--detach", "--pid-file", pid_file.to_str().unwrap()];
    creates(&c, "running", &|| c.run_cli(&flags));
}

/// Init's own calls: the runtime prints what init says.
#[test]
fn run_with_each_call_of_init_failing() {
    needs_strace!();
    let c = Bundle::sh("exit 0").user_namespace(200_000).namespace("cgroup", None).container();
    let mut points = childrens_points(c.run_cli(&[]), &c);
    // Busybox's own, or an end that cannot fail.
    points.retain(|(name, _)| {
        !matches!(name.as_str(), "exit" | "exit_group" | "close" | "rt_sigtimedwait" | "umask")
    });
    assert!(points.len() > 3, "{points:?}");
    try_all(&points, &|point, error| {
        let outcome = fails(c.run_cli(&[]), point, error, true);
        let failed = !outcome.status.success();
        let problem = failed.then(|| problem(&outcome, 1)).flatten();
        left(&c).or(problem).map(|problem| format!("{problem}: {outcome}"))
    });
}

#[test]
fn start_with_each_call_failing() {
    needs_strace!();
    let c = sleeping().container();
    c.create().ok();
    let start = || c.cli(&["start", &c.id]);
    let points = failing_points(start(), &c);
    try_all(&points, &|point, error| {
        c.delete_force().ok();
        c.create().ok();
        let outcome = fails(start(), point, error, false);
        let (failed, status) = (!outcome.status.success(), true_status(&c));
        // It may be too late to undo: the workload runs, and the error says that nobody knows.
        let problem = match status.as_deref() {
            Some("running") => failed.then(|| problem(&outcome, 1)).flatten(),
            Some("created" | "stopped") if failed => problem(&outcome, 1),
            status => Some(format!("status {status:?}")),
        };
        problem.map(|problem| format!("{problem}, {status:?}: {outcome}"))
    });
    assert_deletable(&c, "after the last");
}

#[test]
fn exec_with_each_call_failing() {
    needs_strace!();
    let c = sleeping().container();
    c.detach().ok();
    let init = c.pid();
    let exec = || c.exec_cli(&[], &["true"]);
    let points = failing_points(exec(), &c);
    try_all(&points, &|point, error| {
        let outcome = fails(exec(), point, error, false);
        eventually("init alone in the cgroup", || cgroup::members(init) == [init]);
        let failed = !outcome.status.success();
        let problem = failed.then(|| problem(&outcome, 255)).flatten();
        problem.map(|problem| format!("{problem}: {outcome}"))
    });
    assert_deletable(&c, "after the execs");
}

#[test]
fn delete_with_each_call_failing() {
    needs_strace!();
    let c = sleeping().container();
    c.detach().ok();
    let delete = || c.cli(&["delete", "--force", &c.id]);
    let points = failing_points(delete(), &c);
    try_all(&points, &|point, error| {
        c.detach().ok();
        let outcome = fails(delete(), point, error, false);
        let problem = match outcome.status.success() {
            true => left(&c),
            // What was not done can be done again, and says what it is until then.
            false => {
                true_status(&c);
                problem(&outcome, 1)
            }
        };
        assert_deletable(&c, &format!("delete with {point:?} {error}"));
        problem.map(|problem| format!("{problem}: {outcome}"))
    });
}
