//! linux.devices and the devices that every container has.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::FileType;

use crate::error::Error;

/// One device node, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
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
