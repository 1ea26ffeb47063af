//! `kiln ps`.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::global::Global;
use crate::print::print;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The rows of ps(1)
    Table,
    /// An array of pids
    Json,
}

#[derive(Args, Debug)]
pub struct Ps {
    /// How to print them
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
    /// Options of ps(1) for the table; its output must have a PID column
    #[arg(value_name = "PS OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Ps {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let (_, container) = global.find(&self.id)?;
        let pids = kiln_runtime::ps::pids(&container)?;
        match self.format {
            Format::Json => print(&(serde_json::to_string(&pids)? + "\n"))?,
            Format::Table => print(&table(&self.options, &pids)?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The rows that ps(1) prints for these processes, under its own heading.
fn table(options: &[String], pids: &[i32]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps").args(options).output().context("execute ps")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "ps: {}",
            said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("failed")
        );
    }
    filter(&String::from_utf8_lossy(&output.stdout), pids)
}

fn filter(output: &str, pids: &[i32]) -> Result<String> {
    let pids: BTreeSet<String> = pids.iter().map(ToString::to_string).collect();
    let mut lines = output.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|word| word == "PID");
    let column = column.context("ps: its output has no PID column")?;
    let ours =
        |line: &&str| line.split_whitespace().nth(column).is_some_and(|pid| pids.contains(pid));
    let rows = [heading].into_iter().chain(lines.filter(ours));
    Ok(rows.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_their_pid() {
        let output =
            "UID  PID PPID CMD\nroot   1    0 init 7\nroot  71    1 sh\nroot   7    1 sh\n";
        assert_eq!(filter(output, &[7]).unwrap(), "UID  PID PPID CMD\nroot   7    1 sh\n");
        assert!(filter("CMD\nsh\n", &[7]).is_err());
    }

    #[test]
    fn what_ps_refuses_is_one_line() {
        let error = table(&["--no-such-option".to_owned()], &[]).unwrap_err().to_string();
        assert!(error.starts_with("ps: ") && error.contains("option"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
