//! Writes what goes below share/ of an installation: `share DIR`.
//!
//! ```text
//! DIR/man/man1/kiln.1, kiln-create.1 ...
//! DIR/bash-completion/completions/kiln
//! DIR/zsh/site-functions/_kiln
//! DIR/fish/vendor_completions.d/kiln.fish
//! ```
//!
//! Not a subcommand: kiln would carry it into every start. scripts/build runs it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap_complete::Shell;

/// The folder that each shell looks into.
const SHELLS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "kiln"),
    (Shell::Zsh, "zsh/site-functions", "_kiln"),
    (Shell::Fish, "fish/vendor_completions.d", "kiln.fish"),
];

#[allow(dead_code, reason = "tests/share.rs includes this file")]
fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).context("usage: share DIR")?;
    write(Path::new(&dir))
}

/// Writes all of it, making folders where they are missing.
pub fn write(dir: &Path) -> Result<()> {
    let pages = folder(dir, "man/man1")?;
    clap_mangen::generate_to(kiln::command(), pages).context("write the man pages")?;
    for (shell, place, name) in SHELLS {
        let path = folder(dir, place)?.join(name);
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut kiln::command(), "kiln", &mut script);
        fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn folder(dir: &Path, place: &str) -> Result<std::path::PathBuf> {
    let folder = dir.join(place);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}
