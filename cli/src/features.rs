//! `kiln features` and `kiln --version`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kiln_wasm::annotations::{HANDLER, TRUSTED_AOT, VARIANT};

/// Print what this runtime supports, as the runtime-spec's features document
#[derive(Args, Debug)]
pub struct Features {}

impl Features {
    pub fn execute(self) -> Result<ExitCode> {
        let options = kiln_runtime::mounts::option_names();
        let features = kiln_runtime::features::features(&options, &[HANDLER, TRUSTED_AOT, VARIANT]);
        println!("{}", serde_json::to_string_pretty(&features)?);
        Ok(ExitCode::SUCCESS)
    }
}

/// What `--version` prints.
pub fn version() -> String {
    format!("kiln version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), oci_spec::runtime::VERSION)
}
