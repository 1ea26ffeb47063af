//! Commands on one container at the same time, three hundred times: whoever
//! wins, what is left is whole, and nobody else is touched.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::faults::{assert_deletable, rounds, true_status};
use kiln_integration::{Bundle, Cli, Container, Outcome, eventually, kiln_only, proc};

/// Of each of two kinds of container.
const ROUNDS: usize = 150;

fn at_once(commands: impl IntoIterator<Item = Cli>) -> Vec<Outcome> {
    let running: Vec<_> = commands.into_iter().map(Cli::spawn).collect();
    running.into_iter().map(|command| command.wait()).collect()
}

/// No panic, no signal, and an error only in words.
#[track_caller]
fn well_ended(outcomes: &[Outcome]) {
    for outcome in outcomes {
        assert!(matches!(outcome.status.code(), Some(0 | 1)), "{outcome}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
        let said = !outcome.stderr.is_empty();
        assert!(said || outcome.status.success(), "{outcome}");
    }
}

fn start_kill_delete(c: &Container) {
    for round in 0..rounds(ROUNDS) {
        c.create().ok();
        let init = c.pid();
        let on = |words: &[&str]| c.cli(words);
        let start = on(&["start", &c.id]);
        let kill = on(&["kill", &c.id, "KILL"]);
        let delete = on(&["delete", "--force", &c.id]);
        let outcomes = match round % 3 {
            0 => at_once([start, kill, delete]),
            1 => at_once([kill, start, delete]),
            _ => at_once([delete, kill, start]),
        };
        well_ended(&outcomes);
        // delete --force waits for whoever is at work: it has won in the end.
        assert!(outcomes.iter().any(|outcome| outcome.status.success()), "{outcomes:?}");
        assert_eq!(true_status(c), None, "round {round}: {outcomes:#?}");
        eventually("init's end", || !proc::alive(init));
        assert_deletable(c, &format!("round {round}"));
    }
}

#[test]
fn start_against_kill_against_delete() {
    kiln_only!("1.1.5 hangs in start");
    start_kill_delete(&Bundle::new().args(&["sleep", "100"]).container());
}

#[test]
fn start_against_kill_against_delete_without_a_pid_namespace() {
    kiln_only!("1.1.5 hangs in start");
    let bundle = Bundle::new().args(&["sleep", "100"]).without_namespace("pid");
    start_kill_delete(&bundle.container());
}

#[test]
fn create_against_create_against_delete() {
    kiln_only!("1.1.5 loses the state and keeps the init");
    let c = Bundle::new().args(&["sleep", "100"]).container();
    for round in 0..rounds(60) {
        let delete = || c.cli(&["delete", "--force", &c.id]);
        let commands = [c.create_cli(&[]), c.create_cli(&[]), delete(), c.create_cli(&[])];
        let outcomes = at_once(commands);
        well_ended(&outcomes);
        let status = true_status(&c);
        let known = status.as_deref().is_none_or(|status| status == "created");
        assert!(known, "round {round}: {status:?} {outcomes:#?}");
        well_ended(&at_once([delete(), delete(), delete()]));
        assert_deletable(&c, &format!("round {round}"));
    }
}

/// Init is killed before, while or after `start` talks to it.
#[test]
fn start_of_an_init_that_dies() {
    kiln_only!("1.1.5 hangs in start");
    let c = Bundle::new().args(&["sleep", "100"]).container();
    for round in 0..rounds(60) as u64 {
        c.create().ok();
        let init = rustix::process::Pid::from_raw(c.pid()).unwrap();
        let start = c.cli(&["start", &c.id]).spawn();
        std::thread::sleep(std::time::Duration::from_micros(round * 150));
        let _ = rustix::process::kill_process(init, rustix::process::Signal::KILL);
        well_ended(&[start.wait()]);
        c.await_status("stopped");
        assert_deletable(&c, &format!("round {round}"));
    }
}
