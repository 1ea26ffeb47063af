//! `update`: other limits for a container that runs. Not in the runtime-spec; as runc has it.

use kiln_cgroups::Cgroup;
use oci_spec::runtime::{LinuxResources, Spec};

use crate::error::Error;
use crate::state::ContainerDir;

/// Sets the limits that `resources` gives, and leaves the others, device access and those of other
/// containers in the same cgroup as they are. The container may be created, running or paused.
///
/// All or nothing: if one limit cannot be set, those set before get their earlier values back.
///
/// # Errors
/// The container has ended (`container not running`); a limit cannot be set: the field is named.
pub fn update(dir: &ContainerDir, resources: &LinuxResources) -> Result<(), Error> {
    dir.lock()?;
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    if !state.init.as_ref().is_some_and(|init| init.is_alive()) {
        return Err(Error::NotRunning);
    }
    let paths = state.cgroup.as_ref();
    let paths = paths.ok_or_else(|| Error::config("update", "the container has no cgroup"))?;
    let mut resources = resources.clone();
    if let Some(memory) = resources.memory_mut()
        && memory.check_before_update().is_none()
    {
        memory.set_check_before_update(Some(state.check_memory));
    }
    let cgroup = Cgroup::open_for(paths, &resources)?;
    cgroup.update(&resources)?;
    Ok(state.unit.map_or(Ok(()), |unit| unit.update(paths, &cgroup, &resources))?)
}

/// Sets the limits of the container's Intel RDT group: its l3CacheSchema and memBwSchema.
///
/// # Errors
/// The container has ended (`container not running`) or has no group: runc would make one, but
/// only put init into it, and not what that has forked.
pub fn update_rdt(
    dir: &ContainerDir,
    cache: Option<&str>,
    bandwidth: Option<&str>,
) -> Result<(), Error> {
    dir.lock()?;
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    if !state.init.as_ref().is_some_and(|init| init.is_alive()) {
        return Err(Error::NotRunning);
    }
    let groups = state.rdt.ok_or_else(|| {
        Error::config("l3-cache-schema, mem-bw-schema", "the container has no Intel RDT group")
    })?;
    groups.update(cache, bandwidth)
}

/// Whether the configuration has linux.resources.memory.checkBeforeUpdate.
pub(crate) fn checks_memory(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    memory.is_some_and(|memory| memory.check_before_update() == Some(true))
}
