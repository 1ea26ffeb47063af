//! `pause` and `resume`: the container's processes are frozen by its cgroup. Not in the
//! runtime-spec; as runc and crun have them.

use kiln_cgroups::Cgroup;

use crate::error::Error;
use crate::state::{ContainerDir, State, Status};

/// Freezes all processes of a created or running container; returns when they have stopped.
///
/// # Errors
/// The container has ended (`container not running`) or is paused already.
pub fn pause(dir: &ContainerDir) -> Result<(), Error> {
    dir.lock()?;
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    match dir.status(&state) {
        Status::Created | Status::Running => Ok(cgroup(&state)?.freeze()?),
        Status::Stopped => Err(Error::NotRunning),
        status => Err(refused(dir, "pause", status)),
    }
}

/// Lets the processes of a paused container go on.
///
/// # Errors
/// The container is not paused (`container not paused`).
pub fn resume(dir: &ContainerDir) -> Result<(), Error> {
    dir.lock()?;
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    match dir.status(&state) {
        Status::Paused => Ok(cgroup(&state)?.thaw()?),
        _ => Err(Error::NotPaused),
    }
}

fn cgroup(state: &State) -> Result<Cgroup, Error> {
    let paths = state.cgroup.as_ref();
    let paths = paths.ok_or_else(|| Error::config("pause", "the container has no cgroup"))?;
    Ok(Cgroup::open(paths)?)
}

fn refused(dir: &ContainerDir, operation: &'static str, status: Status) -> Error {
    Error::Status { id: dir.id().to_string(), operation, status }
}
