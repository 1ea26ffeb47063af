//! `kiln start`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kiln_runtime::ready::Manager;

use crate::global::Global;

#[derive(Args, Debug)]
pub struct Start {
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl Start {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let (_, container) = global.find(&self.id)?;
        kiln_runtime::start::start(&container, Manager::from_environment())?;
        Ok(ExitCode::SUCCESS)
    }
}
