//! `kiln state`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kiln_runtime::Error;

use crate::global::Global;

#[derive(Args, Debug)]
pub struct State {
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl State {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let (_, container) = global.find(&self.id)?;
        let state = container.read()?.ok_or(Error::NotFound(self.id))?;
        let document = state.document(container.status(&state));
        crate::print::print(&(serde_json::to_string_pretty(&document)? + "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
