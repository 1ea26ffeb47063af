//! CRIU's log: it is there that CRIU says why something failed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::criu::Failed;
use crate::error::{Error, Failure};

/// How many of its errors are quoted.
const QUOTED: usize = 4;
/// How much of each, in characters; two paths have room.
const QUOTED_LENGTH: usize = 1000;

/// Why `operation` failed, with what the log `name` in `dir` (whose path is `path`) says of it.
pub fn explain(failed: Failed, operation: &str, dir: &OwnedFd, path: &Path, name: &str) -> Error {
    let error = match failed {
        Failed::Criu(error) => error,
        Failed::Ours(error) => return error,
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let reason = error.to_string();
    let Ok(file) = rustix::fs::openat(dir, name, flags, Mode::empty()) else {
        return Failure::because(operation, reason).into();
    };
    let errors = errors(BufReader::new(File::from(file)));
    let reason = match errors.is_empty() {
        true => reason,
        false => format!("criu: {}", errors.join("; ")),
    };
    let hint = Some(format!("the whole log is {}", path.join(name).display()));
    Failure { hint, ..Failure::because(operation, reason) }.into()
}

/// The last lines that are errors, without the time and without the last word (`Dumping FAILED.`).
/// They quote names that the container has chosen: neither their number nor their length, nor what
/// they would do to a terminal, is to be trusted.
fn errors(log: impl BufRead) -> Vec<String> {
    let mut errors: Vec<String> = Vec::new();
    for line in log.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let Some(at) = line.find("Error (") else { continue };
        let plain = |c: char| if c.is_control() { '?' } else { c };
        let error: String = line[at..].trim_end().chars().take(QUOTED_LENGTH).map(plain).collect();
        if error.ends_with("FAILED.") || errors.contains(&error) {
            continue;
        }
        if errors.len() == QUOTED {
            errors.remove(0);
        }
        errors.push(error);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
(00.000101) Version: 3.17.1 (gitid 0)
(00.010000) Error (criu/net.c:3071): Locking network failed
(00.010000) Error (criu/net.c:3071): Locking network failed
(00.010001) Error (criu/cr-dump.c:2053): Dumping FAILED.
";

    #[test]
    fn the_errors_are_quoted() {
        assert_eq!(errors(LOG.as_bytes()), ["Error (criu/net.c:3071): Locking network failed"]);
        let many: String = (0..9).map(|n| format!("Error (a.c:{n}): no\n")).collect();
        assert_eq!(errors(many.as_bytes()).len(), QUOTED);
        assert_eq!(errors(many.as_bytes())[3], "Error (a.c:8): no");
        let name = format!("Error (a.c:1): \x1b[2J{}", "x".repeat(5000));
        let quoted = errors(name.as_bytes());
        assert!(quoted[0].starts_with("Error (a.c:1): ?[2Jx") && quoted[0].len() == QUOTED_LENGTH);
    }

    #[test]
    fn the_log_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dump.log"), LOG).unwrap();
        let fd = crate::mounts::open_dir(dir.path()).unwrap();
        let error = Failed::Criu(Failure::because("criu", "it does not say why").into());
        let error = explain(error, "checkpoint c", &fd, dir.path(), "dump.log").to_string();
        assert!(error.starts_with("checkpoint c: criu: Error (criu/net.c"));
        assert!(error.contains(&format!("{}/dump.log", dir.path().display())), "{error}");
    }
}
