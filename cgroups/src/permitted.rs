//! Cgroups for a user without privileges: as many as may be made.

use crate::cgroup::{Cgroup, create_member_alone};
use crate::error::Error;
use crate::paths::Paths;
use crate::subtree;

impl Cgroup {
    /// As [`Cgroup::create`], but leaves out the v1 hierarchies in which the caller may not make
    /// cgroups: a user is seldom given all of them. [`Cgroup::paths`] says what is left.
    ///
    /// # Errors
    ///
    /// As for [`Cgroup::create`]: the first missing permission, if there is no hierarchy without
    /// one. What was made has been removed again.
    pub fn create_permitted(paths: &Paths) -> Result<Self, Error> {
        let mut cgroup = Self { members: Vec::new() };
        let mut refused = None;
        for hierarchy in paths.hierarchies() {
            match create_member_alone(hierarchy) {
                Ok(member) => cgroup.members.push(member),
                Err(error) if error.is_permission() => {
                    log::debug!("{error}");
                    refused.get_or_insert(error);
                }
                Err(error) => {
                    let _ = cgroup.remove_now();
                    return Err(error);
                }
            }
        }
        match refused {
            Some(error) if cgroup.members.is_empty() => return Err(error),
            _ => {}
        }
        if let Some(member) = cgroup.unified() {
            subtree::enable(&member.hierarchy, None);
        }
        Ok(cgroup)
    }
}
