//! `ps`: the processes of a container. Not in the runtime-spec; as runc has it.

use kiln_cgroups::Cgroup;

use crate::error::Error;
use crate::state::ContainerDir;

/// The pids of all processes in the container's cgroup, ascending, in the runtime's pid namespace.
///
/// # Errors
/// The cgroup cannot be read.
pub fn pids(dir: &ContainerDir) -> Result<Vec<i32>, Error> {
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    match &state.cgroup {
        Some(paths) => Ok(Cgroup::open(paths)?.pids()?),
        // Rootless.
        None => Err(Error::config("ps", "the container has no cgroup to tell its processes by")),
    }
}
