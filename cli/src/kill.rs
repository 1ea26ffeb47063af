//! `kiln kill`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kiln_runtime::kill::{kill, parse_signal};

use crate::global::Global;
use crate::matching;

#[derive(Args, Debug)]
pub struct Kill {
    /// Send the signal to every process of the container
    #[arg(short, long)]
    all: bool,
    /// Send it to every container whose name the regular expression ID matches
    #[arg(short, long)]
    regex: bool,
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
    /// By number or name, with or without SIG
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
}

impl Kill {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let number = parse_signal(&self.signal)?;
        if self.regex {
            return matching::each(global, &self.id, |_, container| {
                Ok(kill(container, number, self.all)?)
            });
        }
        let (_, container) = global.find(&self.id)?;
        kill(&container, number, self.all)?;
        Ok(ExitCode::SUCCESS)
    }
}
