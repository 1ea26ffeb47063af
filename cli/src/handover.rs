//! What runs the entrypoint: execve(2), this executable's engine, or another executable's.
//!
//! The engine lies in a folder of its own with all that it needs, its dynamic linker included
//! (ARCHITECTURE.md, The engine folder); it is executed through that linker, so it runs whatever
//! libraries the machine has.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kiln_runtime::bundle::Bundle;
use kiln_runtime::engine::Engine;
use kiln_runtime::error::errno_text;
use kiln_wasm::detect::{Kind, detect, detect_for_exec};
use oci_spec::runtime::Spec;

use crate::sealed;

/// The folder's name beside kiln's executable.
const FOLDER: &str = "kiln-engine";
/// Where it is installed.
const INSTALLED: [&str; 2] = ["/usr/local/lib/kiln", "/usr/lib/kiln"];

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
        (Kind::Wasm, None) => execute("run", std::env::args_os().skip(1).collect()),
    }
}

/// Replaces this process by `kiln-wasmedge ARGS` with the libraries in the folder's `libraries`
/// first (and those in `run`).
pub fn execute<T>(libraries: &str, args: Vec<OsString>) -> Result<T> {
    let folder = find_folder()?;
    let mut path = folder.join(libraries).into_os_string();
    if libraries != "run" {
        path.push(":");
        path.push(folder.join("run"));
    }
    let linker = folder.join("ld.so");
    let mut all = vec![
        linker.clone().into_os_string(),
        "--library-path".into(),
        path,
        folder.join("kiln-wasmedge").into_os_string(),
    ];
    all.extend(args);
    sealed::execute(&linker, all)?;
    bail!("execute {}: it returned", linker.display())
}

/// The engine's folder: beside this executable, or where it is installed.
fn find_folder() -> Result<PathBuf> {
    let mut places = Vec::new();
    places.extend(own_path().parent().map(|dir| dir.join(FOLDER)));
    places.extend(INSTALLED.map(PathBuf::from));
    if let Some(folder) = places.iter().find(|folder| folder.join("kiln-wasmedge").is_file()) {
        return Ok(folder.clone());
    }
    let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    bail!(
        "this container needs WasmEdge, which was not found: looked for kiln-wasmedge in {} \
         (hint: scripts/setup and scripts/build make the folder kiln-engine; copy it beside kiln \
         or to {})",
        looked.join(", "),
        INSTALLED[0]
    )
}

/// Where this executable lies. Run from its read-only view it has no path any more, but then
/// argv[0] says it ([`sealed::ensure`]).
fn own_path() -> PathBuf {
    let own = Path::new("/proc/self/exe");
    let is_own = |path: &Path| {
        let id = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
        path.is_absolute() && id(path).is_some() && id(path) == id(own)
    };
    match std::env::args_os().next().map(PathBuf::from) {
        Some(name) if is_own(&name) || sealed::is_copy() => name,
        _ => own.read_link().unwrap_or_default(),
    }
}
