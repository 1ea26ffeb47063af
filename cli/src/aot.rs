//! `kiln aot`: the cache of wasm modules compiled ahead of time.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use kiln_wasm::cache::Cache;
use kiln_wasm::folder::Libraries;
use kiln_wasm::prune::{Entry, Prune};

use crate::handover;

#[derive(Args, Debug)]
pub struct Aot {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compile modules now rather than when a container first runs them
    Warm {
        /// Module files, .wasm or .wat
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// List what is in the cache, the last used first
    List {
        /// Print the digests only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove compiled modules; without an option, all of them
    Prune {
        /// Only those not used for this long, such as 12h or 30d
        #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
        unused_for: Option<Duration>,
        /// Only the least used ones, until this many bytes remain
        #[arg(long, value_name = "BYTES", conflicts_with = "unused_for")]
        to_bytes: Option<u64>,
    },
}

impl Aot {
    pub fn execute(self) -> Result<ExitCode> {
        match self.command {
            Command::Warm { files } => return warm(files),
            Command::List { quiet } => list(quiet)?,
            Command::Prune { unused_for, to_bytes } => prune(unused_for, to_bytes)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Compiling needs LLVM: this process is replaced by the executable that has it.
fn warm(files: Vec<PathBuf>) -> Result<ExitCode> {
    let mut args = vec![OsString::from("aot-compile")];
    args.extend(files.into_iter().map(PathBuf::into_os_string));
    handover::execute(Libraries::Compile, args)
}

fn list(quiet: bool) -> Result<()> {
    let Some(cache) = Cache::open_existing()? else {
        return Ok(());
    };
    let entries = cache.list()?;
    let mut out = std::io::stdout().lock();
    if quiet {
        return entries.iter().try_for_each(|entry| Ok(writeln!(out, "{}", entry.digest)?));
    }
    writeln!(out, "{:64}  {:>10}  {:20}  ENGINE", "MODULE (SHA-256)", "BYTES", "LAST USED")?;
    for Entry { digest, engine, size_bytes, last_used, .. } in entries {
        let used = humantime::format_rfc3339_seconds(last_used);
        writeln!(out, "{digest:64}  {size_bytes:>10}  {used}  {engine}")?;
    }
    Ok(())
}

fn prune(unused_for: Option<Duration>, to_bytes: Option<u64>) -> Result<()> {
    let Some(cache) = Cache::open_existing()? else {
        return Ok(());
    };
    let removed = cache.prune(match (unused_for, to_bytes) {
        (Some(age), _) => Prune::UnusedFor(age),
        (None, Some(bytes)) => Prune::ToBytes(bytes),
        (None, None) => Prune::All,
    })?;
    let bytes: u64 = removed.iter().map(|entry| entry.size_bytes).sum();
    crate::print::print(&format!("{} modules removed, {bytes} bytes\n", removed.len()))?;
    Ok(())
}
