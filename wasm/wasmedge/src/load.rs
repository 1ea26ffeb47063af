//! From a checked module to one that WasmEdge can run: interpreted, or compiled before.

use std::os::fd::{AsRawFd, OwnedFd};

use kiln_wasm::module::{ImportKind, Module, NativeCode};
use kiln_wasm::proposals::{self, Proposal};

use crate::sys::{self, Config, Failure, Wasi};

/// Why a module was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// By kiln's own checks.
    #[error(transparent)]
    Check(#[from] kiln_wasm::Error),
    /// By WasmEdge.
    #[error("module {path}: {failure}")]
    Engine {
        /// Its path inside the container.
        path: String,
        /// What WasmEdge says.
        failure: Failure,
    },
    /// WasmEdge lacks a proposal.
    #[error("module {path}: needs the WebAssembly proposal {proposal:?}, which WasmEdge lacks")]
    Proposal {
        /// Its path inside the container.
        path: String,
        /// The proposal.
        proposal: Proposal,
    },
    /// An import has another type than what is provided under its name.
    #[error("module {path}: imports the function {import} with another type than it has")]
    ImportType {
        /// Its path inside the container.
        path: String,
        /// The import.
        import: String,
    },
}

/// A module that can be run, and what it is run with.
#[derive(Debug)]
pub struct Loaded {
    config: Config,
    module: sys::Module,
    wasi: Wasi,
}

impl Loaded {
    /// Checks `module` and has WasmEdge parse and validate it, or takes it from `compiled`, a
    /// shared object that kiln made of it.
    pub fn new(module: &Module, compiled: Option<&OwnedFd>) -> Result<Self, Error> {
        let wasi = Wasi::default();
        check(module, &wasi)?;
        let (config, loaded) = match compiled.and_then(|file| native(module, file)) {
            Some(native) => native,
            None => parse(module)?,
        };
        if let Some(import) = wasi.mismatch(&loaded) {
            return Err(Error::ImportType { path: path(module), import });
        }
        Ok(Loaded { config, module: loaded, wasi })
    }

    /// What its guest will see.
    pub fn wasi(&mut self) -> &mut Wasi {
        &mut self.wasi
    }

    /// Runs it to its end.
    pub fn run(&self) -> sys::Ending {
        sys::run(&self.config, &self.module, &self.wasi)
    }
}

/// Refuses a library, and a module that imports what WASI does not have.
pub fn check(module: &Module, wasi: &Wasi) -> Result<(), kiln_wasm::Error> {
    module.check_start()?;
    module.check_imports(|import| {
        let function = import.kind == ImportKind::Function;
        function && import.module == sys::WASI && wasi.provides(&import.name)
    })
}

/// Interpreted, unless the module has native code of its own that is trusted.
fn parse(module: &Module) -> Result<(Config, sys::Module), Error> {
    let trusted = module.native_code() == NativeCode::Trusted;
    with_proposals(module, trusted, |config| sys::Module::from_bytes(config, module.bytes()))
}

/// From the cache. A file that cannot be loaded costs the speed, not the container.
pub fn native(module: &Module, compiled: &OwnedFd) -> Option<(Config, sys::Module)> {
    // By descriptor: the cache may drop the name meanwhile.
    let file = std::ffi::CString::new(format!("/proc/self/fd/{}", compiled.as_raw_fd())).ok()?;
    with_proposals(module, true, |config| sys::Module::from_shared_object(config, &file))
        .inspect_err(|error| log::warn!("interpreting, compiled code was not usable: {error}"))
        .ok()
}

/// Calls `load` without any proposal beyond WebAssembly 2.0, which is enough for nearly every
/// module, and if that fails with those that the module needs.
pub fn with_proposals<T>(
    module: &Module,
    native: bool,
    load: impl Fn(&Config) -> Result<T, Failure>,
) -> Result<(Config, T), Error> {
    let config = Config::new(&[], native);
    let failure = match load(&config) {
        Ok(loaded) => return Ok((config, loaded)),
        Err(failure) => failure,
    };
    let needed = proposals::needed(module.bytes()).unwrap_or_default();
    if needed.is_empty() {
        return Err(Error::Engine { path: path(module), failure });
    }
    let known = needed.iter().map(|&proposal| {
        sys::proposal(proposal).ok_or_else(|| Error::Proposal { path: path(module), proposal })
    });
    let config = Config::new(&known.collect::<Result<Vec<_>, _>>()?, native);
    match load(&config) {
        Ok(loaded) => Ok((config, loaded)),
        Err(failure) => Err(Error::Engine { path: path(module), failure }),
    }
}

fn path(module: &Module) -> String {
    module.path().display().to_string()
}
