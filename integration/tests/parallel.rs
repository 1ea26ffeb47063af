//! Many commands at once: on ids of their own, and on the same one.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::{Bundle, Cli, Container, Outcome, fresh_id, kiln_only, leftovers};

const COUNT: usize = 50;

/// Runs all commands at once and gives what each did.
fn at_once(commands: impl IntoIterator<Item = Cli>) -> Vec<Outcome> {
    let running: Vec<_> = commands.into_iter().map(Cli::spawn).collect();
    running.into_iter().map(|command| command.wait()).collect()
}

/// Ids on the bundle of a container, deleted by force when dropped.
struct Swarm<'a> {
    c: &'a Container,
    ids: Vec<String>,
}

impl Drop for Swarm<'_> {
    fn drop(&mut self) {
        at_once(self.ids.iter().map(|id| self.c.cli(&["delete", "--force", id])));
    }
}

#[test]
fn fifty_containers_at_once() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    let bundle = c.bundle.path();
    let swarm = Swarm { c: &c, ids: (0..COUNT).map(|_| fresh_id()).collect() };
    let ids = &swarm.ids;
    let all = |words: &[&str]| -> Vec<Cli> { ids.iter().map(|id| c.cli(words).arg(id)).collect() };
    let create = ["create", "--bundle", bundle.to_str().unwrap()];
    at_once(all(&create)).into_iter().for_each(|outcome| drop(outcome.ok()));
    let list = c.cli(&["list", "-q"]).output().ok();
    assert_eq!(list.stdout.lines().count(), COUNT);
    at_once(all(&["start"])).into_iter().for_each(|outcome| drop(outcome.ok()));
    for state in at_once(all(&["state"])) {
        state.ok().shows("\"running\"");
    }
    at_once(all(&["delete", "--force"])).into_iter().for_each(|outcome| drop(outcome.ok()));
    for id in ids {
        let left = leftovers::find(id, &c.root(), &c.bundle.home().join("none"));
        assert!(left.is_empty(), "{left:#?}");
    }
}

#[test]
fn fifty_runs_at_once() {
    let c = Bundle::sh("exit 5").container();
    let run = |_| c.cli(&["run", "--bundle"]).arg(c.bundle.path()).arg(fresh_id());
    for outcome in at_once((0..COUNT).map(run)) {
        outcome.exits(5);
    }
    c.cli(&["list", "-q"]).output().ok().prints("");
}

#[test]
fn one_id_fifty_times_at_once() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    let outcomes = at_once((0..COUNT).map(|_| c.create_cli(&[])));
    let (won, lost): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| outcome.status.success());
    assert_eq!(won.len(), 1, "exactly one wins; the first that lost: {}", lost[0]);
    for outcome in lost {
        outcome.fails(&["exist"]);
    }
    assert_eq!(c.status(), "created");
    c.start().ok();
    assert_eq!(c.status(), "running");
    assert_eq!(kiln_integration::cgroup::members(c.pid()).len(), 1, "one init in the cgroup");
    c.delete_force().ok();
    c.assert_nothing_left();
}

#[test]
fn one_id_deleted_ten_times_at_once() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    c.detach().ok();
    let delete = |_| c.cli(&["delete", "--force", &c.id]);
    for outcome in at_once((0..10).map(delete)) {
        outcome.ok();
    }
    c.assert_nothing_left();
}

#[test]
fn one_id_started_ten_times_at_once() {
    kiln_only!("1.1.5 hangs in the second start");
    let c = Bundle::sh("echo ran >> /log; sleep 100").writable().container();
    c.create().ok();
    let outcomes = at_once((0..10).map(|_| c.cli(&["start", &c.id])));
    let won = outcomes.iter().filter(|outcome| outcome.status.success()).count();
    assert_eq!(won, 1, "{}", outcomes[0]);
    assert_eq!(c.await_file("/log"), "ran\n");
}

/// Whoever comes first, the id must not be stuck afterwards.
#[test]
fn create_and_delete_at_once() {
    kiln_only!("1.1.5 loses the state and keeps the init");
    let c = Bundle::new().args(&["sleep", "100"]).container();
    for _ in 0..10 {
        let delete = || c.cli(&["delete", "--force", &c.id]);
        at_once([c.create_cli(&[]), delete(), delete(), c.create_cli(&[]), delete()]);
        c.delete_force().ok();
        c.assert_nothing_left();
    }
}

#[test]
fn state_and_list_during_create_and_delete() {
    let c = Bundle::new().args(&["sleep", "100"]).container();
    for _ in 0..10 {
        let create = c.create_cli(&[]).spawn();
        let looks = at_once((0..5).map(|_| c.cli(&["list"])));
        looks.into_iter().for_each(|outcome| drop(outcome.ok()));
        create.wait().ok();
        let delete = c.cli(&["delete", "--force", &c.id]).spawn();
        let looks = at_once((0..5).map(|_| c.cli(&["list", "-f", "json"])));
        looks.into_iter().for_each(|outcome| drop(outcome.ok()));
        delete.wait().ok();
    }
}
