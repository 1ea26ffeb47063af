//! `kiln features` and `kiln --version`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use kiln_runtime::placement::PROPERTY_PREFIX;

#[derive(Args, Debug)]
pub struct Features {}

impl Features {
    pub fn execute(self) -> Result<ExitCode> {
        crate::print::print(&(serde_json::to_string_pretty(&features())? + "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn features() -> kiln_runtime::features::Features {
    let options = kiln_runtime::mounts::option_names();
    let mut annotations = vec![PROPERTY_PREFIX];
    annotations.extend(kiln_wasm::annotations::ALL);
    annotations.extend(kiln_runtime::annotations::UNSAFE);
    kiln_runtime::features::features(&options, &annotations)
}

/// What `--version` prints: runc's lines, as far as they say something of kiln, and crun's last one.
pub fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text =
        format!("kiln version {version}\nspec: {}\n", kiln_runtime::features::OCI_VERSION_MAX);
    if let Some(version) = kiln_runtime::seccomp::library_version() {
        text += &format!("libseccomp: {version}\n");
    }
    let tags: Vec<_> = features().tags().iter().map(|tag| format!("+{tag}")).collect();
    text + &tags.join(" ") + " +WASM:wasmedge\n"
}
