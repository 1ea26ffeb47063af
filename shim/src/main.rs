//! `containerd-shim-kiln-v1`: kiln as containerd's runtime `io.containerd.kiln.v1`.
//!
//! One process for each pod, between containerd, which calls it over a socket, and the pod's
//! containers, whose parent it is. It has one thread and uses `runtime` directly; `kiln` is not
//! executed. containerd's runtime-v2.md is the contract.
//!
//! | file | subject |
//! |---|---|
//! | `flags`, `info`, `start`, `delete` | the command line and its actions |
//! | `server`, `frames` | the loop that waits for everything; ttrpc's frames |
//! | `task` | the Task API, a method each |
//! | `container`, `exit`, `facts`, `options` | what is known of a container |
//! | `jobs`, `warm` | who forks: a child for each job, the warm parent for wasm |
//! | `stdio`, `unread`, `terminal`, `stats`, `events`, `logger` | a subject each |

// The whole crate is the executable.
#![allow(unreachable_pub)]

mod container;
mod delete;
mod error;
mod events;
mod exit;
mod facts;
mod flags;
mod frames;
mod info;
mod jobs;
mod logger;
mod options;
mod server;
mod start;
mod stats;
mod stdio;
mod task;
mod terminal;
mod unread;
mod warm;

use std::io::Write;
use std::process::ExitCode;

use crate::error::{Context, Error};
use crate::flags::Flags;

/// What containerd calls this runtime.
const RUNTIME: &str = "io.containerd.kiln.v1";

fn main() -> ExitCode {
    match Flags::parse(std::env::args().skip(1)).and_then(|flags| execute(&flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "containerd-shim-kiln-v1: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(flags: &Flags) -> Result<(), Error> {
    if flags.version {
        let text = format!("containerd-shim-kiln-v1:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"));
        return std::io::stdout().write_all(text.as_bytes()).step("answer");
    }
    if flags.info {
        return info::print();
    }
    match flags.action.as_str() {
        _ if flags.namespace.is_empty() => Err(Error::Flag("-namespace is missing".to_owned())),
        _ if flags.id.is_empty() => Err(Error::Flag("-id is missing".to_owned())),
        "start" => start::start(flags),
        "delete" => delete::delete(flags),
        other => Err(Error::Flag(format!("action {other:?} is neither start nor delete"))),
    }
}
