//! `kiln list`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use kiln_runtime::passwd;
use kiln_runtime::state::{StateDocument, StateRoot};

use crate::global::Global;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns
    Table,
    /// An array of objects
    Json,
}

#[derive(Args, Debug)]
pub struct List {
    /// How to print them
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// Print the names only
    #[arg(short, long)]
    quiet: bool,
}

impl List {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let documents = match global.open_root()? {
            Some(root) => documents(&root)?,
            None => Vec::new(),
        };
        let mut out = Vec::new();
        match (self.quiet, self.format) {
            (true, _) => documents.iter().try_for_each(|state| writeln!(out, "{}", state.id))?,
            (_, Format::Json) => writeln!(out, "{}", serde_json::to_string(&documents)?)?,
            (_, Format::Table) => print_table(&mut out, &documents)?,
        }
        crate::print::print(&String::from_utf8_lossy(&out))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// All containers; one that is being removed, or is damaged, does not hide the others.
fn documents(root: &StateRoot) -> Result<Vec<StateDocument>> {
    let mut documents = Vec::new();
    for id in root.ids()? {
        let Ok(container) = root.find(&id) else {
            continue;
        };
        match container.read() {
            Ok(Some(state)) => {
                let mut document = state.document(container.status(&state));
                let unnamed = || format!("#{}", state.owner);
                document.owner = passwd::name(state.owner).unwrap_or_else(unnamed);
                documents.push(document);
            }
            Ok(None) => {}
            Err(error) => log::warn!("{error}"),
        }
    }
    Ok(documents)
}

/// Columns as wide as their widest cell and two spaces more, as runc prints them.
fn print_table(out: &mut impl Write, documents: &[StateDocument]) -> Result<()> {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
    rows.extend(documents.iter().map(|state| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    }));
    // At least 12, runc's minimum.
    let mut widths = [12; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len() + 2);
        }
    }
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<String>().trim_end())?;
    }
    Ok(())
}
