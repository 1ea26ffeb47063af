//! What is said about a command line that makes no sense: one line, in the log as well, where a
//! caller may look for the last error.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::global::LogFormat;
use crate::{logger, words};

/// Prints clap's answer: help where that was asked for, else an error.
pub fn report(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let help = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == help {
        let _ = error.print();
        return ExitCode::from(u8::from(error.use_stderr()));
    }
    let format = match words::global(words, "--log-format") {
        Some(format) if format == "json" => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let message = anyhow::anyhow!(message(error));
    let log = words::global(words, "--log").map(Path::new);
    if let Err(error) = logger::init(log, format, false) {
        logger::report(&error);
    }
    logger::report(&message);
    ExitCode::FAILURE
}

/// An option without its value in the words of runc's parser: Podman looks for them to learn whether
/// there is the option at all. Everything else in clap's.
fn message(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue)) {
        (Some(option), Some("")) if option.starts_with('-') => {
            format!("flag needs an argument: {}", option.split(' ').next().unwrap_or(option))
        }
        _ => line(&error.render().to_string()),
    }
}

/// Clap's paragraphs as one line: the problem, then its tips as hints; without the usage.
fn line(text: &str) -> String {
    let (mut problem, mut hints) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        match line.strip_prefix("tip: ") {
            _ if line.starts_with("Usage:") || line.starts_with("For more information") => break,
            Some(tip) => hints.push(tip),
            None if line.is_empty() => {}
            None => problem.push(line.strip_prefix("error: ").unwrap_or(line)),
        }
    }
    match hints.is_empty() {
        true => problem.join(" "),
        false => format!("{} (hint: {})", problem.join(" "), hints.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(words: &[&str]) -> String {
        let error = crate::Cli::try_parse_from(words).unwrap_err();
        message(&error)
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(
            said(&["kiln", "list", "--format", "yaml"]),
            "invalid value 'yaml' for '--format <FORMAT>' [possible values: table, json]"
        );
        assert_eq!(
            said(&["kiln", "delete", "--forse", "id"]),
            "unexpected argument '--forse' found (hint: a similar argument exists: '--force')"
        );
        assert_eq!(
            said(&["kiln", "start"]),
            "the following required arguments were not provided: <ID>"
        );
        assert_eq!(
            said(&["kiln", "restore", "--lsm-mount-context"]),
            "flag needs an argument: --lsm-mount-context"
        );
    }
}
