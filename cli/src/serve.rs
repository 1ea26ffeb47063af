//! `kiln serve` and `kiln fn`: the flags; what they are for is in other executables.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use kiln_wasm::folder::Libraries;

use crate::handover;

/// `kiln serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The module that answers
    #[arg(value_name = "MODULE", required_unless_present = "config")]
    pub module: Option<PathBuf>,
    /// Its arguments, before those of a request
    #[arg(value_name = "ARG", trailing_var_arg = true)]
    pub args: Vec<String>,
    /// Serve the functions of a file instead, each in a container of its own
    #[arg(long, value_name = "FILE", conflicts_with = "module")]
    pub config: Option<PathBuf>,
    /// Where the gateway of --config keeps what it runs
    #[arg(long, value_name = "DIR", requires = "config")]
    pub state: Option<PathBuf>,
    /// Where to listen: HOST:PORT, :PORT or unix:PATH [default: 0.0.0.0:10086]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// What requests and answers look like: keeper (JSON, the default) or cgi
    #[arg(long)]
    pub protocol: Option<String>,
    /// Instances that wait for requests [default: as many as processors]
    #[arg(long, value_name = "N")]
    pub warm: Option<String>,
    /// Requests that run at once [default: 16]
    #[arg(long, value_name = "N")]
    pub max: Option<String>,
    /// Requests that wait, before others are refused [default: 256]
    #[arg(long, value_name = "N")]
    pub queue: Option<String>,
    /// How long a request may take [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
    /// A directory of the host that the module sees
    #[arg(long = "dir", value_name = "HOST:GUEST")]
    pub dirs: Vec<String>,
    /// A variable of the module's environment
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Serve N requests by one instance, by its function --handler [default N: 10000]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub reuse: Option<String>,
    /// The function that is called for each request with --reuse [default: handle]
    #[arg(long, value_name = "FUNCTION")]
    pub handler: Option<String>,
    /// An instance's memory [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// A request's output [default: 16M]
    #[arg(long, value_name = "SIZE")]
    pub output: Option<String>,
    /// Files that an instance may have open [default: 64]
    #[arg(long, value_name = "N")]
    pub files: Option<String>,
    /// How long requests may take that run at SIGTERM [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub grace: Option<String>,
    /// Where to answer /healthz, /readyz, /metrics and /stats
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Write a line to stderr for each request: json or text
    #[arg(long, value_name = "FORM")]
    pub access_log: Option<String>,
}

/// `kiln fn`.
#[derive(Args, Debug)]
pub struct Functions {
    /// list, add, remove, stats or logs; `kiln fn help` says more
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Serve {
    /// Those of the flags that are settings of a function, by their names.
    pub fn settings(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("protocol", &self.protocol),
            ("max", &self.max),
            ("warm", &self.warm),
            ("queue", &self.queue),
            ("timeout", &self.timeout),
            ("reuse", &self.reuse),
            ("handler", &self.handler),
            ("memory", &self.memory),
            ("output", &self.output),
            ("files", &self.files),
            ("grace", &self.grace),
            ("admin", &self.admin),
            ("access-log", &self.access_log),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }

    pub(crate) fn execute(
        self,
        serve: Option<Box<dyn FnOnce(Serve) -> Result<ExitCode>>>,
    ) -> Result<ExitCode> {
        if self.config.is_some() {
            if let Some((name, _)) = self.settings().first() {
                bail!("--{name} is for one function; with --config the file has it");
            }
            return handover::execute_gateway();
        }
        match serve {
            Some(serve) => serve(self),
            None => handover::execute(Libraries::Run, std::env::args_os().skip(1).collect()),
        }
    }
}

impl Functions {
    pub(crate) fn execute(self) -> Result<ExitCode> {
        handover::execute_gateway()
    }
}
