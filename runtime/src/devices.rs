//! linux.devices and the devices that every container has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::mount::OpenTreeFlags;
use rustix::process::{Gid, Uid};

use crate::error::{Error, Step};
use crate::idmaps::IdMaps;
use crate::sys::{self, MountAttr};

/// The name of the node that [`Device::make_node`] makes in a container's directory, numbered from 0
/// without gaps.
pub fn node_name(number: usize) -> String {
    format!("device{number}")
}

/// One device node, checked.
#[derive(Debug)]
pub struct Device {
    /// In the container, absolute.
    pub path: PathBuf,
    /// Character or block device, or FIFO.
    pub kind: FileType,
    /// For mknod(2).
    pub device: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
    /// Not the config's: every host has it.
    pub is_default: bool,
    /// A detached mount of the node itself, where the runtime had to make it: see
    /// [`Self::make_node`].
    pub node: Option<OwnedFd>,
}

impl Device {
    /// Whether `stat` is of this very device.
    pub fn is(&self, stat: &Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == self.kind && stat.st_rdev == self.device
    }

    /// In the machine's root's runtime, before init exists: for a container that may make no
    /// devices, because it is in a user namespace with `maps`, makes the node that it would bind if
    /// the host had it. As crun does; runc does without the device.
    ///
    /// The node is `name` in the container's directory `dir`, for as long as that is there: what is
    /// unlinked cannot be mounted. That may be on a mount with nodev (/run is); the binding is not.
    ///
    /// Returns whether it was needed.
    ///
    /// # Errors
    /// The owner has no id on the host, or the device cannot be made.
    pub fn make_node(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &str,
        maps: &IdMaps,
    ) -> Result<bool, Error> {
        if rustix::fs::stat(&self.path).is_ok_and(|stat| self.is(&stat)) {
            return Ok(false);
        }
        let step = || format!("make device {}", self.path.display());
        let (Some(uid), Some(gid)) = (maps.host_uid(self.uid), maps.host_gid(self.gid)) else {
            let problem = format!("its owner {}:{} is not mapped", self.uid, self.gid);
            return Err(Error::config(step(), problem));
        };
        let mode = Mode::from_raw_mode(self.mode);
        rustix::fs::mknodat(dir, name, self.kind, Mode::empty(), self.device).step(step)?;
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(step)?;
        // Not by mknod(2), which heeds the umask.
        rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).step(step)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(dir, name, flags).step(step)?;
        let clear = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_RDONLY;
        let attr = MountAttr { clear, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), attr, false, None).step(step)?;
        self.node = Some(tree);
        Ok(true)
    }
}

/// config-linux.md#default-devices: all character devices with major 1, but tty.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default devices, then linux.devices; one of those at a default one's path replaces it.
///
/// # Errors
/// A relative path, a type without meaning, numbers out of range.
pub fn plan(devices: &[LinuxDevice]) -> Result<Vec<Device>, Error> {
    let mut plan: Vec<_> = DEFAULT
        .iter()
        .map(|&(path, major, minor)| Device {
            path: path.into(),
            kind: FileType::CharacterDevice,
            device: rustix::fs::makedev(major, minor),
            mode: 0o666,
            uid: 0,
            gid: 0,
            is_default: true,
            node: None,
        })
        .collect();
    for (index, device) in devices.iter().enumerate() {
        let device = check(index, device)?;
        plan.retain(|other| other.path != device.path);
        plan.push(device);
    }
    Ok(plan)
}

fn check(index: usize, device: &LinuxDevice) -> Result<Device, Error> {
    let field = |name: &str| format!("linux.devices[{index}].{name}");
    let path: &Path = device.path();
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(Error::config(field("path"), format!("{} is not absolute", path.display())));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(Error::config(field("type"), "must be c, b, u or p")),
    };
    let number = |name: &str, number: i64, bits: u32| {
        u32::try_from(number)
            .ok()
            .filter(|number| number >> bits == 0)
            .ok_or_else(|| Error::config(field(name), format!("{number} is out of range")))
    };
    // 12 and 20 bits: the kernel's own, include/linux/kdev_t.h.
    let device_number = match kind {
        FileType::Fifo => 0,
        _ => {
            let major = number("major", device.major(), 12)?;
            rustix::fs::makedev(major, number("minor", device.minor(), 20)?)
        }
    };
    Ok(Device {
        path: path.to_owned(),
        kind,
        device: device_number,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        is_default: false,
        node: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_devices_replace_default_ones() {
        let devices: Vec<LinuxDevice> = serde_json::from_str(
            r#"[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384,"uid":7},
                {"path":"/dev/fifo","type":"p","major":0,"minor":0}]"#,
        )
        .unwrap();
        let plan = plan(&devices).unwrap();
        assert_eq!(plan.len(), 7);
        let null = plan.iter().find(|d| d.path == Path::new("/dev/null")).unwrap();
        assert_eq!((null.mode, null.uid, null.gid), (0o600, 7, 0));
        assert_eq!(plan.last().unwrap().kind, FileType::Fifo);
    }

    #[test]
    fn wrong_devices_are_named() {
        let problem = |json| {
            plan(&serde_json::from_str::<Vec<LinuxDevice>>(json).unwrap()).unwrap_err().to_string()
        };
        let relative = r#"[{"path":"dev/x","type":"c","major":1,"minor":3}]"#;
        assert!(problem(relative).starts_with("linux.devices[0].path"));
        let any = r#"[{"path":"/dev/x","type":"a","major":1,"minor":3}]"#;
        assert!(problem(any).starts_with("linux.devices[0].type"));
        let large = r#"[{"path":"/dev/x","type":"c","major":1,"minor":1048576}]"#;
        assert!(problem(large).starts_with("linux.devices[0].minor"));
    }
}
