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
#[command(args_override_self = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(args_override_self = true)]
    Aot(aot::Aot),
    #[command(args_override_self = true)]
    Create(create::Create),
    #[command(args_override_self = true)]
    Delete(delete::Delete),
    #[command(args_override_self = true)]
    Features(features::Features),
    #[command(args_override_self = true)]
    Kill(kill::Kill),
    #[command(args_override_self = true)]
    List(list::List),
    #[command(args_override_self = true)]
    Pause(pause::Pause),
    #[command(args_override_self = true)]
    Ps(ps::Ps),
    #[command(args_override_self = true)]
    Resume(pause::Resume),
    #[command(args_override_self = true)]
    Run(run::Run),
    #[command(args_override_self = true)]
    Spec(spec::Spec),
    #[command(args_override_self = true)]
    Start(start::Start),
    #[command(args_override_self = true)]
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

/// `--version` anywhere before the subcommand, as runc has it.
fn asks_for_version(args: &[OsString]) -> bool {
    let words = args.iter().skip(1).filter_map(|arg| arg.to_str());
    let mut before = words.take_while(|word| !Command::has_subcommand(word));
    before.any(|word| matches!(word, "--version" | "-v"))
}

/// runc's flag parser takes `-bundle` for `--bundle`; containerd's shim relies on it
/// (`-no-subreaper`). Up to a `--`, a word of several letters behind one dash gets its second.
fn go_flags(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut literal = false;
    args.filter_map(|arg| {
        literal |= arg == "--";
        let Some(text) = arg.to_str().filter(|_| !literal) else { return Some(arg) };
        let arg = match text.strip_prefix('-') {
            Some(name) if is_long(name) => format!("--{name}"),
            _ => text.to_owned(),
        };
        switch(arg).map(OsString::from)
    })
    .collect()
}

/// A switch may have a value: `--debug=true` is `--debug`, `--debug=false` is nothing.
fn switch(arg: String) -> Option<String> {
    const SWITCHES: [&str; 14] = [
        "--all",
        "--debug",
        "--detach",
        "--force",
        "--keep",
        "--no-new-keyring",
        "--no-pivot",
        "--no-subreaper",
        "--quiet",
        "--systemd-cgroup",
        "-a",
        "-d",
        "-f",
        "-q",
    ];
    match arg.split_once('=') {
        Some((name, value)) if SWITCHES.contains(&name) => match value {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => Some(name.to_owned()),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => None,
            _ => Some(arg),
        },
        _ => Some(arg),
    }
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
    fn switches_may_have_values() {
        let args = ["kiln", "--debug=true", "create", "--no-pivot=false", "-f=1", "--log=x"];
        let parsed = go_flags(args.into_iter().map(OsString::from));
        assert_eq!(parsed, ["kiln", "--debug", "create", "-f", "--log=x"].map(OsString::from));
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

    #[test]
    fn gos_single_dash_becomes_two() {
        let args = ["kiln", "run", "-no-pivot", "-b", "x", "-pid-file=/p", "--", "-keep"];
        let parsed = go_flags(args.into_iter().map(OsString::from));
        let wanted = ["kiln", "run", "--no-pivot", "-b", "x", "--pid-file=/p", "--", "-keep"];
        assert_eq!(parsed, wanted.map(OsString::from));
    }
}
