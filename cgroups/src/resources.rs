//! Applies `linux.resources`: which controller after which.
//!
//! A field that is absent writes nothing. As in runc, a number that is 0
//! counts as absent where 0 makes no sense as a limit (memory, CPU shares,
//! quota and period, weights).

use oci_spec::runtime::LinuxResources;

use crate::cgroup::Cgroup;
use crate::error::Error;
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
        self.update(resources)
    }

    /// Changes the limits of a running container: as [`Cgroup::apply`], but
    /// leaves device access alone (as `runc update` does).
    ///
    /// # Errors
    ///
    /// As [`Cgroup::apply`].
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        if let Some(limits) = resources.cpu() {
            cpu::apply(self, limits)?;
        }
        if let Some(limits) = resources.memory() {
            memory::apply(self, limits)?;
        }
        if let Some(limits) = resources.pids() {
            pids::apply(self, limits)?;
        }
        if let Some(limits) = resources.block_io() {
            io::apply(self, limits)?;
        }
        if let Some(limits) = resources.hugepage_limits() {
            hugetlb::apply(self, limits)?;
        }
        if let Some(settings) = resources.network() {
            network::apply(self, settings)?;
        }
        if let Some(limits) = resources.rdma() {
            rdma::apply(self, limits)?;
        }
        // Last: it overrides what the fields above have set.
        if let Some(files) = resources.unified() {
            unified::apply(self, files)?;
        }
        Ok(())
    }
}
