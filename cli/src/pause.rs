//! `kiln pause` and `kiln resume`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::global::Global;

#[derive(Args, Debug)]
pub struct Pause {
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl Pause {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let (_, container) = global.find(&self.id)?;
        kiln_runtime::pause::pause(&container)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args, Debug)]
pub struct Resume {
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl Resume {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let (_, container) = global.find(&self.id)?;
        kiln_runtime::pause::resume(&container)?;
        Ok(ExitCode::SUCCESS)
    }
}
