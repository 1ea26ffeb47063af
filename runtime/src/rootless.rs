//! Without the machine's root: what is checked before anything is made, and which cgroups there
//! can be.

use std::os::fd::OwnedFd;

use kiln_cgroups::{Cgroup, Paths};
use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;

use crate::error::{Error, Step};
use crate::mounts::{self, MountPlan};
use crate::namespaces::Namespaces;
use crate::plan::ProcessPlan;
use crate::privilege::Privilege;

/// Whether missing permission for cgroups is forgiven: `--rootless`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rootless {
    /// To whoever is not root of the machine.
    #[default]
    Auto,
    /// To everybody.
    True,
    /// To nobody.
    False,
}

impl Rootless {
    /// Whether it is forgiven to a caller with this privilege.
    pub fn forgives(self, privilege: Privilege) -> bool {
        match self {
            Self::Auto => !privilege.is_root(),
            Self::True => true,
            Self::False => false,
        }
    }
}

/// Whether the runtime may not clone mounts, so that init must: a user never may, root of a user
/// namespace only if that has a mount namespace, too.
///
/// # Errors
/// Those of open_tree(2) but EPERM.
pub(crate) fn mounts_late(privilege: Privilege, rootfs: &OwnedFd) -> Result<bool, Error> {
    match privilege {
        Privilege::Root => Ok(false),
        Privilege::User => Ok(true),
        Privilege::NestedRoot => match mounts::clone_open(rootfs, true) {
            Ok(_) => Ok(false),
            Err(Errno::PERM) => Ok(true),
            Err(errno) => Err(errno).step(|| "root.path: bind it".to_owned()),
        },
    }
}

/// What would fail in a user namespace, by its field.
///
/// # Errors
/// An id that is not mapped; groups that cannot be set; an idmapped mount that cannot be made.
pub(crate) fn check(
    namespaces: &Namespaces,
    mounts: &[MountPlan],
    process: &ProcessPlan,
    late: bool,
) -> Result<(), Error> {
    if let Some(index) = mounts.iter().position(|mount| late && mount.is_idmapped()) {
        let problem = "an idmapped mount takes the rights of the filesystem's owner";
        return Err(Error::config(format!("mounts[{index}]"), problem));
    }
    let Some(maps) = namespaces.maps() else {
        return Ok(());
    };
    for (index, mount) in mounts.iter().enumerate() {
        mount.check_ids(index, maps)?;
    }
    let user =
        |field: &str, problem: String| Err(Error::config(format!("process.user.{field}"), problem));
    // runc's words.
    if !maps.has_uid(process.uid) {
        let uid = process.uid;
        return user("uid", format!("cannot set uid to unmapped user in user namespace: {uid}"));
    }
    let mut gids = [process.gid].into_iter().chain(process.additional_gids.iter().copied());
    if let Some(gid) = gids.find(|gid| !maps.has_gid(*gid)) {
        let field = if gid == process.gid { "gid" } else { "additionalGids" };
        return user(field, format!("cannot set gid to unmapped user in user namespace: {gid}"));
    }
    let groups = !process.keep_groups && !process.additional_gids.is_empty();
    match late && maps.denies_groups() && groups {
        true => Err(no_groups()),
        false => Ok(()),
    }
}

/// The same of a user's process in a container that is there, whose init is process `pid`.
///
/// # Errors
/// It has groups, which cannot be set.
pub(crate) fn check_groups(process: &ProcessPlan, pid: i32) -> Result<(), Error> {
    let denied = || {
        let setgroups = std::fs::read_to_string(format!("/proc/{pid}/setgroups"));
        setgroups.is_ok_and(|word| word.trim_end() == "deny")
    };
    let groups = !process.keep_groups && !process.additional_gids.is_empty();
    match groups && Privilege::of_caller() == Privilege::User && denied() {
        true => Err(no_groups()),
        false => Ok(()),
    }
}

/// runc's words.
fn no_groups() -> Error {
    let problem = "cannot set any additional groups in a rootless container (hint: map more groups \
        than the own one, by newgidmap)";
    Error::config("process.user.additionalGids", problem)
}

/// The cgroups that a container is to have.
pub(crate) enum Cgroups {
    /// These, or it is an error.
    All(Paths),
    /// These, but if permission is missing, and nothing in the config `asks` for them, none.
    Permitted {
        /// As far as they could be found.
        paths: Result<Paths, kiln_cgroups::Error>,
        /// There is a linux.cgroupsPath.
        asked: bool,
    },
}

impl Cgroups {
    /// Where they would be.
    pub fn paths(&self) -> Option<&Paths> {
        match self {
            Self::All(paths) => Some(paths),
            Self::Permitted { paths, .. } => paths.as_ref().ok(),
        }
    }

    /// Makes those that init is born in, with their limits, in `cgroup`. Returns those that are
    /// left for later, which on v1 the runtime makes while init works.
    ///
    /// # Errors
    /// They cannot be made, and that is not forgiven: linux.cgroupsPath names them,
    /// linux.resources has limits, or something else than permission is missing.
    pub fn make(
        self,
        resources: Option<&LinuxResources>,
        cgroup: &mut Option<Cgroup>,
    ) -> Result<Option<Paths>, Error> {
        let default = LinuxResources::default();
        let limits = resources.unwrap_or(&default);
        match self {
            Self::All(paths) => {
                let cgroup = cgroup.insert(Cgroup::create_unified(&paths)?);
                if paths.is_v2() {
                    cgroup.apply(limits)?;
                    return Ok(None);
                }
                Ok(Some(paths))
            }
            Self::Permitted { paths, asked } => {
                if let Some(made) = permitted(paths, asked, limits)? {
                    apply(cgroup.insert(made), limits)?;
                }
                Ok(None)
            }
        }
    }
}

fn permitted(
    paths: Result<Paths, kiln_cgroups::Error>,
    asked: bool,
    resources: &LinuxResources,
) -> Result<Option<Cgroup>, Error> {
    let made = paths.and_then(|paths| match asked {
        true => Cgroup::create(&paths),
        false => Cgroup::create_permitted(&paths),
    });
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) if error.is_permission() && !asked => match first_limit(resources) {
            None => {
                log::debug!("no cgroups: {error}");
                Ok(None)
            }
            // runc's words.
            Some(field) => Err(Error::config(
                format!("linux.resources.{field}"),
                format!(
                    "rootless needs no limits + no cgrouppath when no permission is granted for \
                     cgroups: {error} (hint: systemd-run --user --scope -p Delegate=yes gives a \
                     cgroup)"
                ),
            )),
        },
        Err(error) => Err(error.into()),
    }
}

/// Applies limits; that device rules may not be set is forgiven: nobody opens a device that the
/// user could not open outside.
pub(crate) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), Error> {
    match cgroup.apply(resources) {
        Err(error) if error.is_about_devices() => {
            log::debug!("device access is left as it is: {error}");
            Ok(cgroup.update(resources)?)
        }
        applied => Ok(applied?),
    }
}

/// The first field of linux.resources that sets a limit; device rules are not meant.
pub(crate) fn first_limit(resources: &LinuxResources) -> Option<&'static str> {
    fn set<T: Default + PartialEq>(value: &Option<T>) -> bool {
        value.as_ref().is_some_and(|value| *value != T::default())
    }
    [
        ("memory", set(resources.memory())),
        ("cpu", set(resources.cpu())),
        ("pids", resources.pids().as_ref().is_some_and(|pids| pids.limit() != 0)),
        ("blockIO", set(resources.block_io())),
        ("hugepageLimits", set(resources.hugepage_limits())),
        ("network", set(resources.network())),
        ("rdma", set(resources.rdma())),
        ("unified", set(resources.unified())),
    ]
    .into_iter()
    .find_map(|(field, is_set)| is_set.then_some(field))
}
