//! The log, in logrus's two formats, which callers of runc parse.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use kiln_runtime::error::errno_text;
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;

use crate::global::LogFormat;

struct Logger {
    format: LogFormat,
    /// None: stderr.
    file: Option<File>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Opens the log, which may be called `file:PATH` as for crun, and makes it the program's.
pub fn init(log: Option<&Path>, format: LogFormat, debug: bool) -> Result<()> {
    let file = match log {
        Some(log) => {
            let path = file(log)?;
            let opened = OpenOptions::new().append(true).create(true).open(path);
            Some(opened.with_context(|| format!("open log {}", path.display()))?)
        }
        None => None,
    };
    init_file(file, format, debug)
}

/// Makes an open file the program's log, or without one stderr.
pub fn init_file(file: Option<File>, format: LogFormat, debug: bool) -> Result<()> {
    let logger = LOGGER.get_or_init(|| Logger { format, file });
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    log::set_logger(logger).context("set the logger")
}

/// crun's form, `BACKEND:SPECIFIER`, and the plain path that is its default.
fn file(log: &Path) -> Result<&Path> {
    match log.to_str().and_then(|log| log.split_once(':')) {
        Some(("file", path)) => Ok(Path::new(path)),
        Some((backend @ ("journald" | "syslog"), _)) => {
            bail!("--log {}: {backend} is not supported, files are", log.display())
        }
        _ => Ok(log),
    }
}

/// The one place where an error is printed: to the log, and to stderr for whoever looks there.
pub fn report(error: &anyhow::Error) {
    let message = with_hint(message(error));
    if let Some(logger) = LOGGER.get().filter(|logger| logger.file.is_some()) {
        logger.write(Level::Error, &message);
    }
    let _ = writeln!(std::io::stderr(), "kiln: {message}");
}

/// Has a panic said in the log, too, and in one line: whoever reads that finds out why we ended.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic_message(panic);
        // Off: init has closed the log, whose number may be another file's.
        if log::max_level() != LevelFilter::Off
            && let Some(logger) = LOGGER.get().filter(|logger| logger.file.is_some())
        {
            logger.write(Level::Error, &message);
        }
        let _ = writeln!(std::io::stderr(), "kiln: {message}");
    }));
}

fn panic_message(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let said = panic.payload_as_str().unwrap_or("panic").replace('\n', " ");
    match panic.location() {
        Some(place) => format!("internal error at {place}: {said}"),
        None => format!("internal error: {said}"),
    }
}

/// Not every error knows that a kernel is too old, or why; here it can be asked.
fn with_hint(message: String) -> String {
    let old = message.contains(&errno_text(libc::ENOSYS)) && !message.contains("(hint:");
    match old.then(kiln_runtime::missing::hint).flatten() {
        Some(hint) => format!("{message} (hint: {hint})"),
        None => message,
    }
}

/// The chain of causes, outermost first. Some errors say their cause themselves: not twice.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if message.is_empty() {
            message = text;
        } else if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
    }
    message
}

#[derive(Serialize)]
struct Entry<'a> {
    level: &'a str,
    msg: &'a str,
    time: String,
}

impl Logger {
    fn write(&self, level: Level, message: &str) {
        let level = match level {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let line = match self.format {
            LogFormat::Json => {
                serde_json::to_string(&Entry { level, msg: message, time }).unwrap_or_default()
            }
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
        };
        // One write(2) to a file opened for appending: lines of several processes do not mix.
        let line = line + "\n";
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() <= log::max_level() {
            self.write(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crun_names_a_backend() {
        assert_eq!(file(Path::new("file:/var/log/x")).unwrap(), Path::new("/var/log/x"));
        assert_eq!(file(Path::new("/var/log/a:b")).unwrap(), Path::new("/var/log/a:b"));
        assert!(file(Path::new("journald:web")).unwrap_err().to_string().contains("journald"));
    }

    #[test]
    fn a_panic_is_one_line() {
        static SAID: OnceLock<String> = OnceLock::new();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(|panic| drop(SAID.set(panic_message(panic)))));
        let panicked = std::panic::catch_unwind(|| panic!("no such\nthing"));
        std::panic::set_hook(before);
        assert!(panicked.is_err());
        let said = SAID.get().unwrap();
        assert!(said.starts_with("internal error at cli/src/logger.rs:"), "{said}");
        assert!(said.ends_with(": no such thing"), "{said}");
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = || anyhow::anyhow!("no such file");
        assert_eq!(message(&inner().context("open x")), "open x: no such file");
        assert_eq!(message(&inner().context("open x: no such file")), "open x: no such file");
    }
}
