//! The warm parent of a pod's wasm containers: it has the engine loaded, takes orders over its
//! standard input, a socket, and forks for each. Started by containerd's shim, with which it ends;
//! it is never a container itself, so of one container nothing but its module, parsed, is in it
//! when the next is forked.
//!
//! The fork creates the container as any other runtime would, and ends: init becomes the shim's
//! child.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_runtime::bundle::Bundle;
use kiln_runtime::channel::Channel;
use kiln_runtime::engine::Engine;
use kiln_runtime::error::{Error, Step};
use kiln_runtime::exec::Target;
use kiln_runtime::mounts::open_dir;
use kiln_runtime::order::{self, Answer, Engines, Order, Received, Refusal};
use kiln_runtime::sys::{self, Cloned};
use kiln_wasm::detect::{Kind, detect, detect_for_exec};
use kiln_wasm::locate::{Located, locate};
use kiln_wasm::module::Module;
use oci_spec::runtime::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::aot;
use crate::engine::WasmEdge;
use crate::load::{Entry, Prepared};
use crate::shelf::Shelf;

/// How long no order has come when modules are loaded.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The name of the command. Not one of kiln's: nobody types it.
pub const COMMAND: &str = "warm";

/// The command. `program` is this process's first argument.
pub fn main(program: Option<OsString>) -> ExitCode {
    match serve(program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(program: Option<OsString>) -> Result<(), Error> {
    let step = || "prepare the warm parent".to_owned();
    // Before anything is opened.
    order::reserve()?;
    // Each fork has other standard streams.
    let log = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).step(step)?;
    let _ = kiln::log_to(File::from(log));
    let orders = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).step(step)?;
    let orders = Channel::from_socket(orders);
    // Nobody waits for the forks: their answer says how it went.
    sys::forget_children();
    let mut shelf = Shelf::default();
    // Of the last containers, to be loaded when there is time for it.
    let mut seen = Vec::new();
    loop {
        if !seen.is_empty() && is_idle(&orders) {
            load(&mut shelf, &std::mem::take(&mut seen));
        }
        let Some(received) = order::receive(&orders)? else { return Ok(()) };
        if let Order::Create(create) = &received.order {
            seen.push(create.bundle.clone());
        }
        match sys::clone3(0, None) {
            Ok(Cloned::Parent { .. }) => {}
            Ok(Cloned::Child) => carry_out(received, program, shelf),
            Err(errno) => log::error!("fork: {errno}"),
        }
    }
}

/// In the fork.
fn carry_out(received: Received, program: Option<OsString>, shelf: Shelf) -> ! {
    sys::watch_children();
    let Received { order, streams, reply, module } = received;
    let engine = WasmEdge::new(program).with_module(module).with_shelf(shelf);
    let pid = order::carry_out(&order, &streams, &mut Wasm { engine: Some(engine) });
    let answer: Answer = pid.map_err(|error| Refusal::from(&error));
    if let (Err(_), Ok(pid)) = (reply.send(&answer), &answer)
        && let Err(error) = order::take_back(&order, *pid)
    {
        log::warn!("{error}");
    }
    sys::exit_now(0)
}

/// Whether no order comes for a while: until then a container may be on its way to its start.
fn is_idle(orders: &Channel) -> bool {
    let mut polled = [PollFd::new(orders, PollFlags::IN)];
    poll(&mut polled, Some(&PAUSE)).is_ok_and(|ready| ready == 0)
}

/// Puts the compiled modules of these bundles on the shelf.
///
/// What an image brings is parsed here, in a process that has more rights than the container; but
/// so it is by whoever creates the container, and there is nothing of another container here.
fn load(shelf: &mut Shelf, bundles: &[PathBuf]) {
    for bundle in bundles {
        if let Err(error) = load_one(shelf, bundle) {
            // It has gone, or cannot be loaded, which its container has been told.
            log::debug!("load the module of {}: {error}", bundle.display());
        }
    }
}

fn load_one(shelf: &mut Shelf, bundle: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let bundle = Bundle::load(bundle)?;
    let rootfs = open_dir(&bundle.rootfs()?)?;
    let Located::Found(entrypoint) = locate(&bundle.spec, rootfs.as_fd())? else { return Ok(()) };
    let module = Module::read(entrypoint, false)?;
    if shelf.touch(module.digest()) {
        return Ok(());
    }
    if let Some(compiled) = aot::compiled_before(&module)
        && let Some(prepared) = Prepared::compiled(&module, compiled, Entry::Start)?
    {
        shelf.put(module.digest(), prepared);
    }
    Ok(())
}

/// WasmEdge for what is wasm, execve(2) for the rest.
struct Wasm {
    engine: Option<WasmEdge>,
}

impl Wasm {
    fn choose(&mut self, kind: Kind) -> Option<Box<dyn Engine>> {
        let engine = self.engine.take().filter(|engine| engine.is_given() || kind == Kind::Wasm);
        engine.map(|engine| Box::new(engine) as Box<dyn Engine>)
    }
}

impl Engines for Wasm {
    fn for_bundle(&mut self, bundle: &Bundle) -> Result<Option<Box<dyn Engine>>, Error> {
        let path = bundle.rootfs()?;
        let rootfs = open_dir(&path).step(|| format!("root.path: open {}", path.display()))?;
        Ok(self.choose(detect(&bundle.spec, rootfs.as_fd()).map_err(refused)?))
    }

    fn for_exec(
        &mut self,
        target: &Target,
        process: &Process,
    ) -> Result<Option<Box<dyn Engine>>, Error> {
        let (root, spec) = (target.root()?, order::spec_for_exec(target, process));
        let kind = detect_for_exec(&spec, root.as_fd()).map_err(refused)?;
        let Some(mut engine) = self.choose(kind) else { return Ok(None) };
        let name = engine.name();
        let prepared = engine.prepare(&spec, root.as_fd(), false);
        prepared.map_err(|source| Error::Engine { engine: name, source })?;
        Ok(Some(engine))
    }
}

fn refused(error: kiln_wasm::Error) -> Error {
    kiln_runtime::error::Failure::because("choose what runs the entrypoint", error.to_string())
        .into()
}
