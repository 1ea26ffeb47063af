//! Which binary is under test, and what kind of runtime it is.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::Cli;

/// The runtimes that the tests know; only [`Runtime::Kiln`] has to pass them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// The runtime of this workspace.
    Kiln,
    /// Debian's or upstream's runc, to check the tests with.
    Runc,
    /// Debian's or upstream's crun, likewise.
    Crun,
}

/// The workspace's folder, absolute.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The binary under test: `$KILN`, or the release build of the workspace.
///
/// # Panics
/// If there is no such file: a test without a binary must not pass.
pub fn path() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let path = match std::env::var_os("KILN") {
            Some(path) => PathBuf::from(path),
            None => workspace().join("target/release/kiln"),
        };
        assert!(path.is_file(), "no runtime at {}: run scripts/build, or set KILN", path.display());
        path.canonicalize().unwrap()
    })
}

/// The kind of runtime that [`path`] is, by the first word of its `--version`.
pub fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    *RUNTIME.get_or_init(|| {
        let text = Cli::new(["--version"]).output().ok().stdout;
        match text.split_whitespace().next() {
            Some("kiln") => Runtime::Kiln,
            Some("runc") => Runtime::Runc,
            Some("crun") => Runtime::Crun,
            _ => panic!("{} --version printed {text:?}", path().display()),
        }
    })
}

/// Whether the binary under test is this workspace's.
pub fn is_kiln() -> bool {
    runtime() == Runtime::Kiln
}
