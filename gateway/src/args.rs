//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Many wasm functions on one machine, behind one HTTP server
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    bin_name = "kiln",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[allow(missing_docs, reason = "clap would take it for the command's")]
    #[command(flatten)]
    pub global: Global,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the functions of a configuration file
    Serve(Serve),
    /// Manage the functions of a gateway that runs
    Fn(Fn),
    /// Become the process that containers are forks of
    #[command(name = crate::warm::COMMAND, hide = true)]
    WarmParent {
        /// kiln
        kiln: PathBuf,
    },
}

// Before or behind the subcommand: `kiln --root DIR serve --config FILE` passes them on as they are.
#[allow(missing_docs, reason = "clap would take it for the command's")]
#[derive(Args, Debug)]
pub struct Global {
    /// Directory for the containers' state [default: containers below the gateway's own]
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// Log every step
    #[arg(long, global = true)]
    pub debug: bool,
}

/// `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    #[allow(missing_docs, reason = "clap would take it for the command's")]
    #[command(flatten)]
    pub state: State,
    /// kiln, beside which its engine is [default: the one that belongs to this executable]
    #[arg(long, value_name = "PATH")]
    pub kiln: Option<PathBuf>,
}

/// Where the gateway keeps what it has.
#[derive(Args, Clone, Debug)]
pub struct State {
    /// The gateway's directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kiln-gateway", global = true)]
    pub state: PathBuf,
}

/// `fn`.
#[derive(Args, Debug)]
pub struct Fn {
    #[allow(missing_docs, reason = "clap would take it for the command's")]
    #[command(flatten)]
    pub state: State,
    /// What to do.
    #[command(subcommand)]
    pub command: FnCommand,
}

/// `fn ...`.
#[derive(Debug, Subcommand)]
pub enum FnCommand {
    /// List the functions
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a function, for good
    Add(Box<Add>),
    /// Remove a function that was added
    Remove {
        /// The function
        name: String,
    },
    /// Print a function's numbers, or all functions'
    Stats {
        /// The function
        name: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what a function has written
    Logs {
        /// The function
        name: String,
        /// Go on with what it will write
        #[arg(short, long)]
        follow: bool,
    },
}

/// `fn add`: the keys of `[[function]]`.
#[derive(Args, Debug, Default)]
pub struct Add {
    /// Its name
    #[arg(required_unless_present = "file")]
    pub name: Option<String>,
    /// A file with one [[function]], instead of the flags; - is stdin
    #[arg(long, value_name = "FILE", exclusive = false)]
    pub file: Option<PathBuf>,
    /// The module, .wasm or .wat
    #[arg(long, value_name = "FILE")]
    pub module: Option<PathBuf>,
    /// A bundle instead
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// A route, such as "POST /sort" or "/api/*"
    #[arg(long = "route", value_name = "ROUTE")]
    pub routes: Vec<String>,
    /// keeper or cgi
    #[arg(long)]
    pub protocol: Option<String>,
    /// An argument that comes before the request's
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// A variable, K=V
    #[arg(long, value_name = "K=V")]
    pub env: Vec<String>,
    /// A directory, HOST:GUEST[:ro]
    #[arg(long = "dir", value_name = "HOST:GUEST[:ro]")]
    pub dirs: Vec<String>,
    /// The most memory, such as 64MiB
    #[arg(long)]
    pub memory: Option<String>,
    /// CPUs, such as 0.5
    #[arg(long)]
    pub cpu: Option<f64>,
    /// Processes and threads
    #[arg(long)]
    pub pids: Option<u32>,
    /// Instances made ahead
    #[arg(long)]
    pub warm: Option<u32>,
    /// Requests that run at once
    #[arg(long)]
    pub max: Option<u32>,
    /// Requests that wait
    #[arg(long)]
    pub queue: Option<u32>,
    /// For one request, such as 30s
    #[arg(long)]
    pub timeout: Option<String>,
    /// One instance serves many requests, or N
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub reuse: Option<String>,
    /// The function that is called with --reuse
    #[arg(long, value_name = "FUNCTION")]
    pub handler: Option<String>,
    /// Freeze when idle for as long, or never
    #[arg(long, value_name = "TIME")]
    pub freeze_after: Option<String>,
    /// Stop when idle for as long, or never
    #[arg(long, value_name = "TIME")]
    pub stop_after: Option<String>,
    /// nothing, frozen or warm
    #[arg(long)]
    pub keep: Option<String>,
    /// UID or UID:GID
    #[arg(long)]
    pub user: Option<String>,
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
    fn it_is_called_what_was_typed() {
        let error = Cli::try_parse_from(["/x/kiln-gateway", "fn", "bogus"]).unwrap_err();
        assert!(error.to_string().contains("Usage: kiln fn "), "{error}");
    }

    #[test]
    fn options_of_kilns_may_come_before() {
        for words in [
            ["kiln-gateway", "--root", "/r", "serve", "--config", "f"],
            ["kiln-gateway", "serve", "--config", "f", "--root", "/r"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.global.root.as_deref(), Some(std::path::Path::new("/r")));
        }
    }
}
