//! `delete`: runtime.md#delete.

use kiln_cgroups::Cgroup;
use kiln_hooks::{Context, Stage};

use crate::error::Error;
use crate::kill;
use crate::state::{ContainerDir, State, StateRoot, Status};

/// Removes a stopped container; with `force` it is killed first, whatever its status.
///
/// # Errors
/// The container is not stopped, or something cannot be removed; then it can be tried again.
pub fn delete(root: &StateRoot, dir: &ContainerDir, force: bool) -> Result<(), Error> {
    // A `create` that is at work is waited for.
    match dir.lock() {
        // Another `delete` was faster.
        Err(Error::NotFound(_)) if force => return Ok(()),
        locked => locked?,
    }
    let state = match dir.read() {
        Ok(Some(state)) => state,
        // Nothing was made yet when its runtime died.
        Ok(None) => return root.remove(dir),
        Err(error) if force => {
            log::warn!("{error}");
            return root.remove(dir);
        }
        Err(error) => return Err(error),
    };
    // Without init the runtime has died in `create`: the lock is ours, so none is at work.
    let status = state.init.as_ref().map_or(Status::Stopped, |_| dir.status(&state));
    if !force && status != Status::Stopped {
        let id = dir.id().to_string();
        return Err(Error::Status { id, operation: "delete", status });
    }
    let cgroup = state.cgroup.as_ref().map(Cgroup::open).transpose()?;
    if state.init.is_none() {
        // Its runtime died before there was an init, perhaps because the cgroup was another's:
        // whoever is in it is not ours to kill.
        if let Some(Err(error)) = cgroup.as_ref().map(Cgroup::remove) {
            log::warn!("{error}");
        }
        return remove(root, dir, &state, None);
    }
    if let Some(init) = &state.init {
        if let (Status::Paused, Some(cgroup)) = (status, &cgroup) {
            cgroup.kill()?;
        }
        kill::end_init(init)?;
    }
    remove(root, dir, &state, cgroup.as_ref())
}

/// Removes all that a container whose init has ended still has: processes in its cgroup, the
/// cgroup, the state; then its poststop hooks run.
///
/// # Errors
/// Something cannot be removed; the state stays, so that it can be tried again.
pub(crate) fn remove(
    root: &StateRoot,
    dir: &ContainerDir,
    state: &State,
    cgroup: Option<&Cgroup>,
) -> Result<(), Error> {
    if let Some(cgroup) = cgroup {
        // Mostly nobody is left: with init its pid namespace has ended.
        if !cgroup.remove_now() {
            cgroup.kill()?;
            cgroup.remove()?;
        }
    }
    if let Some(groups) = &state.rdt {
        groups.remove()?;
    }
    root.remove(dir)?;
    run_poststop(state);
    Ok(())
}

/// All of them, whatever becomes of one: runtime.md#lifecycle asks for a warning only.
pub(crate) fn run_poststop(state: &State) {
    let Some(hooks) = &state.poststop else { return };
    let input = state.hook_input(Status::Stopped);
    for failure in kiln_hooks::run_all(Stage::Poststop, Some(hooks), &Context::new(&input)) {
        log::warn!("{failure}");
    }
}
