//! Many wasm containers at once, each with a shim of its own and all in one: they start, answer
//! exec, are killed and removed, and nothing is left.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Instant;

use kiln_integration::chaos::{
    Lab, Memory, WASM, at_once, descriptors, is_long, memory, warm_parent, zombies,
};
use kiln_integration::{eventually, fresh_id, kiln_only, needs_shim, needs_wasm, proc};

/// How many: 200 have to do.
fn count() -> usize {
    if is_long() { 200 } else { 40 }
}

#[test]
fn each_in_its_own_shim() {
    many(Lab::define);
}

#[test]
fn all_in_one_shim() {
    many(Lab::define_in_group);
}

fn many(define: impl Fn(&Lab, &str, &[&str], &[&str]) + Sync) {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    needs_shim!();
    let lab = Lab::new();
    let ids: Vec<String> = (0..count()).map(|_| fresh_id()).collect();
    let mut clock = Clock::new();
    at_once(&ids, |id| {
        define(&lab, id, &WASM, &["/sleep.wasm", "10000"]);
        lab.start(id).ok();
    });
    clock.tick("started");
    let tasks = lab.list();
    assert_eq!(tasks.len(), ids.len());
    for (id, pid, status) in &tasks {
        assert!(status == "RUNNING" && proc::alive(*pid), "{id}: {status}");
    }
    at_once(&ids, |id| {
        let exec =
            |command: &[&str]| lab.tasks(&["exec", "--exec-id", &fresh_id(), id]).args(command);
        exec(&["echo", "here"]).output().ok().prints("here\n");
        exec(&["/hello.wasm"]).output().ok().prints("hello from wasm\n");
    });
    clock.tick("answered two execs each");
    report(&lab, &ids);
    at_once(&ids, |id| drop(lab.tasks(&["kill", "--signal", "KILL", id]).output().ok()));
    eventually("all to have ended", || lab.list().iter().all(|(.., status)| status == "STOPPED"));
    clock.tick("killed");
    at_once(&ids, |id| lab.remove(id));
    clock.tick("removed");
    assert_eq!(lab.list().len(), 0);
    lab.assert_nothing_left();
}

/// Prints what the shims take; each but the last container has left its shim as it was.
fn report(lab: &Lab, ids: &[String]) {
    let mut shims: Vec<i32> = ids.iter().map(|id| lab.shim(id)).collect();
    shims.sort_unstable();
    shims.dedup();
    let warm: Vec<i32> = shims.iter().filter_map(|&shim| warm_parent(shim)).collect();
    for (what, pids) in [("shims", &shims), ("warm parents", &warm)] {
        let open: usize = pids.iter().map(|&pid| descriptors(pid)).sum();
        eprintln!("{} {what}: {open} descriptors, {:?} KiB", pids.len(), all(pids));
    }
    let containers: Vec<i32> = lab.list().into_iter().map(|(_, pid, _)| pid).collect();
    eprintln!("{} containers: {:?} KiB", containers.len(), all(&containers));
    assert_eq!(shims.iter().map(|&shim| zombies(shim)).sum::<usize>(), 0);
}

fn all(pids: &[i32]) -> Memory {
    let mut sum = Memory::default();
    pids.iter().for_each(|&pid| sum += memory(pid));
    sum
}

/// Says how long each part has taken.
struct Clock(Instant);

impl Clock {
    fn new() -> Self {
        Clock(Instant::now())
    }

    fn tick(&mut self, what: &str) {
        eprintln!("{what} after {:?}", self.0.elapsed());
        self.0 = Instant::now();
    }
}
