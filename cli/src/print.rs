//! What a command prints. std's `print!` panics where it cannot.

use std::io::{ErrorKind, Write, stdout};

use anyhow::{Context, Result};

/// Writes all of it to stdout, at once. A reader that has gone wants no more: that is no error.
///
/// # Errors
/// Those of write(2), such as a full device's.
pub fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to stdout"),
    }
}
