//! `functions.toml`: read as written ([`document`]), then checked ([`reader`]).
//!
//! What is wrong is said with file, line and key. What is checked here is what the text alone can
//! tell; whether a module is there is found out when its function is made.

mod document;
mod reader;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::reader::{Reader, count_lines};
use crate::route::Route;

/// The whole file, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[gateway]`.
    pub gateway: Gateway,
    /// Every `[[function]]`, in the file's order.
    pub functions: Vec<Function>,
    /// Every route, with the name of its function.
    pub routes: Vec<(Route, String)>,
}

/// `[gateway]`: the server itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Where functions are called.
    pub listen: SocketAddr,
    /// Where the gateway is looked at; nowhere without.
    pub admin: Option<SocketAddr>,
    /// Where each request is written down.
    pub access_log: Option<AccessLog>,
    /// Whether a module that has changed gets a new container by itself.
    pub watch: bool,
    /// How long requests that are under way may take once the gateway is to end.
    pub grace: Duration,
}

/// Where and how requests are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// A file that is appended to; none is standard output.
    pub path: Option<PathBuf>,
    /// One JSON object a line; else text.
    pub json: bool,
}

/// One function, without its routes: what its container depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Lower-case letters, digits, `-` and `_`; unique.
    pub name: String,
    /// What is executed.
    pub source: Source,
    /// How requests become runs of the module; of a bundle perhaps nothing that concerns us.
    pub protocol: Option<Protocol>,
    /// Arguments that come before the request's.
    pub args: Vec<String>,
    /// Environment, in order of the names.
    pub env: Vec<(String, String)>,
    /// Directories of the host's.
    pub dirs: Vec<Dir>,
    /// By the container's cgroup.
    pub limits: Limits,
    /// Instances made ahead.
    pub warm: u32,
    /// Requests that run at once.
    pub max: u32,
    /// Requests that wait for that.
    pub queue: u32,
    /// For one request.
    pub timeout: Duration,
    /// How often an instance serves a request, where that is more than once: `true` is as often as
    /// the function's server thinks fit.
    pub reuse: Option<Reuse>,
    /// What is called in an instance that is reused.
    pub handler: Option<String>,
    /// Without a request for as long, it is frozen.
    pub freeze_after: Option<Duration>,
    /// Without a request for as long, its container goes.
    pub stop_after: Option<Duration>,
    /// What it never falls below.
    pub keep: Keep,
    /// Who the function is in its container: uid and gid.
    pub user: (u32, u32),
}

/// What a function's container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A module, absolute.
    Module(PathBuf),
    /// A bundle's directory, absolute: its config.json says all that the keys do not.
    Bundle(PathBuf),
}

/// How a request becomes a run of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `{"args": [...]}` and `{"status": 0, "output": [...]}`; its path is `/`, whatever the route's.
    Keeper,
    /// CGI/1.1.
    Cgi,
}

impl Protocol {
    /// The annotation's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keeper => "keeper",
            Self::Cgi => "cgi",
        }
    }
}

/// How often an instance is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// The function's server decides.
    Often,
    /// For so many requests.
    Times(u32),
}

/// The state that a function has at least, however long nobody calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing is kept: the first request creates the container.
    #[default]
    Nothing,
    /// Created with the gateway, frozen when idle, never removed.
    Frozen,
    /// Created with the gateway, and never frozen.
    Warm,
}

/// A directory of the host's in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dir {
    /// On the host, absolute.
    pub host: PathBuf,
    /// In the container, absolute.
    pub guest: String,
    /// Whether it is read-only there.
    pub read_only: bool,
}

/// Limits of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In bytes.
    pub memory: Option<u64>,
    /// In thousandths of a CPU.
    pub cpu_milli: Option<u32>,
    /// Processes and threads.
    pub pids: u32,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {problem}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        problem: String,
    },
    /// A key is wrong.
    #[error("{}:{line}: {key}: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key, or the table that lacks one.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// It cannot be read, or a key in it is wrong; the first is named.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let read = |error: std::io::Error| Error::Read {
            path: path.to_owned(),
            problem: kiln_runtime::error::errno_text(error.raw_os_error().unwrap_or_default()),
        };
        let bytes = std::fs::read(path).map_err(read)?;
        let text = String::from_utf8(bytes).map_err(|error| Error::Key {
            path: path.to_owned(),
            line: 1 + count_lines(&error.as_bytes()[..error.utf8_error().valid_up_to()]),
            key: "text".to_owned(),
            problem: "is not UTF-8".to_owned(),
        })?;
        let absolute = path.canonicalize().map_err(read)?;
        let base = absolute.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, path, base)
    }

    /// Checks a text. `path` is for messages, `base` is what relative paths are relative to.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn parse(text: &str, path: &Path, base: &Path) -> Result<Self, Error> {
        Reader { text, path, base }.read()
    }
}

#[cfg(test)]
mod tests;
