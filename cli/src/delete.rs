//! `kiln delete`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kiln_runtime::Error;

use crate::global::Global;
use crate::matching;

#[derive(Args, Debug)]
pub struct Delete {
    /// Kill it first if it runs; a container that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Delete every container whose name the regular expression ID matches
    #[arg(short, long)]
    regex: bool,
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl Delete {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        if self.regex {
            return matching::each(global, &self.id, |root, container| {
                Ok(kiln_runtime::delete::delete(root, container, self.force)?)
            });
        }
        let (root, container) = match global.find(&self.id) {
            Err(error) if self.force && is_not_found(&error) => return Ok(ExitCode::SUCCESS),
            found => found?,
        };
        kiln_runtime::delete::delete(&root, &container, self.force)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::NotFound(_)))
}
