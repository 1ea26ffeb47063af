//! What can go wrong, and the status that containerd gets for it.

use std::path::PathBuf;

use containerd_shim_protos::ttrpc::{Code, Status};
use kiln_runtime::error::{errno_text, shortened};
use kiln_runtime::order::{Refusal, RefusalKind};

use crate::frames::TooLong;

/// Any failure of the shim.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line.
    #[error("{0}")]
    Flag(String),
    /// A request's field.
    #[error("{field}: {problem}")]
    Request {
        /// As the Task API names it.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A request as a whole.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// There is no such container or process.
    #[error("{0} does not exist: not found")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}: already exists")]
    Exists(String),
    /// A process that has ended: the text is the one that callers match.
    #[error("process already finished: not found")]
    Finished,
    /// Not in this status.
    #[error("{0}")]
    Status(String),
    /// No such method.
    #[error("method {0} is not supported")]
    Unsupported(String),
    /// A file or directory.
    #[error("{what} {}: {}", path.display(), errno_text(*errno))]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        errno: i32,
    },
    /// A step that the kernel refused.
    #[error("{what}: {}", errno_text(*errno))]
    Step {
        /// What was being done.
        what: String,
        /// Why not.
        errno: i32,
    },
    /// What a job, or another process, has reported.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The container.
    #[error(transparent)]
    Runtime(#[from] kiln_runtime::Error),
    /// The module of an image that is a wasm artifact.
    #[error("find the image's module: {0}")]
    Image(#[from] kiln_image::Error),
    /// WebAssembly.
    #[error(transparent)]
    Wasm(#[from] kiln_wasm::Error),
}

/// For an errno: what was being done, to a path or in words.
pub trait Context<T> {
    /// To this file.
    fn file(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
    /// In words.
    fn step(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn file(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|error| Error::File { what, path: path.into(), errno: errno(error) })
    }

    fn step(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|error| Error::Step { what: what.into(), errno: errno(error) })
    }
}

fn errno(error: impl Into<std::io::Error>) -> i32 {
    error.into().raw_os_error().unwrap_or(libc::EIO)
}

impl Error {
    /// The status for the caller of a ttrpc method.
    pub fn status(&self) -> Status {
        let code = match self {
            Self::Flag(_) | Self::Request { .. } => Code::INVALID_ARGUMENT,
            Self::TooLong(_) => Code::RESOURCE_EXHAUSTED,
            Self::NotFound(_) | Self::Finished => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Status(_) => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Refused(refusal) => code(refusal.kind),
            Self::Runtime(error) => code(Refusal::from(error).kind),
            Self::File { .. } | Self::Step { .. } | Self::Image(_) | Self::Wasm(_) => Code::UNKNOWN,
        };
        let mut status = Status::new();
        status.set_code(code);
        status.set_message(self.to_string());
        status
    }
}

fn code(kind: RefusalKind) -> Code {
    match kind {
        RefusalKind::Exists => Code::ALREADY_EXISTS,
        RefusalKind::NotFound => Code::NOT_FOUND,
        RefusalKind::Status => Code::FAILED_PRECONDITION,
        RefusalKind::Died | RefusalKind::EmptyRootfs | RefusalKind::Failed => Code::UNKNOWN,
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal.clone(),
            Error::Runtime(error) => error.into(),
            other => Self { kind: RefusalKind::Failed, message: shortened(other.to_string()) },
        }
    }
}
