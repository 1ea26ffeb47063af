//! The gateway: many functions on one machine, each in a container of its own, behind one HTTP
//! server. It never loads a module itself.
//!
//! One thread does all of it; what blocks (freezing, deleting) is done by threads that come and go.
//! Containers are created by another process, [`warm`], so that nothing here forks.
//!
//! | file | subject |
//! |---|---|
//! | `args`, `client`, `logger` | the command line |
//! | `config`, `route` | what `functions.toml` says, and whose a request is |
//! | `server`, `gateway` | the whole, its beginning, changes and end |
//! | `function`, `lifecycle` | one function: what is to be done, and doing it |
//! | `bundle`, `container`, `warm`, `reaper`, `logs` | its container |
//! | `proxy`, `headers`, `pool` | a request to it |
//! | `admin`, `control`, `measure` | looking at it, and changing it |
//! | `state`, `added`, `leftovers` | what is on disk |

pub mod added;
pub mod admin;
pub mod args;
pub mod bundle;
pub mod client;
pub mod config;
pub mod container;
pub mod control;
pub mod function;
pub mod gateway;
pub mod headers;
pub mod leftovers;
pub mod lifecycle;
pub mod logger;
pub mod logs;
pub mod measure;
pub mod pool;
pub mod proxy;
pub mod reaper;
pub mod route;
pub mod server;
pub mod state;
mod sys;
pub mod tasks;
pub mod warm;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command, Global};

/// The whole program.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    match run(global, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes, in one line. Who typed something typed `kiln`.
            let _ = writeln!(std::io::stderr(), "kiln: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(global: Global, command: Command) -> Result<()> {
    match command {
        Command::Serve(serve) => {
            logger::init(global.debug);
            let own = std::env::current_exe().unwrap_or_default();
            server::serve(&server::Options {
                config: serve.config,
                root: global.root,
                state: serve.state.state,
                kiln: serve.kiln.unwrap_or_else(|| server::default_kiln(&own)),
            })
        }
        Command::Fn(command) => client::run(command),
        Command::WarmParent { kiln } => warm::become_parent(&kiln),
    }
}
