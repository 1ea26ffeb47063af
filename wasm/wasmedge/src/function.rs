//! A module as HTTP mode calls it, and what makes a container a server.

use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use kiln_keeper::guest::{self, Ended};
use kiln_keeper::listen::listen;
use kiln_keeper::protocol::Base;
use kiln_keeper::server;
use kiln_keeper::settings::Settings;
use kiln_runtime::engine::{EngineError, Workload};
use kiln_wasm::annotations;
use kiln_wasm::folder::Folder;
use kiln_wasm::module::{INITIALIZE, Module, START};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};

use crate::aot;
use crate::load::{Entry, Loaded, Prepared};
use crate::sys::{self, Ending, Host, Instance, Wasi};

/// wasmkeeper's.
const PORT: &str = "10086";
/// How the descriptors are announced that a container's process is given: sd_listen_fds(3).
const LISTEN_FDS: &str = "LISTEN_FDS=";
/// The first of them is the server's socket, the second that of its admin endpoint.
const FIRST: i32 = 3;

/// A container that is a server.
#[derive(Debug)]
pub struct Http {
    /// How it serves.
    pub settings: Settings,
    port: String,
    /// What it is served from, once that is loaded.
    origin: Option<Origin>,
    promised: Option<OwnedFd>,
    socket: Option<OwnedFd>,
    admin: Option<OwnedFd>,
}

/// What a loaded module does not tell.
#[derive(Debug)]
pub struct Origin {
    /// The module itself where it is interpreted: needed again when compiled code comes.
    interpreted: Option<Module>,
    initializes: bool,
    /// See [`KEEPS_NOTHING`].
    keeps_nothing: bool,
}

impl Origin {
    /// Of a module that was loaded with compiled code, or without.
    pub fn of(module: Module, compiled: bool) -> Self {
        let mut imports = module.imports().iter();
        Origin {
            initializes: module.exports(INITIALIZE),
            keeps_nothing: imports.all(|import| KEEPS_NOTHING.contains(&import.name.as_str())),
            interpreted: (!compiled).then_some(module),
        }
    }
}

/// What a function's module must export.
pub fn entry(settings: &Settings) -> Entry<'_> {
    match settings.reuse {
        Some(_) => Entry::Handler(&settings.handler),
        None => Entry::Start,
    }
}

impl Http {
    /// As the container's annotations have it, if they do.
    pub fn of(spec: &Spec) -> Result<Option<Self>, EngineError> {
        let named = annotations::http(spec).map_err(|error| EngineError(error.to_string()))?;
        let Some(named) = named else { return Ok(None) };
        let mut settings = Settings::default();
        let mut port = PORT.to_owned();
        for (name, value) in named {
            let set = match name {
                "port" => match value.parse::<u16>() {
                    Ok(1..) => {
                        value.clone_into(&mut port);
                        Ok(())
                    }
                    _ => Err(format!("port: invalid value {value:?} (a number up to 65535)")),
                },
                _ => settings.set(name, value).map_err(|error| error.to_string()),
            };
            let prefix = annotations::HTTP_SETTING;
            set.map_err(|error| EngineError(format!("annotation {prefix}{error}")))?;
        }
        let (origin, promised, socket, admin) = (None, None, None, None);
        Ok(Some(Http { settings, port, origin, promised, socket, admin }))
    }

    /// The module's compiled code, if it is there; otherwise it will come.
    pub fn look_up(&mut self, module: &Module, folder: Option<&Folder>) -> Option<OwnedFd> {
        let (compiled, promised) = aot::compiled_or_promised(module, folder);
        self.promised = promised;
        compiled
    }

    /// What was loaded.
    pub fn loaded_from(&mut self, origin: Origin) {
        self.origin = Some(origin);
    }

    /// Those of the host's that are needed in the container.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let all = [&self.promised, &self.socket, &self.admin];
        all.into_iter().flatten().map(AsFd::as_fd).collect()
    }

    /// Opens the port, unless whoever has started the container has.
    pub fn open(&mut self, workload: &Workload<'_>) -> Result<(), EngineError> {
        let given = workload.env.iter().find_map(|entry| entry.strip_prefix(LISTEN_FDS));
        let given: i32 = given.and_then(|count| count.parse().ok()).unwrap_or(0);
        let refused = |error: &dyn std::fmt::Display| EngineError(error.to_string());
        if given > 0 {
            self.socket = Some(sys::process::inherited(FIRST).map_err(|error| refused(&error))?);
        } else {
            self.socket =
                Some(listen(&format!(":{}", self.port)).map_err(|error| refused(&error))?);
        }
        if given > 1 {
            self.admin = Some(sys::process::inherited(FIRST + 1).map_err(|error| refused(&error))?);
        } else if let Some(address) = &self.settings.admin {
            self.admin = Some(listen(&address_of(address)).map_err(|error| refused(&error))?);
        }
        Ok(())
    }

    /// Serves until the container is told to end.
    pub fn serve(
        self,
        loaded: Loaded,
        name: &str,
        args: Vec<CString>,
        env: Vec<CString>,
        preopens: Vec<CString>,
    ) -> Result<i32, EngineError> {
        let missing = |what: &str| EngineError(format!("no {what}"));
        let socket = self.socket.ok_or_else(|| missing("port was opened"))?;
        let origin = self.origin.ok_or_else(|| missing("module was loaded"))?;
        let mut base = Base { args, env };
        base.args.splice(..1, [server::program(self.settings.protocol, name)]);
        base.env.retain(|entry| !entry.as_bytes().starts_with(b"LISTEN_"));
        let module = Function::new(loaded, origin, &self.settings, preopens);
        let function = server::Function {
            module: Box::new(module),
            settings: self.settings,
            base,
            socket,
            admin: self.admin,
            compiled: self.promised,
        };
        server::serve(function).map_err(|error| EngineError(error.to_string()))?;
        Ok(0)
    }
}

/// A number alone is a port.
pub fn address_of(address: &str) -> String {
    match address.parse::<u16>() {
        Ok(port) => format!(":{port}"),
        Err(_) => address.to_owned(),
    }
}

/// A module that is called for requests.
pub struct Function {
    prepared: Rc<Prepared>,
    /// See [`Origin`].
    interpreted: Option<Module>,
    handler: Option<String>,
    initialize: bool,
    memory: u64,
    preopens: Vec<CString>,
    /// WASI, if a guest leaves nothing behind in it: see [`KEEPS_NOTHING`].
    host: Option<Spare>,
}

/// Of the last instance, for the next.
type Spare = Rc<Cell<Option<Host>>>;

/// The functions of WASI that change nothing but the guest's memory, the file position of a stream,
/// or, as `fd_close` does, what [`Host::is_intact`] sees. To make WASI anew takes as long as to make
/// an instance of a small module (25 µs).
const KEEPS_NOTHING: [&str; 18] = [
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_close",
    "fd_fdstat_get",
    "fd_filestat_get",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_read",
    "fd_seek",
    "fd_tell",
    "fd_write",
    "proc_exit",
    "random_get",
    "sched_yield",
];

impl Function {
    /// Of a module and what that was loaded from. `preopens` are in WasmEdge's notation.
    pub fn new(
        loaded: Loaded,
        origin: Origin,
        settings: &Settings,
        preopens: Vec<CString>,
    ) -> Self {
        let mut prepared = loaded.into_prepared();
        if let Some(prepared) = Rc::get_mut(&mut prepared) {
            prepared.limit_memory(settings.memory);
        }
        let handler = settings.reuse.map(|_| settings.handler.clone());
        Function {
            prepared,
            initialize: handler.is_some() && origin.initializes,
            interpreted: origin.interpreted,
            handler,
            memory: settings.memory,
            preopens,
            host: origin.keeps_nothing.then(Spare::default),
        }
    }

    fn host(&self) -> Host {
        if let Some(spare) = self.host.as_ref().and_then(|spare| spare.take()) {
            return spare;
        }
        let mut wasi = Wasi::default();
        wasi.provide(&[], &[], &self.preopens);
        self.prepared.host(wasi)
    }
}

impl guest::Module for Function {
    fn instantiate(&self) -> Result<Box<dyn guest::Instance>, String> {
        let ended = |ending| match ending {
            Ending::Exit(status) => format!("ended with status {status} before it was called"),
            Ending::Trap(reason) => format!("wasm trap before it was called: {reason}"),
        };
        let mut instance = self.prepared.instantiate(self.host()).map_err(ended)?;
        if self.initialize {
            match instance.call(INITIALIZE) {
                Ending::Exit(0) => {}
                ending => return Err(ended(ending)),
            }
        }
        let entry = self.handler.clone().unwrap_or_else(|| START.to_owned());
        let (spare, preopens) = (self.host.clone(), self.preopens.len());
        Ok(Box::new(Ready { instance: Some(instance), entry, spare, preopens }))
    }

    fn directories(&self) -> usize {
        self.preopens.len()
    }

    fn replace(&mut self, compiled: OwnedFd) -> Result<(), String> {
        let module = self.interpreted.as_ref().ok_or("it was not interpreted")?;
        verify(&compiled)?;
        let entry = self.handler.as_deref().map_or(Entry::Start, Entry::Handler);
        let native = Prepared::compiled(module, compiled, entry);
        let native = native.map_err(|error| error.to_string())?;
        let mut native = native.ok_or("it cannot be loaded")?;
        native.limit_memory(self.memory);
        self.prepared = Rc::new(native);
        self.interpreted = None;
        if let Some(spare) = &self.host {
            spare.take();
        }
        Ok(())
    }
}

/// WasmEdge opens a path, and does not survive if it cannot: in a container, what is called /proc might
/// be the image's, and the user one that may not read the file.
fn verify(compiled: &OwnedFd) -> Result<(), String> {
    let path = format!("/proc/self/fd/{}", compiled.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path.as_str(), flags, Mode::empty());
    let found =
        opened.and_then(rustix::fs::fstat).map_err(|errno| format!("open {path}: {errno}"))?;
    match rustix::fs::fstat(compiled) {
        Ok(file) if (file.st_dev, file.st_ino) == (found.st_dev, found.st_ino) => Ok(()),
        _ => Err(format!("{path} is something else")),
    }
}

struct Ready {
    /// There until it is dropped.
    instance: Option<Instance>,
    entry: String,
    spare: Option<Spare>,
    preopens: usize,
}

impl guest::Instance for Ready {
    fn call(&mut self, args: &[CString], env: &[CString]) -> Ended {
        let Some(instance) = &mut self.instance else {
            return Ended::Failed("it has ended".to_owned());
        };
        instance.wasi().set_call(args, env);
        match instance.call(&self.entry) {
            Ending::Exit(status) => Ended::Exit(status),
            Ending::Trap(reason) => Ended::Trap(reason.to_string()),
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let (Some(instance), Some(spare)) = (self.instance.take(), &self.spare) {
            let host = instance.into_host();
            if host.is_intact(self.preopens) {
                spare.set(Some(host));
            }
        }
    }
}
