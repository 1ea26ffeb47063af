//! `kiln spec`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use kiln_runtime::template;
use kiln_wasm::annotations::VARIANT;

#[derive(Args, Debug)]
pub struct Spec {
    /// Directory that it is written to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// File that it is written to, relative to that directory
    #[arg(short, long, value_name = "FILE", default_value = "config.json")]
    file: PathBuf,
    /// For a container that an ordinary user runs
    #[arg(long)]
    rootless: bool,
    /// For this wasm module, by its path in the rootfs
    #[arg(long, value_name = "FILE", conflicts_with = "rootless")]
    wasm: Option<PathBuf>,
}

impl Spec {
    pub fn execute(self) -> Result<ExitCode> {
        let mut spec = template::linux();
        if self.rootless {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            template::rootless(&mut spec, uid.as_raw(), gid.as_raw());
        }
        if let Some(file) = &self.wasm {
            run_module(&mut spec, &module_path(&self.bundle, file)?);
        }
        write(&self.bundle.join(&self.file), &template::text(&spec)?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes the engine run `module` whatever it is called, without a terminal.
fn run_module(spec: &mut oci_spec::runtime::Spec, module: &str) {
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(vec![module.to_owned()])).set_terminal(Some(false));
    }
    let annotations = spec.annotations_mut().get_or_insert_default();
    annotations.insert(VARIANT.to_owned(), "compat".to_owned());
}

/// Where the container finds the module: `rootfs/app.wasm`, as it is called from the bundle, and
/// `app.wasm` are both `/app.wasm` inside.
fn module_path(bundle: &Path, file: &Path) -> Result<String> {
    let inside = [bundle.join("rootfs"), PathBuf::from("rootfs"), PathBuf::from("/")]
        .iter()
        .find_map(|prefix| file.strip_prefix(prefix).ok())
        .unwrap_or(file);
    if !bundle.join("rootfs").join(inside).exists() {
        log::warn!("{} is not in {} yet", inside.display(), bundle.join("rootfs").display());
    }
    let inside = Path::new("/").join(inside);
    Ok(inside.to_str().context("--wasm: the name is not UTF-8")?.to_owned())
}

/// Writes the file; an existing one is kept.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}
