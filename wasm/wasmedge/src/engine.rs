//! WasmEdge as kiln's runtime knows it: what happens at which step of a container's creation.

use std::ffi::{CString, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use kiln_runtime::engine::{Engine, EngineError, Workload};
use kiln_wasm::annotations;
use kiln_wasm::folder::Folder;
use kiln_wasm::locate::{self, Candidates, Located};
use kiln_wasm::module::{Module, NativeCode};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::aot;
use crate::function::{Http, Origin, entry};
use crate::load::{Entry, Loaded};
use crate::preopens;
use crate::shelf::Shelf;
use crate::sys::{self, Ending};
use crate::termination;

/// The exit status after a trap: that of a process which abort(3) has ended.
const TRAPPED: i32 = 134;

/// The engine. Holds a module from [`Engine::prepare`] or [`Engine::load`] on.
#[derive(Debug)]
pub struct WasmEdge {
    folder: Option<Folder>,
    trust_aot: bool,
    entrypoint: Entrypoint,
    command_line: Option<sys::process::CommandLine>,
    /// Whether init will be in a mount namespace that is there already.
    joins_mounts: bool,
    /// The entrypoint's module, where it does not lie in the rootfs.
    given: Option<OwnedFd>,
    /// What need not be loaded.
    shelf: Shelf,
    /// If the container is a server.
    http: Option<Http>,
}

#[derive(Debug)]
enum Entrypoint {
    Unknown,
    /// In a mount that is not there yet.
    Deferred(Candidates),
    Loaded(Box<Loaded>),
}

impl WasmEdge {
    /// `program` is this process's first argument.
    pub fn new(program: Option<OsString>) -> Self {
        sys::log_errors(false);
        WasmEdge {
            folder: program.and_then(|program| Folder::of(Path::new(&program))),
            trust_aot: false,
            entrypoint: Entrypoint::Unknown,
            command_line: None,
            joins_mounts: false,
            given: None,
            shelf: Shelf::default(),
            http: None,
        }
    }

    /// The same with a module, which has been read from where the image is kept.
    pub fn with_module(self, module: Option<OwnedFd>) -> Self {
        Self { given: module, ..self }
    }

    /// The same, and what is on the shelf is not loaded again.
    pub fn with_shelf(self, shelf: Shelf) -> Self {
        Self { shelf, ..self }
    }

    /// Whether it has been given a module.
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }

    fn hold(&mut self, entrypoint: locate::Entrypoint, on_host: bool) -> Result<(), EngineError> {
        let module = Module::read(entrypoint, self.trust_aot).map_err(refused)?;
        if self.http.is_none()
            && module.native_code() != NativeCode::Trusted
            && let Some(prepared) = self.shelf.get(module.digest())
        {
            self.entrypoint = Entrypoint::Loaded(Box::new(Loaded::again(prepared)));
            return Ok(());
        }
        let compiled = match module.native_code() {
            NativeCode::Trusted => None,
            // Another's mounts: what is called /var/cache there, or /proc, is not the host's.
            _ if !on_host && self.joins_mounts => None,
            _ if on_host => match &mut self.http {
                None => aot::compiled(&module, self.folder.as_ref()),
                Some(http) => http.look_up(&module, self.folder.as_ref()),
            },
            _ => aot::compiled_before(&module),
        };
        let entry = self.http.as_ref().map_or(Entry::Start, |http| entry(&http.settings));
        let loaded = Loaded::new(&module, compiled.as_ref(), entry).map_err(refused)?;
        if let Some(http) = &mut self.http {
            http.loaded_from(Origin::of(module, compiled.is_some()));
        }
        self.entrypoint = Entrypoint::Loaded(Box::new(loaded));
        Ok(())
    }
}

impl Engine for WasmEdge {
    fn name(&self) -> &'static str {
        "wasmedge"
    }

    fn prepare(
        &mut self,
        spec: &Spec,
        rootfs: BorrowedFd<'_>,
        is_init: bool,
    ) -> Result<(), EngineError> {
        self.command_line = Some(sys::process::CommandLine::find().map_err(refused)?);
        self.joins_mounts = joins_mounts(spec);
        self.trust_aot = annotations::trusted_aot(spec).map_err(refused)?;
        // What is executed beside a server runs once, like any other.
        self.http = if is_init { Http::of(spec)? } else { None };
        if let Some(file) = self.given.take() {
            let args = spec.process().as_ref().and_then(|process| process.args().as_ref());
            let name = args.and_then(|args| args.first()).map_or("module", String::as_str);
            return self.hold(locate::Entrypoint { file, path: name.into() }, true);
        }
        match locate::locate(spec, rootfs).map_err(refused)? {
            Located::Found(entrypoint) => self.hold(entrypoint, true),
            Located::Deferred(candidates) => {
                self.entrypoint = Entrypoint::Deferred(candidates);
                Ok(())
            }
        }
    }

    fn load(&mut self, rootfs: BorrowedFd<'_>) -> Result<(), EngineError> {
        match &self.entrypoint {
            Entrypoint::Deferred(candidates) => {
                let entrypoint = candidates.open(rootfs).map_err(refused)?;
                self.hold(entrypoint, false)
            }
            Entrypoint::Loaded(_) | Entrypoint::Unknown => Ok(()),
        }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.http.as_ref().map_or_else(Vec::new, Http::descriptors)
    }

    fn open(&mut self, workload: &Workload<'_>) -> Result<(), EngineError> {
        self.http.as_mut().map_or(Ok(()), |http| http.open(workload))
    }

    fn run(&mut self, workload: &Workload<'_>) -> Result<i32, EngineError> {
        let name = workload.args.first().map_or("", String::as_str);
        sys::process::set_name(name);
        if let Some(command_line) = self.command_line.take() {
            command_line.replace(workload.args);
        }
        let args = c_strings("process.args", workload.args)?;
        let env = c_strings("process.env", workload.env)?;
        let preopens = preopens::preopens(workload.cwd, &workload.mounts);
        let entrypoint = std::mem::replace(&mut self.entrypoint, Entrypoint::Unknown);
        let Entrypoint::Loaded(mut loaded) = entrypoint else {
            return Err(EngineError("no module was loaded".to_owned()));
        };
        if let Some(http) = self.http.take() {
            return http.serve(*loaded, name, args, env, preopens);
        }
        loaded.wasi().provide(&args, &env, &preopens);
        match loaded.run() {
            // A process's status has eight bits; what else a guest passes is lost as in exit(3).
            Ending::Exit(code) => Ok((code & 0xff) as i32),
            Ending::Trap(reason) => {
                let reason = format!("kiln: {name}: wasm trap: {reason}");
                eprintln!("{reason}");
                if workload.is_init {
                    termination::tell(&workload.mounts, &reason);
                }
                Ok(TRAPPED)
            }
        }
    }
}

fn joins_mounts(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Mount && namespace.path().is_some())
}

fn c_strings(field: &str, strings: &[String]) -> Result<Vec<CString>, EngineError> {
    let convert = |string: &String| CString::new(string.as_str());
    strings
        .iter()
        .map(convert)
        .collect::<Result<_, _>>()
        .map_err(|_| EngineError(format!("{field}: has a NUL byte")))
}

fn refused(error: impl std::fmt::Display) -> EngineError {
    EngineError(error.to_string())
}

#[cfg(test)]
mod tests;
