//! `--regex` of `delete` and `kill`, which crun has: one operation on all containers that match.

use std::process::ExitCode;

use anyhow::{Context, Result};
use kiln_runtime::state::{ContainerDir, StateRoot};
use regex_lite::Regex;

use crate::global::Global;
use crate::logger;

/// Does `operation` on every container whose id has a part that `pattern` matches. What fails is
/// reported and does not keep the others from their turn. No match is no error.
pub fn each(
    global: &Global,
    pattern: &str,
    operation: impl Fn(&StateRoot, &ContainerDir) -> Result<()>,
) -> Result<ExitCode> {
    let pattern = Regex::new(pattern).with_context(|| format!("--regex {pattern:?}"))?;
    let Some(root) = global.open_root()? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut code = ExitCode::SUCCESS;
    for id in root.ids()?.iter().filter(|id| pattern.is_match(id.as_str())) {
        // Gone meanwhile: it does not match any more.
        let Ok(container) = root.find(id) else { continue };
        if let Err(error) = operation(&root, &container).with_context(|| id.to_string()) {
            logger::report(&error);
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
