//! The mounts that a process sees: /proc/PID/mountinfo (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, Step};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// As statx(2) has it.
    pub id: u64,
    /// Where it is, from the process's root.
    pub point: PathBuf,
    /// Which filesystem, and which part of it.
    content: (String, PathBuf),
}

impl Mount {
    /// Whether both show the same part of the same filesystem.
    pub fn shows_the_same(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

/// All mounts of a process, in the kernel's order: of several at one point the last is on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Those of process `pid` ("self" for this one).
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: &str) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/mountinfo");
        let text = std::fs::read(&path).step(|| format!("read {path}"))?;
        Ok(Self::parse(&text))
    }

    /// A table without mounts.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self(Vec::new())
    }

    /// Of the text of such a file; lines that are none are passed over.
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
    }

    /// The mount whose id this is.
    pub fn with_id(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// Those below `path`, without one on `path` itself.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Mount> {
        self.0.iter().filter(move |mount| mount.point.starts_with(path) && mount.point != path)
    }

    /// Where they are.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = &Path> {
        self.0.iter().map(|mount| mount.point.as_path())
    }

    /// The mount on `path`.
    pub fn on(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.point == path)
    }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut text = || fields.next().map(|field| String::from_utf8_lossy(field).into_owned());
    let (id, _parent, device) = (text()?.parse().ok()?, text()?, text()?);
    let mut path = || fields.next().map(unescape);
    let (root, point) = (path()?, path()?);
    Some(Mount { id, point, content: (device, root) })
}

/// Blanks, newlines and backslashes stand there as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => bytes.push(byte),
        }
    }
    OsString::from_vec(bytes).into()
}

/// The id of the mount that `file` is the root of; None if it is not the root of one (statx(2),
/// Linux 5.8).
///
/// # Errors
/// Those of statx(2).
pub fn mount_root_id(file: &OwnedFd) -> Result<Option<u64>, Errno> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let is_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(is_root.then_some(stat.stx_mnt_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,noatime shared:1 - ext4 /dev/vda rw
30 22 254:0 /srv/my\\040data /data rw - ext4 /dev/vda rw
31 30 0:40 / /data/a\\134b rw - tmpfs tmpfs rw
32 30 254:0 /srv/my\\040data /data rw - ext4 /dev/vda rw
";

    #[test]
    fn mounts_are_found() {
        let table = MountTable::parse(TABLE);
        let point = |id| table.with_id(id).unwrap().point.clone();
        assert_eq!(point(31), Path::new("/data/a\\b"));
        assert_eq!(table.on(Path::new("/data")).unwrap().id, 32);
        assert!(table.with_id(30).unwrap().shows_the_same(table.with_id(32).unwrap()));
        let below: Vec<_> = table.below(Path::new("/data")).map(|mount| mount.id).collect();
        assert_eq!(below, [31]);
        assert!(table.on(Path::new("/dat")).is_none());
        assert_eq!(table.with_id(30).unwrap().content.1, Path::new("/srv/my data"));
    }

    #[test]
    fn the_root_of_a_mount_is_told_from_what_is_in_it() {
        let open = |path| crate::mounts::open_dir(Path::new(path)).unwrap();
        let table = MountTable::of("self").unwrap();
        let proc = mount_root_id(&open("/proc")).unwrap().unwrap();
        assert_eq!(table.with_id(proc).unwrap().point, Path::new("/proc"));
        assert_eq!(mount_root_id(&open("/proc/self")).unwrap(), None);
    }
}
