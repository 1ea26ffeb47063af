//! From a checked module to one that WasmEdge can run: interpreted, or compiled before.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use kiln_wasm::module::{ImportKind, Module, NativeCode, START};
use kiln_wasm::proposals::{self, Proposal};

use crate::sys::{self, Config, Ending, Failure, Host, Instance, Wasi};

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

/// A module that WasmEdge has parsed and validated, and the configuration that it did it with.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    module: sys::Module,
    /// The shared object that the module is, if others may be loaded into this process, too:
    /// dlopen(3) takes one of the same name for the same, and its name is this descriptor's number.
    _file: Option<OwnedFd>,
}

/// A module that can be run, and what it is run with.
#[derive(Debug)]
pub struct Loaded {
    prepared: Rc<Prepared>,
    wasi: Wasi,
}

/// What a module exports for whoever runs it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry<'a> {
    /// A command: `_start`, which runs all of it.
    Start,
    /// A reactor: this function, again and again.
    Handler(&'a str),
}

impl Loaded {
    /// Checks `module` and has WasmEdge parse and validate it, or takes it from `compiled`, a
    /// shared object that kiln made of it.
    pub fn new(
        module: &Module,
        compiled: Option<&OwnedFd>,
        entry: Entry<'_>,
    ) -> Result<Self, Error> {
        let wasi = Wasi::default();
        check(module, &wasi, entry)?;
        let prepared = match compiled.and_then(|file| native(module, file)) {
            Some(native) => native,
            None => parse(module)?,
        };
        prepared.matches(&wasi, module)?;
        Ok(Loaded { prepared: Rc::new(prepared), wasi })
    }

    /// One that was prepared before, for whoever brings the same bytes.
    pub fn again(prepared: Rc<Prepared>) -> Self {
        Loaded { prepared, wasi: Wasi::default() }
    }

    /// What its guest will see.
    pub fn wasi(&mut self) -> &mut Wasi {
        &mut self.wasi
    }

    /// Runs it to its end.
    pub fn run(self) -> Ending {
        match self.prepared.instantiate(self.prepared.host(self.wasi)) {
            Ok(mut instance) => instance.call(START),
            Err(ending) => ending,
        }
    }

    /// The module alone.
    pub fn into_prepared(self) -> Rc<Prepared> {
        self.prepared
    }
}

impl Prepared {
    /// What an instance of it needs around it.
    pub fn host(&self, wasi: Wasi) -> Host {
        Host::new(&self.config, wasi)
    }

    /// An instance of it, which may have ended in its start section.
    pub fn instantiate(&self, host: Host) -> Result<Instance, Ending> {
        Instance::new(&self.module, host)
    }

    /// Bounds the memory of its instances, in bytes.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.config.limit_memory(bytes);
    }

    /// As [`Loaded::new`], but only from what kiln has compiled of it; None if that is not usable.
    pub fn compiled(
        module: &Module,
        compiled: OwnedFd,
        entry: Entry<'_>,
    ) -> Result<Option<Self>, Error> {
        let wasi = Wasi::default();
        check(module, &wasi, entry)?;
        let Some(prepared) = native(module, &compiled) else { return Ok(None) };
        prepared.matches(&wasi, module)?;
        Ok(Some(Prepared { _file: Some(compiled), ..prepared }))
    }

    fn matches(&self, wasi: &Wasi, module: &Module) -> Result<(), Error> {
        match wasi.mismatch(&self.module) {
            Some(import) => Err(Error::ImportType { path: path(module), import }),
            None => Ok(()),
        }
    }
}

/// Refuses a library, and a module that imports what WASI does not have.
pub fn check(module: &Module, wasi: &Wasi, entry: Entry<'_>) -> Result<(), kiln_wasm::Error> {
    module.check_exports(match entry {
        Entry::Start => START,
        Entry::Handler(function) => function,
    })?;
    module.check_imports(|import| {
        let function = import.kind == ImportKind::Function;
        function && import.module == sys::WASI && wasi.provides(&import.name)
    })
}

/// Interpreted, unless the module has native code of its own that is trusted.
fn parse(module: &Module) -> Result<Prepared, Error> {
    let trusted = module.native_code() == NativeCode::Trusted;
    let parse = |config: &Config| sys::Module::from_bytes(config, module.bytes());
    with_proposals(module, trusted, parse).map(Prepared::from)
}

/// From the cache. A file that cannot be loaded costs the speed, not the container.
pub fn native(module: &Module, compiled: &OwnedFd) -> Option<Prepared> {
    // By descriptor: the cache may drop the name meanwhile.
    let file = std::ffi::CString::new(format!("/proc/self/fd/{}", compiled.as_raw_fd())).ok()?;
    with_proposals(module, true, |config| sys::Module::from_shared_object(config, &file))
        .inspect_err(|error| log::warn!("interpreting, compiled code was not usable: {error}"))
        .ok()
        .map(Prepared::from)
}

impl From<(Config, sys::Module)> for Prepared {
    fn from((config, module): (Config, sys::Module)) -> Self {
        Prepared { config, module, _file: None }
    }
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
