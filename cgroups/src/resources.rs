//! Applies `linux.resources`: which controller after which.
//!
//! A field that is absent writes nothing. As in runc, a number that is 0
//! counts as absent where 0 makes no sense as a limit (memory, CPU shares,
//! quota and period, weights).

use oci_spec::runtime::LinuxResources;

use crate::cgroup::Cgroup;
use crate::changes::Changes;
use crate::error::Error;
use crate::paths::Hierarchy;
use crate::{cpu, devices, hugetlb, io, memory, network, pids, rdma, unified};

impl Cgroup {
    /// Applies a new container's limits, before any process of its own is in
    /// the cgroup.
    ///
    /// The device rules are followed by runc's default ones
    /// ([`crate::DEFAULT_ALLOWED_DEVICES`]), also if there are none: a
    /// container whose configuration is silent about devices has no access to
    /// the host's. Applying the same again changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Write`], [`Error::NoController`], [`Error::Invalid`],
    /// [`Error::DeviceFilter`], [`Error::Read`]. Limits may then be half
    /// applied; the caller removes the cgroup.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        let rules = resources.devices().as_deref().unwrap_or_default();
        devices::apply(self, rules)?;
        let mut changes = Changes::default();
        if let Some(limits) = resources.pids() {
            pids::plan(self, limits, &mut changes)?;
        }
        self.plan(resources, &mut changes)?;
        changes.apply()
    }

    /// Changes the limits of a running container: as [`Cgroup::apply`], but
    /// leaves device access alone (as `runc update` does), and all else as it was if one of the
    /// limits cannot be set. A `pids.limit` of 0 is no change: an empty object reads like that.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::apply`].
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        let mut changes = Changes::default();
        if let Some(limits) = resources.pids().as_ref().filter(|limits| limits.limit() != 0) {
            pids::plan(self, limits, &mut changes)?;
        }
        self.plan(resources, &mut changes)?;
        changes.apply_or_restore()
    }

    fn plan<'a>(
        &'a self,
        resources: &'a LinuxResources,
        changes: &mut Changes<'a>,
    ) -> Result<(), Error> {
        if let Some(limits) = resources.cpu() {
            cpu::plan(self, limits, changes)?;
        }
        if let Some(limits) = resources.memory() {
            memory::plan(self, limits, changes)?;
        }
        if let Some(limits) = resources.block_io() {
            io::plan(self, limits, changes)?;
        }
        if let Some(limits) = resources.hugepage_limits() {
            hugetlb::plan(self, limits, changes)?;
        }
        if let Some(settings) = resources.network() {
            network::plan(self, settings, changes)?;
        }
        if let Some(limits) = resources.rdma() {
            rdma::plan(self, limits, changes)?;
        }
        // Last: it overrides what the fields above have set.
        if let Some(files) = resources.unified() {
            unified::plan(self, files, changes)?;
        }
        Ok(())
    }
}

/// Whether a hierarchy has a controller that one of the limits is for.
pub(crate) fn concern(resources: &LinuxResources, hierarchy: &Hierarchy) -> bool {
    let cpu = resources.cpu().as_ref();
    let v1 = [
        ("cpu", cpu.is_some()),
        ("cpuset", cpu.is_some_and(|cpu| cpu.cpus().is_some() || cpu.mems().is_some())),
        ("memory", resources.memory().is_some()),
        ("pids", resources.pids().is_some()),
        ("blkio", resources.block_io().is_some()),
        ("hugetlb", resources.hugepage_limits().is_some()),
        ("net_cls", resources.network().is_some()),
        ("net_prio", resources.network().is_some()),
        ("rdma", resources.rdma().is_some()),
    ];
    hierarchy.is_v2() || v1.iter().any(|(controller, wanted)| *wanted && hierarchy.has(controller))
}
