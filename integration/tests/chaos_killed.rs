//! The shim, containerd, the warm parent and the container are killed while a task is created,
//! started, joined, killed and deleted: 20 points, each at several moments. Afterwards containerd
//! tells the truth, the others of the group go on as far as they can, and nothing is left.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kiln_integration::chaos::{Lab, WASM, is_long, new_child, signal, spin, warm_parent};
use kiln_integration::command::Running;
use kiln_integration::{
    Outcome, eventually, fresh_id, kiln_only, needs_shim, needs_wasm, patience, proc,
};
use rustix::process::Signal;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Shim,
    Containerd,
    WarmParent,
    Container,
    /// All four of them.
    Everybody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Start,
    Exec,
    Kill,
    Delete,
}

use Operation::{Create, Delete, Exec, Kill, Start};

/// When the victim is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The call waits in the socket of the shim, which is stopped.
    Called,
    /// Whoever does it has begun so long ago, and is stopped.
    Stopped(Duration),
    /// Whoever does it has begun so long ago.
    After(Duration),
}

use Moment::{After, Called, Stopped};

const MOMENTS: [Moment; 7] = [
    Called,
    Stopped(Duration::ZERO),
    After(Duration::from_micros(300)),
    Stopped(Duration::from_micros(1000)),
    After(Duration::from_micros(1500)),
    Stopped(Duration::from_micros(3000)),
    After(Duration::from_micros(4000)),
];

#[test]
fn the_shim() {
    during_each(Victim::Shim);
}

#[test]
fn containerd() {
    during_each(Victim::Containerd);
}

#[test]
fn the_warm_parent() {
    during_each(Victim::WarmParent);
}

#[test]
fn the_container() {
    during_each(Victim::Container);
}

#[test]
fn everybody() {
    during_each(Victim::Everybody);
}

fn during_each(victim: Victim) {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    needs_shim!();
    let mut rig = Rig::new();
    for (turn, operation) in (0..).zip([Create, Start, Exec, Kill, Delete]) {
        // One that has ended is not there to be killed.
        if (victim, operation) == (Victim::Container, Delete) {
            continue;
        }
        let (mut hits, mut rounds) = (0, 0);
        // Some are over so soon that it takes several rounds to come in time.
        while rounds < if is_long() { 5 } else { 1 } || hits < 2 && rounds < 10 {
            rounds += 1;
            for (number, moment) in (0..).zip(MOMENTS) {
                let both = [false, true].into_iter();
                let chosen = |wasm: &bool| is_long() || *wasm == ((number / 2 + turn) % 2 == 1);
                for wasm in both.filter(chosen) {
                    // A stop that comes late meets the workload: SIGCONT wakes a module that sleeps.
                    let late = operation == Start && matches!(moment, Stopped(_));
                    let wasm = wasm && !late;
                    hits += usize::from(rig.point(Point { victim, operation, moment, wasm }));
                }
            }
        }
        assert!(hits > 1, "{victim:?} was never killed in time during {operation:?}");
    }
    rig.end();
}

#[derive(Clone, Copy, Debug)]
struct Point {
    victim: Victim,
    operation: Operation,
    moment: Moment,
    /// Whether the container is one of wasm.
    wasm: bool,
}

impl Point {
    /// The statuses that the task may have afterwards; "" for none.
    fn allowed(self) -> &'static [&'static str] {
        match (self.victim, self.operation) {
            (Victim::Shim | Victim::Everybody, _) => &[""],
            (Victim::Containerd, Create | Start) => &["", "CREATED", "RUNNING"],
            (Victim::Containerd, Exec) | (Victim::WarmParent, Start | Exec) => &["RUNNING"],
            (Victim::Containerd, Kill) => &["RUNNING", "STOPPED"],
            (Victim::WarmParent, Create) => &["", "RUNNING"],
            (Victim::WarmParent, Kill) => &["STOPPED"],
            (Victim::Containerd | Victim::WarmParent, Delete) => &["STOPPED", ""],
            (Victim::Container, _) => &["STOPPED", ""],
        }
    }

    fn kills_shim(self) -> bool {
        matches!(self.victim, Victim::Shim | Victim::Everybody)
    }

    fn kills_containerd(self) -> bool {
        matches!(self.victim, Victim::Containerd | Victim::Everybody)
    }
}

/// A group of two: one that is there, and one that something is done to.
struct Rig {
    lab: Lab,
    anchor: String,
}

/// What the operation was met with.
struct Disturbed {
    running: Running,
    /// Whether the victim was there, and the operation not over.
    in_time: bool,
    /// Who was stopped, and is to go on.
    stopped: Option<i32>,
}

impl Rig {
    fn new() -> Self {
        let (lab, anchor) = (Lab::new(), fresh_id());
        lab.define_in_group(&anchor, &WASM, &["/sleep.wasm", "10000"]);
        lab.start(&anchor).ok();
        Rig { lab, anchor }
    }

    fn end(self) {
        self.lab.remove(&self.anchor);
        self.lab.assert_nothing_left();
    }

    /// Whether the kill was in time.
    fn point(&mut self, point: Point) -> bool {
        let id = fresh_id();
        let (shim, anchor) = (self.lab.shim(&self.anchor), self.lab.pid(&self.anchor, "init.pid"));
        let (flags, command): (&[&str], _) = match point.wasm {
            true => (&WASM, ["/sleep.wasm", "10000"]),
            false => (&[], ["sleep", "10000"]),
        };
        self.lab.define_in_group(&id, flags, &command);
        self.prepare(point.operation, &id);
        let disturbed = self.disturb(point, &id, shim);
        let in_time = disturbed.in_time;
        let outcome = self.recover(point, disturbed);
        if point.kills_shim() {
            eventually(&format!("no task: {point:?}"), || self.lab.list().is_empty());
        } else {
            let status = self.lab.true_status(&id).unwrap_or_default();
            let allowed = point.allowed().contains(&status.as_str());
            assert!(allowed || !in_time, "{point:?}: {status:?}\n{outcome}");
            if (point.victim, point.operation) == (Victim::Container, Exec) {
                // Executed and killed with it, or refused for that.
                let code = outcome.status.code();
                let said = outcome.stderr.contains("container not running");
                assert!(said || code != Some(1), "{point:?}: {outcome}");
            }
            assert_eq!(self.lab.pid(&self.anchor, "init.pid"), anchor, "{point:?}");
            assert_eq!(self.lab.true_status(&self.anchor).as_deref(), Some("RUNNING"), "{point:?}");
            // If the warm parent was killed, this brings another one.
            let exec = ["exec", "--exec-id", &id, &self.anchor, "/hello.wasm"];
            self.lab.tasks(&exec).output().ok().prints("hello from wasm\n");
        }
        self.lab.remove(&id);
        nothing_of(point, || self.lab.left_of(&id));
        if point.kills_shim() {
            nothing_of(point, || self.lab.containerd.leftovers());
            self.lab.start(&self.anchor).ok();
        } else {
            nothing_of(point, || self.strangers(shim));
        }
        in_time
    }

    fn prepare(&self, operation: Operation, id: &str) {
        if matches!(operation, Exec | Kill | Delete) {
            self.lab.start(id).ok();
        }
        if operation == Delete {
            self.lab.tasks(&["kill", "--signal", "KILL", id]).output().ok();
            eventually("the end", || self.lab.true_status(id).as_deref() == Some("STOPPED"));
        }
    }

    /// Runs the operation and kills the victim meanwhile.
    fn disturb(&mut self, point: Point, id: &str, shim: i32) -> Disturbed {
        let Point { victim, operation, moment, wasm } = point;
        let mut warm = 0;
        eventually("a warm parent", || {
            warm = warm_parent(shim).unwrap_or_default();
            warm != 0
        });
        // Who begets the one who does it.
        let parent = if wasm && matches!(operation, Create | Exec) { warm } else { shim };
        let known: BTreeSet<i32> = proc::children(parent).into_iter().collect();
        let mut init = self.lab.pid(id, "init.pid");
        if moment == Called {
            signal(shim, Signal::STOP);
        }
        let running = self.operation(operation, wasm, id);
        let ended = || !proc::alive(running.pid());
        let worker = match (moment, operation) {
            (Called, _) => {
                std::thread::sleep(Duration::from_millis(60));
                Some(shim).filter(|_| !ended())
            }
            // The shim does it itself: seen by what it leads to.
            (_, Kill) => {
                while init.is_some_and(proc::alive) && !ended() {}
                init
            }
            // Init does it; before the call it waits for that.
            (_, Start) => {
                while init.is_none() && !ended() {
                    init = self.lab.pid(id, "init.pid");
                }
                init.filter(|_| !ended())
            }
            _ => new_child(parent, &known, ended),
        };
        if let (Victim::Container | Victim::Everybody, Create, Some(job), false) =
            (victim, operation, worker, moment == Called)
        {
            init = new_child(job, &BTreeSet::new(), || !proc::alive(job) || ended());
        }
        if let Stopped(after) | After(after) = moment {
            spin(after);
        }
        let stopped = match moment {
            Called => Some(shim),
            Stopped(_) => worker,
            After(_) => None,
        };
        if let (Some(pid), Stopped(_)) = (stopped, moment) {
            signal(pid, Signal::STOP);
            if operation == Start {
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        let init = init.or_else(|| self.lab.pid(id, "init.pid"));
        let kill = |pid: Option<i32>| pid.is_some_and(|pid| signal(pid, Signal::KILL));
        let killed = match victim {
            Victim::Shim => kill(Some(shim)),
            Victim::Containerd => true,
            Victim::WarmParent => kill(Some(warm)),
            Victim::Container => {
                let killed = kill(init);
                // On a busy machine it may get to that after everything else; and it waits itself for
                // what was executed in its pid namespace, as long as that one's parent is stopped.
                let ends = |pid| !proc::alive(pid) || proc::is_exiting(pid);
                eventually("the container's end", || init.is_none_or(ends));
                killed
            }
            Victim::Everybody => true,
        };
        if point.kills_containerd() {
            self.lab.containerd.stop(Signal::KILL);
        }
        if victim == Victim::Everybody {
            let _ = [init, Some(warm), Some(shim)].map(kill);
        }
        Disturbed { running, in_time: worker.is_some() && killed, stopped }
    }

    fn operation(&self, operation: Operation, wasm: bool, id: &str) -> Running {
        let exec = ["exec", "--exec-id", "e", id];
        let cli = match operation {
            Create | Start => self.lab.tasks(&["start", "--detach", "--null-io", id]),
            Exec if wasm => self.lab.tasks(&exec).args(&["/sleep.wasm", "0"]),
            Exec => self.lab.tasks(&exec).args(&["sleep", "0.1"]),
            Kill => self.lab.tasks(&["kill", "--signal", "KILL", id]),
            Delete => self.lab.tasks(&["delete", id]),
        };
        cli.spawn()
    }

    /// Lets go on who is still there, and has containerd again.
    fn recover(&mut self, point: Point, disturbed: Disturbed) -> Outcome {
        let Disturbed { running, stopped, .. } = disturbed;
        let go_on = move |after: u64| {
            std::thread::sleep(Duration::from_millis(after));
            stopped.map(|pid| signal(pid, Signal::CONT));
        };
        if point.kills_containerd() {
            // It finds them at work.
            let later = std::thread::spawn(move || go_on(150));
            self.lab.containerd.start_again();
            later.join().unwrap();
        } else {
            // So does whoever cleans up after the shim.
            go_on(if point.kills_shim() { 100 } else { 20 });
        }
        running.wait()
    }

    /// Processes of the tests' containerd that are not the shim, its warm parent or a container.
    fn strangers(&self, shim: i32) -> Vec<String> {
        let processes = self.lab.containerd.processes().into_iter();
        let strangers = processes.filter(|&pid| pid != shim && Some(pid) != warm_parent(shim));
        strangers.map(|pid| format!("process {pid}")).collect()
    }
}

/// Asserts that nothing is left. What ends by itself may take a moment.
#[track_caller]
fn nothing_of(point: Point, left: impl Fn() -> Vec<String>) {
    let since = Instant::now();
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(since.elapsed() < patience(5), "{point:?}: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Who makes the shim, the new shim, and containerd, before there is a task. containerd is told of
/// no shim then, or forgets it: one that nobody needs ends by itself, after ten seconds.
#[test]
fn while_the_shim_is_made() {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    needs_shim!();
    let mut lab = Lab::new();
    for victim in ["start", "shim", "containerd"] {
        for after in [0, 200, 1000, 3000, 8000] {
            let id = fresh_id();
            lab.define(&id, &WASM, &["/sleep.wasm", "10000"]);
            let containerd = lab.containerd.pid();
            let known: BTreeSet<i32> = proc::children(containerd).into_iter().collect();
            let running = lab.tasks(&["start", "--detach", "--null-io", &id]).spawn();
            let ended = || !proc::alive(running.pid());
            let start = new_child(containerd, &known, ended);
            let mut shim = None;
            while victim == "shim" && shim.is_none() && !ended() {
                shim = lab.pid(&id, "shim.pid");
            }
            spin(Duration::from_micros(after));
            match victim {
                "containerd" => {
                    lab.containerd.stop(Signal::KILL);
                    lab.containerd.start_again();
                }
                _ => drop(
                    start
                        .filter(|_| victim == "start")
                        .or(shim)
                        .map(|pid| signal(pid, Signal::KILL)),
                ),
            }
            running.wait();
            lab.true_status(&id);
            lab.remove(&id);
            let what = format!("{victim} killed after {after} µs");
            let since = Instant::now();
            while !lab.left_of(&id).is_empty() {
                assert!(since.elapsed() < patience(5), "{what}: {:#?}", lab.left_of(&id));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let since = Instant::now();
    while !lab.containerd.processes().is_empty() && since.elapsed() < patience(20) {
        std::thread::sleep(Duration::from_millis(100));
    }
    lab.assert_nothing_left();
}
