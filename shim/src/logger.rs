//! The log: a FIFO called `log` in the bundle, which containerd reads and adds to its own.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger {
    file: File,
    id: String,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Opens the FIFO in the working directory, if there is one. Opened for both, it does not break
/// while containerd is away; full, it takes nothing, and nobody waits.
pub fn init(id: &str, debug: bool) {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(flags).open("log") else {
        return;
    };
    let logger = LOGGER.get_or_init(|| Logger { file, id: id.to_owned() });
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    let _ = log::set_logger(logger);
}

/// The FIFO, for a child that logs, too.
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    LOGGER.get().map(|logger| logger.file.as_fd())
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let time = humantime::format_rfc3339_nanos(SystemTime::now());
        let message = record.args().to_string();
        let line = format!(
            "time=\"{time}\" level={level} msg={message:?} id={:?} runtime=kiln\n",
            self.id
        );
        let _ = (&self.file).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
