//! `kiln serve MODULE`: a function without a container.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use kiln::serve::Serve;
use kiln_keeper::listen::{listen, name};
use kiln_keeper::protocol::Base;
use kiln_keeper::server;
use kiln_keeper::settings::Settings;
use kiln_wasm::folder::Folder;
use kiln_wasm::locate::Entrypoint;
use kiln_wasm::module::Module;
use rustix::fs::{CWD, Mode, OFlags};

use crate::aot;
use crate::function::{Function, Origin, address_of, entry};
use crate::load::Loaded;
use crate::sys;

/// Where to listen if nothing is said: wasmkeeper's port.
const LISTEN: &str = "0.0.0.0:10086";

/// The command. `program` is this process's first argument.
pub fn main(command: &Serve, program: Option<OsString>) -> Result<ExitCode> {
    let mut settings = Settings::default();
    for (name, value) in command.settings() {
        settings.set(name, value).map_err(|error| anyhow!("--{error}"))?;
    }
    let path = command.module.as_deref().context("MODULE is missing")?;
    let folder = program.and_then(|program| Folder::of(Path::new(&program)));
    sys::log_errors(false);
    let module = read(path)?;
    let (compiled, promised) = aot::compiled_or_promised(&module, folder.as_ref());
    let loaded = Loaded::new(&module, compiled.as_ref(), entry(&settings))?;
    let origin = Origin::of(module, compiled.is_some());
    let file_name = path.file_name().unwrap_or_default().as_bytes();
    let program = server::program(settings.protocol, &String::from_utf8_lossy(file_name));
    let mut base = Base { args: vec![program], env: Vec::new() };
    for arg in &command.args {
        base.args.push(c_string("ARG", arg.as_bytes())?);
    }
    for entry in &command.env {
        if entry.find('=').is_none_or(|at| at == 0) {
            return Err(anyhow!("--env: not NAME=VALUE: {entry:?}"));
        }
        base.env.push(c_string("--env", entry.as_bytes())?);
    }
    let preopens = command.dirs.iter().map(|dir| preopen(dir)).collect::<Result<_>>()?;
    let socket = listen(command.listen.as_deref().unwrap_or(LISTEN))?;
    let admin =
        settings.admin.as_deref().map(|address| listen(&address_of(address))).transpose()?;
    eprintln!("kiln: serving {} at {}", path.display(), name(&socket));
    if let Some(admin) = &admin {
        eprintln!("kiln: /healthz, /readyz, /metrics and /stats at {}", name(admin));
    }
    let module = Box::new(Function::new(loaded, origin, &settings, preopens));
    server::serve(server::Function { module, settings, base, socket, admin, compiled: promised })?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Module> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .with_context(|| format!("open {}", path.display()))?;
    Ok(Module::read(Entrypoint { file, path: path.to_owned() }, false)?)
}

/// `HOST:GUEST`, or one path for both, in WasmEdge's notation, which is the other way round.
fn preopen(dir: &str) -> Result<CString> {
    let (host, guest) = dir.split_once(':').unwrap_or((dir, dir));
    let is_dir = Path::new(host).is_dir();
    if host.is_empty() || guest.is_empty() || guest.contains(':') || !is_dir {
        return Err(anyhow!("--dir: not HOST:GUEST, with a directory HOST: {dir:?}"));
    }
    let host = Path::new(host).canonicalize().with_context(|| format!("--dir {dir}"))?;
    c_string("--dir", &[guest.as_bytes(), b":", host.as_os_str().as_bytes()].concat())
}

fn c_string(what: &str, bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).with_context(|| format!("{what}: has a NUL byte"))
}
