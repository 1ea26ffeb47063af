//! Everything that this crate refuses or fails at.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why a container is not taken as wasm, its module not run, or the cache not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An annotation has a value that kiln does not know.
    #[error("annotation {name}: unknown value {value:?} (known: {known})")]
    UnknownAnnotation {
        /// The annotation.
        name: &'static str,
        /// Its value.
        value: String,
        /// The known values, separated by commas.
        known: String,
    },
    /// The engine is not installed.
    #[error(
        "this container needs WasmEdge, which was not found: looked for kiln-wasmedge in {} \
         (hint: scripts/setup and scripts/build make the folder kiln-engine; copy it beside kiln \
         or to {install})",
        list(looked)
    )]
    NoEngine {
        /// Every folder that was tried.
        looked: Vec<PathBuf>,
        /// Where it is to be installed.
        install: &'static str,
    },
    /// The spec names nothing to run.
    #[error("process.args: names no entrypoint")]
    NoEntrypoint,
    /// The entrypoint is nowhere in the container: in the words for any other program, by which
    /// Podman and Docker choose 127 as the exit status.
    #[error(
        "entrypoint {entrypoint:?}: {} (looked for {})",
        if entrypoint.contains('/') {
            "no such file or directory"
        } else {
            "executable file not found in $PATH"
        },
        list(looked)
    )]
    NotFound {
        /// `process.args[0]`.
        entrypoint: String,
        /// Every path that was tried, absolute inside the container.
        looked: Vec<PathBuf>,
    },
    /// The entrypoint is a directory, a device, a fifo or a socket; likewise, 126.
    #[error("entrypoint {}: permission denied: a {kind}, not a regular file", path.display())]
    NotRegular {
        /// Its path inside the container.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The entrypoint could not be looked up, opened or read.
    #[error("entrypoint {}: {call}: {errno}", path.display())]
    Entrypoint {
        /// Its path inside the container.
        path: PathBuf,
        /// What failed.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The entrypoint is not a module that can be run.
    #[error("module {}: {why}", path.display())]
    Module {
        /// Its path inside the container.
        path: PathBuf,
        /// What is wrong with it.
        why: BadModule,
    },
    /// A directory or file of the cache cannot be trusted with native code.
    #[error("cache {}: {why}", path.display())]
    UnsafeCache {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A system call on the cache failed.
    #[error("cache {}: {call}: {errno}", path.display())]
    Cache {
        /// The directory or file.
        path: PathBuf,
        /// What failed.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A compiled module does not fit into the cache even if it is alone there.
    #[error("cache {}: {size} bytes exceed its limit of {limit}", path.display())]
    CacheTooSmall {
        /// The cache's directory.
        path: PathBuf,
        /// Size of the compiled module in bytes.
        size: u64,
        /// Limit of the cache in bytes.
        limit: u64,
    },
    /// An environment variable that sets up the cache is unusable.
    #[error("{name}={value:?}: {why}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        why: &'static str,
    },
}

/// What is wrong with a module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadModule {
    /// The file has no bytes.
    #[error("empty file")]
    Empty,
    /// The file ends before the eight bytes of the header do.
    #[error("truncated after {0} bytes, within its header")]
    Truncated(usize),
    /// The file is something else.
    #[error("not a WebAssembly module but {0}")]
    NotWasm(String),
    /// The file is a component of the component model.
    #[error("a WebAssembly component; only core modules are supported")]
    Component,
    /// The header has another version than 1.
    #[error("WebAssembly binary version {0}; only 1 is supported")]
    Version(u32),
    /// The file is larger than kiln reads.
    #[error("{size} bytes are more than the limit of {limit}")]
    TooLarge {
        /// Its size in bytes, as far as it was read.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A section of the binary cannot be parsed.
    #[error("malformed at byte {offset}: {message}")]
    Malformed {
        /// Where, counted from the start of the file.
        offset: u64,
        /// What the parser says.
        message: String,
    },
    /// The text format cannot be parsed.
    #[error("WebAssembly text: {0}")]
    Text(String),
    /// The module imports what nothing provides.
    #[error("imports {0}, which nothing provides")]
    UnknownImports(String),
    /// The module has no entry point.
    #[error("exports no function {0}, so it is a library and not a program")]
    NoFunction(String),
}

impl Error {
    pub(crate) fn unknown_annotation(name: &'static str, value: &str, known: &[&str]) -> Self {
        Error::UnknownAnnotation { name, value: value.to_owned(), known: known.join(", ") }
    }

    #[cfg(feature = "engine")]
    pub(crate) fn module(path: &Path, why: BadModule) -> Self {
        Error::Module { path: path.to_owned(), why }
    }

    pub(crate) fn entrypoint(path: &Path, call: &'static str, errno: Errno) -> Self {
        Error::Entrypoint { path: path.to_owned(), call, errno }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}
