//! What a gateway that was killed has left: containers, their cgroups, bundles, sockets.

use std::path::Path;

use anyhow::{Context, Result};
use kiln_runtime::state::StateRoot;

use crate::state::StateDir;

/// Removes all that is left, before anything is made. Blocks.
///
/// # Errors
/// Something cannot be removed.
pub fn remove(state: &StateDir, root: &Path) -> Result<()> {
    let before = state.last_root();
    for root in before.iter().map(|root| root.as_path()).chain([root]) {
        remove_containers(state, root)?;
    }
    remove_cgroup(state);
    for dir in [state.bundles(), state.path().join("sockets")] {
        empty(&dir).with_context(|| format!("empty {}", dir.display()))?;
    }
    Ok(())
}

/// Those whose bundle is one of ours: others may have the state root, too.
fn remove_containers(state: &StateDir, path: &Path) -> Result<()> {
    let Some(root) = StateRoot::open(path)? else { return Ok(()) };
    let bundles = state.bundles();
    for id in root.ids()? {
        let Ok(dir) = root.find(&id) else { continue };
        let bundle = match dir.read() {
            Ok(state) => state.map(|state| state.bundle),
            Err(error) => {
                log::warn!("container {id}: {error}");
                None
            }
        };
        // Without a state its runtime has died before anything was made, here or elsewhere; only our
        // own state root is ours to clean.
        let ours = bundle.map_or(path == state.default_root(), |dir| dir.starts_with(&bundles));
        if ours {
            log::info!("container {id} is left of the last gateway, and goes");
            crate::container::remove(path, id.as_str())
                .with_context(|| format!("remove container {id}"))?;
        }
    }
    Ok(())
}

/// Removes the cgroup that has the containers' below it, if nobody is in it.
pub fn remove_cgroup(state: &StateDir) {
    let cgroup = state.cgroup();
    let removed = kiln_cgroups::resolve(Some(&cgroup), "kiln-gateway")
        .and_then(|paths| kiln_cgroups::remove(&paths));
    if let Err(error) = removed {
        log::warn!("{error}");
    }
}

fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}
