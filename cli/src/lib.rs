//! kiln's command line: one file per subcommand, which parses, calls `runtime`, and prints.
//!
//! A library, because two executables share it: `kiln`, and `kiln-wasmedge`, which hands it an
//! engine.

mod aot;
mod create;
mod delete;
mod features;
mod global;
mod handover;
mod kill;
mod list;
mod logger;
mod pause;
mod ps;
mod run;
mod sealed;
mod spec;
mod start;
mod state;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kiln_runtime::engine::Engine;

use crate::global::{Global, NewContainer};

/// An OCI runtime for which WebAssembly is a first-class workload
#[derive(Debug, Parser)]
#[command(name = "kiln", disable_version_flag = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Aot(aot::Aot),
    Create(create::Create),
    Delete(delete::Delete),
    Features(features::Features),
    Kill(kill::Kill),
    List(list::List),
    Pause(pause::Pause),
    Ps(ps::Ps),
    Resume(pause::Resume),
    Run(run::Run),
    Spec(spec::Spec),
    Start(start::Start),
    State(state::State),
}

impl Command {
    fn new_container(&self) -> Option<&NewContainer> {
        match self {
            Self::Create(command) => Some(&command.new),
            Self::Run(command) => Some(&command.new),
            _ => None,
        }
    }
}

/// The whole program. `engine` runs wasm entrypoints; without one they are handed over to the
/// executable that has it.
pub fn main_with(engine: Option<Box<dyn Engine>>) -> ExitCode {
    let args = go_flags(std::env::args_os());
    if asks_for_version(&args) {
        print!("{}", features::version());
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    if let Some(Err(error)) =
        cli.command.new_container().map(|new| create::begin(new, engine.is_some()))
    {
        eprintln!("kiln: {error:#}");
        return ExitCode::FAILURE;
    }
    if let Err(error) = logger::init(&cli.global) {
        eprintln!("kiln: {error:#}");
        return ExitCode::FAILURE;
    }
    match execute(cli, engine) {
        Ok(code) => code,
        Err(error) => {
            logger::report(&error);
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli, engine: Option<Box<dyn Engine>>) -> Result<ExitCode> {
    let global = &cli.global;
    global.check()?;
    match cli.command {
        Command::Aot(command) => command.execute(),
        Command::Create(command) => command.execute(global, engine),
        Command::Delete(command) => command.execute(global),
        Command::Features(command) => command.execute(),
        Command::Kill(command) => command.execute(global),
        Command::List(command) => command.execute(global),
        Command::Pause(command) => command.execute(global),
        Command::Ps(command) => command.execute(global),
        Command::Resume(command) => command.execute(global),
        Command::Run(command) => command.execute(global, engine),
        Command::Spec(command) => command.execute(),
        Command::Start(command) => command.execute(global),
        Command::State(command) => command.execute(global),
    }
}

/// `--version` before any subcommand, as runc has it.
fn asks_for_version(args: &[OsString]) -> bool {
    args.get(1).is_some_and(|arg| arg == "--version" || arg == "-v")
}

/// runc's flag parser takes `-bundle` for `--bundle`; containerd's shim relies on it
/// (`-no-subreaper`). Up to a `--`, a word of several letters behind one dash gets its second.
fn go_flags(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut literal = false;
    args.map(|arg| {
        literal |= arg == "--";
        match arg.to_str().and_then(|text| text.strip_prefix('-')) {
            Some(name) if !literal && is_long(name) => OsString::from(format!("--{name}")),
            _ => arg,
        }
    })
    .collect()
}

fn is_long(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.next().is_some_and(|c| c.is_ascii_lowercase() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn gos_single_dash_becomes_two() {
        let args = ["kiln", "run", "-no-pivot", "-b", "x", "-pid-file=/p", "--", "-keep"];
        let parsed = go_flags(args.into_iter().map(OsString::from));
        let wanted = ["kiln", "run", "--no-pivot", "-b", "x", "--pid-file=/p", "--", "-keep"];
        assert_eq!(parsed, wanted.map(OsString::from));
    }
}
