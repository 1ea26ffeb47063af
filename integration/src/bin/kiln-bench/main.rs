//! The benchmark behind `scripts/bench`: kiln beside crun and runc, or, with `--containerd` (see
//! `pods`), kiln's shim beside runc's, or, with `--http` (see `http`), functions; one after the other in every round, medians and ratios in a
//! table.
//!
//! One process starts every command (posix_spawn by the standard library),
//! waits for it and takes CLOCK_MONOTONIC before and after, so what it costs
//! itself is the same for all. A command that does not end as it should stops
//! the benchmark.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bundles;
mod comparison;
mod http;
mod measure;
mod memory;
mod pod;
mod pods;
mod rounds;
mod rows;
mod table;

use std::path::PathBuf;

use measure::Runtime;

/// What the environment sets: binaries and the number of rounds.
struct Setup {
    runtimes: Vec<Runtime>,
    examples: PathBuf,
    rounds: usize,
    wasm_rounds: usize,
}

impl Setup {
    fn from_environment() -> Self {
        let binary = |name: &str| {
            std::env::var_os(name.to_uppercase()).map(|path| Runtime::new(name, path.into()))
        };
        let number = |name: &str, default| {
            std::env::var(name).map_or(default, |text| text.parse().expect(name))
        };
        Setup {
            runtimes: ["kiln", "crun", "runc"].into_iter().filter_map(binary).collect(),
            examples: std::env::var_os("EXAMPLES").expect("EXAMPLES").into(),
            rounds: number("ROUNDS", 60),
            wasm_rounds: number("WASM_ROUNDS", 5),
        }
    }
}

fn main() {
    // `kiln-bench --peak COMMAND...`: see measure::peak_kib.
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_ref().is_some_and(|arg| arg == "--peak") {
        measure::peak_child(&args.collect::<Vec<_>>());
    }
    let setup = Setup::from_environment();
    assert!(!setup.runtimes.is_empty(), "none of KILN, CRUN, RUNC is set");
    match first {
        Some(arg) if arg == "--containerd" => pods::run(setup),
        Some(arg) if arg == "--http" => http::run(&setup),
        Some(arg) => panic!("{arg:?} is not known"),
        None => runtimes(&setup),
    }
}

/// kiln beside other runtimes, as commands.
fn runtimes(setup: &Setup) {
    measure::become_subreaper();
    let bundles = bundles::Bundles::new(&setup.runtimes[0], &setup.examples);
    let mut rows = rows::Row::all(&bundles, setup.wasm_rounds > 0);
    for row in &mut rows {
        row.warm_up(&setup.runtimes);
    }
    for round in 0..setup.rounds {
        for row in &mut rows {
            if round < row.rounds(setup.rounds, setup.wasm_rounds) {
                row.round(&setup.runtimes, round);
            }
        }
    }
    print!("{}", table::markdown(&rows, &setup.runtimes));
}
