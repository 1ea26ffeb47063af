//! `delete`: runtime.md#delete.

use std::time::{Duration, Instant};

use kiln_cgroups::Cgroup;
use kiln_cgroups::systemd::Unit;
use kiln_hooks::Stage;

use crate::annotations::HookOutput;
use crate::error::{Error, Failure};
use crate::kill;
use crate::net_devices;
use crate::state::{ContainerDir, State, StateRoot, Status};

/// How long `delete --force` waits for a `create` or `start` that is at work before it ends it.
const PATIENCE: Duration = Duration::from_secs(1);
/// And how long for it to end then.
const LIMIT: Duration = Duration::from_secs(10);

/// Removes a stopped container, and one that has not been started: as runc, crun and youki do,
/// where runtime.md#delete wants an error. With `force` it is killed first, whatever its status.
///
/// # Errors
/// The container is running or paused, or something cannot be removed; then it can be tried again.
pub fn delete(root: &StateRoot, dir: &ContainerDir, force: bool) -> Result<(), Error> {
    // A `create` that is at work is waited for.
    match if force { seize(dir) } else { dir.lock() } {
        // Another `delete` was faster.
        Err(Error::NotFound(_)) if force => return Ok(()),
        locked => locked?,
    }
    let state = match dir.read() {
        Ok(Some(state)) => state,
        // Nothing was made yet when its runtime died.
        Ok(None) => return root.remove(dir),
        Err(error @ Error::Damaged { .. }) if force => {
            log::warn!("{error}");
            return remove_damaged(root, dir);
        }
        // It may be read the next time: nothing of it is lost.
        Err(error) => return Err(error),
    };
    // Without init the runtime has died in `create`: the lock is ours, so none is at work.
    let status = state.init.as_ref().map_or(Status::Stopped, |_| dir.status(&state));
    if !force && !matches!(status, Status::Stopped | Status::Created) {
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
        // Nor is a unit, unless nobody is in it.
        let nobody = |cgroup: &Cgroup| cgroup.pids().is_ok_and(|pids| pids.is_empty());
        if let Some(unit) = state.unit.as_ref().filter(|_| cgroup.as_ref().is_some_and(nobody)) {
            stop(unit);
        }
        // resctrl groups are made after init.
        return remove(root, dir, &State { rdt: None, ..state }, None);
    }
    if let Some(init) = &state.init {
        if status == Status::Created {
            match net_devices::of_waiting(&state) {
                Ok(devices) => devices.iter().for_each(net_devices::Moved::give_back),
                Err(error) => log::warn!("{error}"),
            }
        }
        if let (Status::Paused, Some(cgroup)) = (status, &cgroup) {
            cgroup.kill()?;
        }
        kill::end_init(init, cgroup.as_ref())?;
    }
    remove(root, dir, &state, cgroup.as_ref())
}

/// Removes what can be found of a container whose state is damaged. Whoever is in its cgroup is
/// killed only if that is certain to be its.
fn remove_damaged(root: &StateRoot, dir: &ContainerDir) -> Result<(), Error> {
    let (state, init) = dir.salvage();
    let recorded = state.as_ref().and_then(|state| state.cgroup.clone());
    // Where it is if the config did not say.
    let paths = recorded.or_else(|| kiln_cgroups::resolve(None, dir.id().as_str()).ok());
    let cgroup = paths.as_ref().map(Cgroup::open).transpose()?;
    let ours = cgroup.as_ref().filter(|cgroup| match &init {
        Some(init) => cgroup.pids().is_ok_and(|pids| pids.contains(&init.pid)),
        // The link to init is what is damaged: it was made once the cgroup was.
        None => state.is_some(),
    });
    if let Some(init) = &init {
        kill::end_init(init, ours)?;
    }
    match (ours, &cgroup) {
        (Some(cgroup), _) => {
            remove_cgroup(cgroup, state.as_ref().and_then(|state| state.unit.as_ref()))?;
        }
        (None, Some(cgroup)) if !cgroup.remove_now() => {
            log::warn!("container {}: its cgroup may be left", dir.id());
        }
        _ => {}
    }
    root.remove(dir)?;
    if let Some(state) = &state {
        run_poststop(state);
    }
    Ok(())
}

/// Locks the container. Whoever has it locked for long waits for a hook, its own or init's: init
/// is killed then, and the hook told to end; what was begun undoes itself.
fn seize(dir: &ContainerDir) -> Result<(), Error> {
    let since = Instant::now();
    while !dir.try_lock()? {
        std::thread::sleep(Duration::from_millis(10));
        if since.elapsed() > PATIENCE + LIMIT {
            let step = format!("lock container {}", dir.id());
            return Err(Failure::because(step, "another command is at work on it").into());
        }
        if since.elapsed() > PATIENCE {
            if let Ok(Some(State { init: Some(init), .. })) = dir.read() {
                init.signal(libc::SIGKILL)?;
            }
            dir.ring()?;
        }
    }
    Ok(())
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
        remove_cgroup(cgroup, state.unit.as_ref())?;
    }
    if let Some(groups) = &state.rdt {
        groups.remove()?;
    }
    root.remove(dir)?;
    run_poststop(state);
    Ok(())
}

/// Removes the cgroup of a container whose init has ended, with whoever is still in it.
pub(crate) fn remove_cgroup(cgroup: &Cgroup, unit: Option<&Unit>) -> Result<(), Error> {
    if let Some(unit) = unit {
        // systemd would let them take their time.
        cgroup.kill()?;
        stop(unit);
    }
    // Mostly nobody is left: with init its pid namespace has ended.
    if !cgroup.remove_now() {
        cgroup.kill()?;
        cgroup.remove()?;
    }
    Ok(())
}

/// systemd may be gone, or away for a moment; it finds out by itself that the cgroup has gone.
fn stop(unit: &Unit) {
    if let Err(error) = unit.stop() {
        log::warn!("{error}");
    }
}

/// All of them, whatever becomes of one: runtime.md#lifecycle asks for a warning only.
pub(crate) fn run_poststop(state: &State) {
    let Some(hooks) = &state.poststop else { return };
    let input = state.hook_input(Status::Stopped);
    let output = HookOutput::open(&state.annotations, &state.bundle);
    let output = output.inspect_err(|error| log::warn!("{error}")).unwrap_or_default();
    let context = output.context(&input, None);
    for failure in kiln_hooks::run_all(Stage::Poststop, Some(hooks), &context) {
        log::warn!("{failure}");
    }
}
