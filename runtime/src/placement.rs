//! Where a container's processes are put while it is created: in cgroups made through cgroupfs, in
//! a unit of systemd's, or nowhere but where the runtime is.
//!
//! With cgroupfs on v2 init is born in its cgroup; everything else is made while it works, and init
//! waits for it ([`crate::init`]). systemd is told of init's pid, so it comes after the clone, too.

use std::os::fd::{BorrowedFd, OwnedFd};

use kiln_cgroups::systemd::{Instance, Systemd, Unit};
use kiln_cgroups::{Cgroup, Paths};
use oci_spec::runtime::{LinuxResources, Spec};

use crate::delete;
use crate::error::Error;
use crate::id::ContainerId;
use crate::privilege::Privilege;
use crate::rootless::{self, Cgroups};

/// What annotations with properties of the unit begin with.
pub use kiln_cgroups::systemd::PROPERTY_PREFIX;

/// Who makes the cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// The runtime.
    #[default]
    Cgroupfs,
    /// systemd: the machine's, or the user's if the runtime is not root.
    Systemd,
    /// Nobody: the container stays in the runtime's cgroups, without limits.
    Disabled,
}

/// The decision for one container.
pub(crate) enum Placement {
    Cgroupfs(Cgroups),
    Systemd(Box<Systemd>),
    Disabled,
}

/// What [`Placement::make`] has left until init is there.
pub(crate) enum Later {
    Nothing,
    V1(Paths),
    Systemd(Box<Systemd>),
}

/// What has been made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub cgroup: Option<Cgroup>,
    pub unit: Option<Unit>,
}

impl Placement {
    /// Looks where the container will be; makes nothing. With `forgiven`, one without permission
    /// for cgroups may do without ([`Cgroups::Permitted`]).
    ///
    /// # Errors
    /// linux.cgroupsPath or an annotation is wrong; there are no cgroups, or there is no systemd.
    pub fn new(
        driver: Driver,
        spec: &Spec,
        id: &ContainerId,
        privilege: Privilege,
        forgiven: bool,
    ) -> Result<Self, Error> {
        let (id, linux) = (id.as_str(), spec.linux().as_ref());
        let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
        let path = path.filter(|path| !path.as_os_str().is_empty());
        match driver {
            Driver::Cgroupfs => {
                let paths = kiln_cgroups::resolve(path, id);
                Ok(Self::Cgroupfs(match forgiven {
                    true => Cgroups::Permitted { paths, asked: path.is_some() },
                    false => Cgroups::All(paths?),
                }))
            }
            Driver::Systemd => {
                let annotations = spec.annotations().iter().flatten();
                let annotations = annotations.map(|(key, text)| (key.as_str(), text.as_str()));
                let systemd = Systemd::connect(instance(privilege), path, id, annotations)?;
                Ok(Self::Systemd(Box::new(systemd)))
            }
            Driver::Disabled => {
                let resources = linux.and_then(|linux| linux.resources().as_ref());
                if let Some(field) = resources.and_then(rootless::first_limit) {
                    log::warn!("linux.resources.{field} is ignored: there is no cgroup to limit");
                }
                Ok(Self::Disabled)
            }
        }
    }

    /// For the state.
    pub fn paths(&self) -> Option<&Paths> {
        match self {
            Self::Cgroupfs(cgroups) => cgroups.paths(),
            Self::Systemd(systemd) => Some(systemd.paths()),
            Self::Disabled => None,
        }
    }

    /// For the state.
    pub fn unit(&self) -> Option<&Unit> {
        match self {
            Self::Systemd(systemd) => Some(systemd.unit()),
            Self::Cgroupfs(_) | Self::Disabled => None,
        }
    }

    /// Before the clone: what init can be born in, with its limits.
    ///
    /// # Errors
    /// A cgroup cannot be made or limited.
    pub fn make(self, resources: Option<&LinuxResources>, made: &mut Made) -> Result<Later, Error> {
        Ok(match self {
            Self::Cgroupfs(cgroups) => {
                cgroups.make(resources, &mut made.cgroup)?.map_or(Later::Nothing, Later::V1)
            }
            Self::Systemd(systemd) => Later::Systemd(systemd),
            Self::Disabled => Later::Nothing,
        })
    }
}

impl Later {
    /// After the clone: the rest, with the limits in place. Returns the descriptors through which
    /// init, process `pid`, enters what it is not in yet ([`kiln_cgroups::enter`]).
    ///
    /// # Errors
    /// A cgroup cannot be made or limited; systemd refuses the unit.
    pub fn make(
        self,
        resources: Option<&LinuxResources>,
        made: &mut Made,
        id: &str,
        pid: i32,
    ) -> Result<Vec<OwnedFd>, Error> {
        let default = LinuxResources::default();
        let limits = resources.unwrap_or(&default);
        match self {
            Self::Nothing => {}
            Self::V1(paths) => {
                if let Some(cgroup) = &mut made.cgroup {
                    cgroup.create_v1(&paths)?;
                    cgroup.apply(limits)?;
                }
            }
            Self::Systemd(mut systemd) => {
                systemd.start(pid, &format!("kiln container {id}"), limits)?;
                made.unit = Some(systemd.unit().clone());
                let cgroup = made.cgroup.insert(systemd.adopt(pid)?);
                match systemd.instance() {
                    Instance::System => cgroup.apply(limits)?,
                    Instance::User => rootless::apply(cgroup, limits)?,
                }
            }
        }
        Ok(made.cgroup.as_ref().map_or(Ok(Vec::new()), Cgroup::entrances)?)
    }
}

impl Made {
    /// What init is to be born in.
    pub fn v2_dir(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().and_then(Cgroup::v2_dir)
    }

    /// Takes it all back. If there was an `init` it must have ended, and whoever it has left in
    /// the cgroup is killed.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn undo(&self, init: bool) -> Result<(), Error> {
        match &self.cgroup {
            Some(cgroup) if init => delete::remove_cgroup(cgroup, self.unit.as_ref()),
            Some(cgroup) => Ok(cgroup.remove()?),
            // Its cgroup was not where it should have been.
            None => Ok(self.unit.as_ref().map_or(Ok(()), Unit::stop)?),
        }
    }
}

/// runc's rule: root of a user namespace is still the user who has made it if USER says so, and
/// may be root of a whole system otherwise.
fn instance(privilege: Privilege) -> Instance {
    let is_user = match privilege {
        Privilege::Root => false,
        Privilege::User => true,
        Privilege::NestedRoot => {
            std::env::var_os("USER").is_some_and(|user| !user.is_empty() && user != "root")
        }
    };
    if is_user { Instance::User } else { Instance::System }
}
