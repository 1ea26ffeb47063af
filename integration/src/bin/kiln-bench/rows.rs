//! What is measured: a row of the table each.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use crate::bundles::Bundles;
use crate::measure::{Runtime, high_water_kib, peak_kib, reap, time_ms};

/// What a row does in each round.
enum Action {
    /// `run` of a bundle.
    Run(PathBuf),
    /// `run` of a wasm bundle, by kiln alone; the others' column is row 0's.
    Wasm { bundle: PathBuf, compiled: bool },
    /// `create`, `start` and, when the program has ended, `delete`.
    Lifecycle(PathBuf),
    /// `state` of a container.
    State(PathBuf),
    /// A command on a running container: the words before its id and those after; and what undoes it.
    On {
        bundle: PathBuf,
        before: &'static [&'static str],
        after: &'static [&'static str],
        undo: Option<&'static str>,
    },
    /// Peak memory of the `create` command.
    PeakOfCreate(PathBuf),
    /// Peak memory of the init that `create` leaves waiting.
    PeakOfInit(PathBuf),
}

/// One row: its samples by runtime.
pub struct Row<'a> {
    /// The first cell.
    pub name: String,
    /// The unit of the samples.
    pub unit: &'static str,
    /// The highest ratio kiln / crun that the issue allows, and the one aimed for.
    pub target: Option<(f64, f64)>,
    /// Samples by the runtime's name.
    pub samples: HashMap<&'static str, Vec<f64>>,
    /// Whether this is about wasm, which only kiln runs: compared with crun's
    /// `run` of true.
    pub wasm: bool,
    /// Whether a round takes long, so that there are fewer, and no container's
    /// start to compare it with.
    pub slow: bool,
    action: Action,
    bundles: &'a Bundles,
}

impl<'a> Row<'a> {
    /// All rows in the order of the table, those about wasm if `with_wasm`.
    pub fn all(bundles: &'a Bundles, with_wasm: bool) -> Vec<Row<'a>> {
        let row = |name: &str, unit, target, action| Row {
            name: name.to_owned(),
            unit,
            target,
            samples: HashMap::new(),
            wasm: matches!(action, Action::Wasm { .. }),
            slow: false,
            action,
            bundles,
        };
        let truth = bundles.example("true", &[]);
        let idle = bundles.idle();
        let on = |before, after, undo| Action::On { bundle: idle.clone(), before, after, undo };
        let mut rows = vec![
            row("`run` true", "ms", Some((0.5, 0.3)), Action::Run(truth.clone())),
            row(
                "`run` true, default seccomp profile, filter cached",
                "ms",
                Some((0.3, 0.15)),
                Action::Run(bundles.with_seccomp()),
            ),
            row(
                "`create` + `start` + `delete`",
                "ms",
                Some((0.5, 0.3)),
                Action::Lifecycle(truth.clone()),
            ),
            row("`state`", "ms", Some((0.6, 0.6)), Action::State(truth.clone())),
            row("`exec` true", "ms", Some((0.5, 0.5)), on(&["exec"], &["/true"], None)),
            row(
                "`update`",
                "ms",
                Some((0.6, 0.6)),
                on(&["update", "--pids-limit", "99"], &[], None),
            ),
            row("`pause`", "ms", Some((0.6, 0.6)), on(&["pause"], &[], Some("resume"))),
            row("`ps`", "ms", Some((0.6, 0.6)), on(&["ps", "--format", "json"], &[], None)),
            row(
                "peak memory of `create`",
                "MiB",
                Some((1.0, 0.5)),
                Action::PeakOfCreate(truth.clone()),
            ),
            row("peak memory of the waiting init", "MiB", None, Action::PeakOfInit(truth)),
        ];
        if !with_wasm {
            return rows;
        }
        let wasm = |name: &str, arguments: &[&str], compiled| Action::Wasm {
            bundle: bundles.example(name, arguments),
            compiled,
        };
        let hello = wasm("hello.wasm", &[], true);
        rows.push(row("wasm hello, compiled", "ms", Some((1.2, 0.7)), hello));
        rows.push(row("wasm hello, interpreted", "ms", None, wasm("hello.wasm", &[], false)));
        for compiled in [true, false] {
            let how = if compiled { "compiled" } else { "interpreted" };
            let name = format!("wasm compute (primes below 300,000), {how}");
            let mut compute = row(&name, "ms", None, wasm("compute.wasm", &["300000"], compiled));
            compute.slow = true;
            rows.push(compute);
        }
        rows
    }

    /// How many rounds of the benchmark this row takes part in.
    pub fn rounds(&self, all: usize, slow: usize) -> usize {
        if self.slow { slow } else { all }
    }

    /// Once for each runtime, not counted: fills caches, theirs and the kernel's.
    pub fn warm_up(&mut self, runtimes: &[Runtime]) {
        if let Action::Wasm { bundle, compiled: true } = &self.action {
            let module = fs::read_dir(bundle.join("rootfs")).unwrap().next().unwrap().unwrap();
            let mut warm = std::process::Command::new(&runtimes[0].binary);
            warm.args(["aot", "warm"]).arg(module.path());
            warm.env("KILN_CACHE_DIR", self.bundles.cache()).stdout(std::process::Stdio::null());
            time_ms(warm);
        }
        for runtime in runtimes.iter().filter(|runtime| self.takes(runtime)) {
            self.sample(runtime);
        }
        if let Action::Wasm { compiled: false, .. } = &self.action {
            // The compiler that the first run started is to be through.
            std::thread::sleep(std::time::Duration::from_secs(3));
        }
    }

    /// One sample of each runtime; who is first changes from round to round.
    pub fn round(&mut self, runtimes: &[Runtime], round: usize) {
        for at in 0..runtimes.len() {
            let runtime = &runtimes[(at + round) % runtimes.len()];
            if self.takes(runtime) {
                let sample = self.sample(runtime);
                self.samples.entry(runtime.name).or_default().push(sample);
            }
        }
    }

    fn takes(&self, runtime: &Runtime) -> bool {
        !self.wasm || runtime.name == "kiln"
    }

    fn sample(&self, runtime: &Runtime) -> f64 {
        let root = self.bundles.root(runtime);
        let id = "bench";
        let command = |words: &[&str]| {
            let mut command = runtime.command(&root, words);
            command.env("KILN_CACHE_DIR", self.bundles.cache());
            command
        };
        let pid_file = self.bundles.pid_file();
        let with_bundle = |operation: &[&str], bundle: &PathBuf| {
            let mut command = command(operation);
            command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid_file).arg(id);
            command
        };
        let pid = || -> i32 { fs::read_to_string(&pid_file).unwrap().parse().unwrap() };
        let delete = || {
            time_ms(command(&["delete", "--force", id]));
            reap(pid());
        };
        match &self.action {
            Action::Run(bundle) => {
                time_ms(command(&["run", "--bundle", bundle.to_str().unwrap(), id]))
            }
            Action::Wasm { bundle, compiled } => {
                let mut run = command(&["run", "--bundle", bundle.to_str().unwrap(), id]);
                if !compiled {
                    // No compiled module fits, but the note that it was tried does.
                    run.env("KILN_AOT_CACHE_BYTES", "4096");
                    run.env("KILN_CACHE_DIR", self.bundles.interpreted_cache());
                }
                time_ms(run)
            }
            Action::Lifecycle(bundle) => {
                let create = time_ms(with_bundle(&["create"], bundle));
                let start = time_ms(command(&["start", id]));
                reap(pid());
                create + start + time_ms(command(&["delete", id]))
            }
            Action::State(bundle) => {
                time_ms(with_bundle(&["create"], bundle));
                let state = time_ms(command(&["state", id]));
                delete();
                state
            }
            Action::On { bundle, before, after, undo } => {
                time_ms(with_bundle(&["run", "--detach"], bundle));
                let mut on = command(before);
                on.arg(id).args(*after);
                let time = time_ms(on);
                if let Some(undo) = undo {
                    time_ms(command(&[undo, id]));
                }
                delete();
                time
            }
            Action::PeakOfCreate(bundle) => {
                let peak = peak_kib(&with_bundle(&["create"], bundle)) / 1024.0;
                delete();
                peak
            }
            Action::PeakOfInit(bundle) => {
                time_ms(with_bundle(&["create"], bundle));
                let peak = high_water_kib(pid()) / 1024.0;
                delete();
                peak
            }
        }
    }
}
