//! What runs the entrypoint: execve(2), the engine of this executable, or another executable.

use anyhow::{Context, Result};
use kiln_runtime::bundle::Bundle;
use kiln_runtime::engine::Engine;
use kiln_wasm::detect::{Kind, detect};

/// The engine for the bundle: none for a Linux program. Where one is needed and this executable
/// has none, it is replaced by the one that has (and this does not return).
pub fn engine_for(
    bundle: &Bundle,
    engine: Option<Box<dyn Engine>>,
) -> Result<Option<Box<dyn Engine>>> {
    let rootfs = bundle.rootfs()?;
    let rootfs = kiln_runtime::mounts::open_dir(&rootfs)
        .map_err(|errno| anyhow::anyhow!(kiln_runtime::error::errno_text(errno.raw_os_error())))
        .with_context(|| format!("root.path: open {}", rootfs.display()))?;
    use std::os::fd::AsFd;
    match (detect(&bundle.spec, rootfs.as_fd())?, engine) {
        (Kind::Native, _) => Ok(None),
        (Kind::Wasm { .. }, Some(engine)) => Ok(Some(engine)),
        (Kind::Wasm { .. }, None) => anyhow::bail!("hand over to kiln-wasmedge: not there yet"),
    }
}
