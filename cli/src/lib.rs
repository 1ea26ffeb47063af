//! kiln's command line: one file per subcommand, which parses, calls `runtime`, and prints.
//!
//! A library, because two executables share it: `kiln`, and `kiln-wasmedge`, which hands it an
//! engine.

mod aot;
mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
#[cfg(fuzzing)]
pub mod fuzzing;
mod global;
mod handover;
mod image;
mod kill;
mod list;
mod logger;
mod matching;
mod pause;
mod print;
mod ps;
mod restore;
mod run;
pub mod serve;
mod spec;
mod start;
mod state;
mod terminal;
mod update;
mod usage;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kiln_runtime::engine::Engine;

use crate::global::Global;

/// An OCI runtime for which WebAssembly is a first-class workload
#[derive(Debug, Parser)]
#[command(name = "kiln", disable_version_flag = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(args_override_self = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
// Only the subcommand that is named is made: all of them are half of what `state` does before it
// opens a file. Their abouts are here because help lists them without making them.
#[command(defer = true)]
enum Command {
    /// Manage the cache of wasm modules compiled ahead of time
    #[command(args_override_self = true)]
    Aot(aot::Aot),
    /// Write a running container to files, by CRIU, and delete it unless told otherwise
    #[command(args_override_self = true)]
    Checkpoint(checkpoint::Checkpoint),
    /// Create a container; its process waits for `start`
    #[command(args_override_self = true)]
    Create(create::Create),
    /// Delete a container that has ended, with all that belongs to it
    #[command(args_override_self = true)]
    Delete(delete::Delete),
    /// Print a container's statistics at intervals, and when it runs out of memory
    #[command(args_override_self = true)]
    Events(events::Events),
    /// Execute another process in a container
    #[command(args_override_self = true)]
    Exec(Box<exec::Exec>),
    /// Print what this runtime supports, as the runtime-spec's features document
    #[command(args_override_self = true)]
    Features(features::Features),
    /// Manage the functions of a running `kiln serve --config`
    #[command(name = "fn", disable_help_flag = true)]
    Functions(serve::Functions),
    /// Make images of wasm modules
    #[command(args_override_self = true)]
    Image(image::Image),
    /// Send a signal to a container's init process
    #[command(args_override_self = true)]
    Kill(kill::Kill),
    /// List the containers below --root
    #[command(args_override_self = true)]
    List(list::List),
    /// Freeze all processes of a container
    #[command(args_override_self = true)]
    Pause(pause::Pause),
    /// List the processes of a container
    #[command(args_override_self = true)]
    Ps(ps::Ps),
    /// Make a running container from the files of a checkpoint; wait for its end unless --detach
    #[command(args_override_self = true)]
    Restore(restore::Restore),
    /// Let the processes of a paused container go on
    #[command(args_override_self = true)]
    Resume(pause::Resume),
    /// Create a container and start it; wait for its end unless --detach
    #[command(args_override_self = true)]
    Run(run::Run),
    /// Answer HTTP requests by a wasm module, or by the functions of a file
    #[command(args_override_self = true)]
    Serve(Box<serve::Serve>),
    /// Write a config.json to start from
    #[command(args_override_self = true)]
    Spec(spec::Spec),
    /// Start the process of a created container
    #[command(args_override_self = true)]
    Start(start::Start),
    /// Print the state of a container as JSON
    #[command(args_override_self = true)]
    State(state::State),
    /// Change the limits of a container
    #[command(args_override_self = true)]
    Update(Box<update::Update>),
}

impl Command {
    /// For a command that makes processes: how many descriptors they get beyond stdio.
    fn descriptors(&self) -> Option<Result<u32>> {
        match self {
            Self::Create(command) => Some(command.new.descriptors()),
            Self::Exec(command) => Some(command.descriptors()),
            Self::Run(command) => Some(command.new.descriptors()),
            _ => None,
        }
    }

    /// What was read from one of the caller's descriptors, for an executable that takes over.
    fn keep_descriptor(&self) -> Result<()> {
        match self {
            Self::Exec(command) => command.keep_descriptor(),
            _ => Ok(()),
        }
    }

    /// The exit status for a failure: runc's.
    fn failure(&self) -> ExitCode {
        match self {
            Self::Exec(_) => ExitCode::from(exec::FAILED),
            _ => ExitCode::FAILURE,
        }
    }
}

/// What an executable has of what kiln can do. For the rest it executes the one that has it.
#[derive(Default)]
pub struct Parts {
    /// Runs wasm entrypoints.
    pub engine: Option<Box<dyn Engine>>,
    /// Serves a module.
    pub serve: Option<Box<dyn FnOnce(serve::Serve) -> Result<ExitCode>>>,
}

/// The whole program.
pub fn main_with(parts: Parts) -> ExitCode {
    logger::log_panics();
    let args = words::normalize(std::env::args_os());
    if asks_for_version(&args) {
        return match print::print(&features::version()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                logger::report(&error);
                ExitCode::FAILURE
            }
        };
    }
    let mut cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error, &args),
    };
    let failure = cli.command.failure();
    let early = match &mut cli.command {
        Command::Exec(command) => command.read_descriptor(),
        _ => Ok(()),
    };
    // Before the log is opened: it closes what the caller has left open.
    let begun = early.and_then(|()| match cli.command.descriptors() {
        Some(descriptors) => descriptors.and_then(|count| {
            create::begin(count, parts.engine.is_some(), || cli.command.keep_descriptor())
        }),
        None => Ok(()),
    });
    let Global { log, log_format, debug, .. } = &cli.global;
    let logging = logger::init(log.as_deref(), *log_format, *debug);
    match logging.and(begun).and_then(|()| execute(cli, parts)) {
        Ok(code) => code,
        Err(error) => {
            logger::report(&error);
            failure
        }
    }
}

/// Makes `file` the log, for a process that executes no command.
///
/// # Errors
/// There is one already.
pub fn log_to(file: std::fs::File) -> Result<()> {
    logger::init_file(Some(file), global::LogFormat::Text, false)
}

/// The command line as clap knows it, for what is written about it (examples/share.rs).
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

fn execute(cli: Cli, parts: Parts) -> Result<ExitCode> {
    let engine = parts.engine;
    let global = &cli.global;
    global.check()?;
    match cli.command {
        Command::Aot(command) => command.execute(),
        Command::Checkpoint(command) => command.execute(global),
        Command::Create(command) => command.execute(global, engine),
        Command::Delete(command) => command.execute(global),
        Command::Events(command) => command.execute(global),
        Command::Exec(command) => command.execute(global, engine),
        Command::Features(command) => command.execute(),
        Command::Functions(command) => command.execute(),
        Command::Image(command) => command.execute(),
        Command::Kill(command) => command.execute(global),
        Command::List(command) => command.execute(global),
        Command::Pause(command) => command.execute(global),
        Command::Ps(command) => command.execute(global),
        Command::Restore(command) => command.execute(global),
        Command::Resume(command) => command.execute(global),
        Command::Run(command) => command.execute(global, engine),
        Command::Serve(command) => command.execute(parts.serve),
        Command::Spec(command) => command.execute(),
        Command::Start(command) => command.execute(global),
        Command::State(command) => command.execute(global),
        Command::Update(command) => command.execute(global),
    }
}

/// `--version` anywhere before the subcommand, as runc has it.
fn asks_for_version(args: &[OsString]) -> bool {
    let words = args.iter().skip(1).filter_map(|arg| arg.to_str());
    let mut before = words.take_while(|word| !Command::has_subcommand(word));
    before.any(|word| matches!(word, "--version" | "-v"))
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
    fn the_version_is_asked_for_before_the_subcommand() {
        let asks =
            |args: &[&str]| asks_for_version(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(asks(&["kiln", "-v"]) && asks(&["kiln", "--root", "/r", "--version"]));
        assert!(!asks(&["kiln", "run", "-v"]) && !asks(&["kiln", "state", "--version"]));
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() {
        let args = [
            "kiln",
            "--debug",
            "--debug",
            "--root=a",
            "--root=b",
            "create",
            "--bundle=a",
            "--bundle=b",
            "c",
        ];
        let cli = Cli::try_parse_from(args).unwrap();
        assert_eq!(cli.global.root(), std::path::Path::new("b"));
    }
}
