//! Mounts whose ids are to be mapped: the rootfs of a container with a user namespace, from
//! containerd 2.0 on. Its snapshotter says `uidmap=` and `gidmap=` and leaves the rest to whoever
//! mounts; the kernel knows no such options.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::idmaps::IdMaps;
use crate::mounts::clone_tree;
use crate::privilege::Privilege;
use crate::sys::{MountAttr, mount_setattr};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::error::{Error, Step};

/// The user namespace whose maps such mounts take.
pub struct Ids(OwnedFd);

impl Ids {
    /// What the options say, which are taken out of them; nothing if they say nothing.
    ///
    /// # Errors
    /// Only one of the two is there, or is not `INSIDE:OUTSIDE:SIZE[,...]`; the kernel refuses it.
    pub fn take(options: &mut Vec<String>) -> Result<Option<Self>, Error> {
        let mut take = |name: &str| {
            let at = options.iter().position(|option| option.starts_with(name))?;
            Some(options.remove(at)[name.len()..].to_owned())
        };
        let (uids, gids) = (take("uidmap="), take("gidmap="));
        if uids.is_none() && gids.is_none() {
            return Ok(None);
        }
        let maps = |map: Option<String>| map.as_deref().map(ranges).transpose();
        let maps = IdMaps::new("rootfs", maps(uids)?.as_ref(), maps(gids)?.as_ref())?;
        Ok(Some(Self(maps.namespace(Privilege::of_caller())?)))
    }

    /// Puts the layers of an overlay, with their ids mapped, where `lowerdir=` says then. They are
    /// needed until the overlay is mounted.
    ///
    /// # Errors
    /// The filesystem, or this kernel's, takes no maps.
    pub fn map_layers(&self, data: &mut [String], bundle: &Path) -> Result<Option<Layers>, Error> {
        let name = "lowerdir=";
        let Some(option) = data.iter_mut().find(|option| option.starts_with(name)) else {
            return Ok(None);
        };
        let lower: Vec<&str> = option[name.len()..].split(':').collect();
        // One mount for all of them.
        let base = super::common_directory(&lower);
        let place = layers_of(bundle);
        std::fs::create_dir(&place).step(|| format!("make {}", place.display()))?;
        let layers = Layers(place.clone());
        self.attach(Path::new(base), &place)?;
        let mapped = lower.iter().map(|layer| place.join(&layer[base.len()..]));
        let mapped: Vec<_> = mapped.map(|path| path.display().to_string()).collect();
        *option = name.to_owned() + &mapped.join(":");
        Ok(Some(layers))
    }

    /// A copy of the mount that `from` lies in, from there on, with ids mapped, on `place`.
    pub fn attach(&self, from: &Path, place: &Path) -> Result<(), Error> {
        let tree = clone_tree(from, false)?;
        mount_setattr(tree.as_fd(), MountAttr::default(), false, Some(self.0.as_fd()))
            .step(|| format!("map the ids of {}", from.display()))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", rustix::fs::CWD, place, flags)
            .step(|| format!("mount {} on {}", from.display(), place.display()))
    }
}

/// Layers that are mounted. Gone when dropped: the overlay has copies of its own.
pub struct Layers(PathBuf);

impl Drop for Layers {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Takes away what somebody who was killed meanwhile has left.
pub fn remove_layers(bundle: &Path) {
    remove(&layers_of(bundle));
}

fn layers_of(bundle: &Path) -> PathBuf {
    bundle.join("layers")
}

fn remove(place: &Path) {
    while unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    let _ = std::fs::remove_dir(place);
}

fn ranges(map: &str) -> Result<Vec<LinuxIdMapping>, Error> {
    map.split(',').map(|range| self::range(range).ok_or_else(|| bad(map))).collect()
}

fn range(text: &str) -> Option<LinuxIdMapping> {
    let numbers: Vec<u32> = text.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [inside, outside, size] = numbers[..] else { return None };
    let range = LinuxIdMappingBuilder::default().container_id(inside).host_id(outside);
    range.size(size).build().ok()
}

fn bad(map: &str) -> Error {
    Error::config("rootfs", format!("{map:?} is not INSIDE:OUTSIDE:SIZE[,...]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_three_numbers() {
        let all = ranges("0:100000:65536,65536:1:1").unwrap();
        let first = (all[0].container_id(), all[0].host_id(), all[0].size());
        assert_eq!((first, all.len()), ((0, 100_000, 65536), 2));
        for map in ["", "0:1", "0:1:2:3", "0:1:x", "0:1:2,"] {
            assert!(ranges(map).is_err(), "{map:?}");
        }
    }

    #[test]
    fn without_maps_nothing_is_mapped() {
        let mut options = vec!["index=off".to_owned()];
        assert!(Ids::take(&mut options).unwrap().is_none());
        options.push("uidmap=0:1:1".to_owned());
        assert!(Ids::take(&mut options).is_err(), "gidmap is missing");
    }
}
