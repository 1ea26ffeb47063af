//! Kernels that lack a system call: strace answers ENOSYS in its place. Either the container runs
//! all the same, or the error says which call is missing and which Linux brought it; nothing is
//! left behind, and nothing is said of a container that is not true.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, Cli, Container, Outcome, command, kiln_only, skip};

/// What kiln needs, and the version that brought it.
const NEEDED: [(&str, &str); 11] = [
    ("pidfd_send_signal", "5.1"),
    ("open_tree", "5.2"),
    ("move_mount", "5.2"),
    ("fsopen", "5.2"),
    ("fsconfig", "5.2"),
    ("fsmount", "5.2"),
    ("pidfd_open", "5.3"),
    ("clone3", "5.3"),
    ("openat2", "5.6"),
    ("close_range", "5.9"),
    ("mount_setattr", "5.12"),
];

/// The command on a kernel without these calls.
fn without(calls: &str, cli: Cli) -> Cli {
    let trace = format!("trace={calls}");
    let inject = format!("inject={calls}:error=ENOSYS");
    cli.under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject])
}

/// It did what it should, or says what is missing.
#[track_caller]
fn done_or_named(outcome: &Outcome, (call, version): (&str, &str), done: bool) {
    if outcome.status.success() {
        assert!(done, "succeeded without {call} and did nothing: {outcome}");
        return;
    }
    let error = &outcome.stderr;
    assert!(error.contains(&format!("{call}(2)")), "{call} is not named: {outcome}");
    assert!(error.contains(&format!("Linux {version}")), "no version for {call}: {outcome}");
    assert!(!error.contains("panicked"), "{outcome}");
}

fn running() -> Container {
    let c = Bundle::new().args(&["sleep", "1000"]).container();
    c.detach().ok();
    c
}

#[test]
fn run_without_a_system_call() {
    kiln_only!("others need less");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    for needed in NEEDED {
        let c = Bundle::sh("echo ran").container();
        let outcome = without(needed.0, c.run_cli(&[])).output();
        done_or_named(&outcome, needed, outcome.stdout == "ran\n");
        c.assert_nothing_left();
    }
}

#[test]
fn exec_without_a_system_call() {
    kiln_only!("others need less");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let c = running();
    for needed in NEEDED {
        let outcome = without(needed.0, c.exec_cli(&[], &["echo", "ran"])).output();
        done_or_named(&outcome, needed, outcome.stdout == "ran\n");
    }
    assert_eq!(c.status(), "running");
}

/// A container that cannot be looked at has not ended for that.
#[test]
fn the_other_commands_without_a_system_call() {
    kiln_only!("others need less");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    for needed in NEEDED {
        let c = running();
        let state = without(needed.0, c.cli(&["state", &c.id])).output();
        done_or_named(&state, needed, state.stdout.contains("\"running\""));
        let delete = without(needed.0, c.cli(&["delete", &c.id])).output();
        assert!(!delete.status.success(), "a running container was deleted: {delete}");
        assert_eq!(c.status(), "running");
        let kill = without(needed.0, c.cli(&["kill", &c.id, "KILL"])).output();
        done_or_named(&kill, needed, true);
        if kill.status.success() {
            c.await_status("stopped");
        } else {
            assert_eq!(c.status(), "running");
        }
        let delete = without(needed.0, c.cli(&["delete", "--force", &c.id])).output();
        done_or_named(&delete, needed, true);
    }
}

/// A kernel as old as one may be: none of them.
#[test]
fn without_any_of_them() {
    kiln_only!("others need less");
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let all = NEEDED.map(|(call, _)| call).join(",");
    let c = Bundle::sh("echo ran").container();
    let outcome = without(&all, c.run_cli(&[])).output().fails(&["Linux 5.1", "kiln needs 5.12"]);
    assert_eq!(outcome.stdout, "");
    c.assert_nothing_left();
}
