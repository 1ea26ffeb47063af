//! What runs the entrypoint: execve(2), this executable's engine, or another executable's, which
//! lies in the engine folder.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use kiln_runtime::bundle::Bundle;
use kiln_runtime::engine::Engine;
use kiln_runtime::error::errno_text;
use kiln_runtime::sealed;
use kiln_wasm::detect::{Kind, detect, detect_for_exec};
use kiln_wasm::folder::{Folder, Libraries};
use oci_spec::runtime::Spec;

/// The engine for the bundle: none for a Linux program. Where one is needed and this executable
/// has none, it is replaced by the one that has (and this does not return).
pub fn engine_for(
    bundle: &Bundle,
    engine: Option<Box<dyn Engine>>,
) -> Result<Option<Box<dyn Engine>>> {
    let rootfs = bundle.rootfs()?;
    let rootfs = kiln_runtime::mounts::open_dir(&rootfs)
        .map_err(|errno| anyhow::anyhow!(errno_text(errno.raw_os_error())))
        .with_context(|| format!("root.path: open {}", rootfs.display()))?;
    choose(detect(&bundle.spec, rootfs.as_fd())?, engine)
}

/// The same for `exec`: `spec` with the process to execute and without mounts, which are in place
/// below `root`.
pub fn engine_for_exec(
    spec: &Spec,
    root: BorrowedFd<'_>,
    engine: Option<Box<dyn Engine>>,
) -> Result<Option<Box<dyn Engine>>> {
    choose(detect_for_exec(spec, root)?, engine)
}

fn choose(kind: Kind, engine: Option<Box<dyn Engine>>) -> Result<Option<Box<dyn Engine>>> {
    match (kind, engine) {
        (Kind::Native, _) => Ok(None),
        (Kind::Wasm, Some(engine)) => Ok(Some(engine)),
        (Kind::Wasm, None) => execute(Libraries::Run, std::env::args_os().skip(1).collect()),
    }
}

/// Replaces this process by `kiln-wasmedge ARGS`.
pub fn execute<T>(libraries: Libraries, args: Vec<OsString>) -> Result<T> {
    let folder = Folder::find(&sealed::own_path())?;
    match sealed::execute(&folder.linker(), folder.command(libraries, args))? {}
}

/// Replaces this process by the gateway, with the same arguments.
pub fn execute_gateway<T>() -> Result<T> {
    let folder = Folder::find(&sealed::own_path())?;
    let gateway = folder.gateway();
    let error = std::process::Command::new(&gateway).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("execute {}", gateway.display()))
}
