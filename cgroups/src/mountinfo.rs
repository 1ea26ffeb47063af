//! Reads `/proc/self/mountinfo` and `/proc/self/cgroup`; proc(5), cgroups(7).
//!
//! Only what this crate needs: the cgroup mounts, and which cgroup of each
//! hierarchy we are in.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount of type `cgroup` or `cgroup2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub mount_point: PathBuf,
    /// The cgroup of the hierarchy that is seen at the mount point.
    pub root: PathBuf,
    pub v2: bool,
    /// The super block's options: on v1, they name the controllers.
    pub options: Vec<String>,
}

/// A line of `/proc/self/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    /// "cpu,cpuacct", "name=systemd", or "" for the unified hierarchy.
    pub name: String,
    /// Our cgroup, as seen from our cgroup namespace.
    pub path: PathBuf,
}

/// The cgroup mounts among all mounts, in the order of the table.
pub(crate) fn cgroup_mounts(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(cgroup_mount).collect()
}

/// `31 23 0:28 / /sys/fs/cgroup/cpu rw,relatime [tag...] - cgroup cgroup rw,cpu`
fn cgroup_mount(line: &[u8]) -> Option<Mount> {
    // Spaces inside a field are escaped, so " - " can only be the separator.
    let dash = line.windows(3).position(|window| window == b" - ")?;
    let mut after = line[dash + 3..].split(|&byte| byte == b' ');
    let v2 = match after.next()? {
        b"cgroup" => false,
        b"cgroup2" => true,
        _ => return None,
    };
    let options = after.nth(1).unwrap_or_default();
    let mut before = line[..dash].split(|&byte| byte == b' ').skip(3);
    let root = unescape(before.next()?);
    let mount_point = unescape(before.next()?);
    let options = String::from_utf8_lossy(options).split(',').map(str::to_owned).collect();
    Some(Mount { mount_point, root, v2, options })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\'
            && let Some(octal) = tail.get(..3)
            && octal.iter().all(|digit| (b'0'..=b'7').contains(digit))
        {
            let value = octal.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            bytes.push(value as u8);
            rest = &tail[3..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Our cgroup in each hierarchy, in the order of the file.
pub(crate) fn memberships(proc_cgroup: &[u8]) -> Vec<Membership> {
    proc_cgroup.split(|&byte| byte == b'\n').filter_map(membership).collect()
}

/// `4:cpu,cpuacct:/a/b`; `0::/a` is the unified hierarchy.
fn membership(line: &[u8]) -> Option<Membership> {
    // The path may hold colons, the other two fields cannot.
    let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
    let name = String::from_utf8_lossy(fields.next()?).into_owned();
    let path = PathBuf::from(OsString::from_vec(fields.next()?.to_vec()));
    Some(Membership { name, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_escapes_and_optional_fields() {
        let text = b"25 30 0:22 / /proc rw - proc proc rw\n\
            34 25 0:29 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:9 shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
            35 25 0:30 / /a\\040b\\134c rw - cgroup2 none rw,nsdelegate\n\
            garbage\n36 1 - cgroup\n";
        let mounts = cgroup_mounts(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mount_point, PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mounts[0].root, PathBuf::from("/docker/ab"));
        assert_eq!(mounts[0].options, ["rw", "cpu", "cpuacct"]);
        assert!(!mounts[0].v2);
        assert_eq!(mounts[1].mount_point, PathBuf::from("/a b\\c"));
        assert!(mounts[1].v2);
    }

    #[test]
    fn memberships_keep_colons_in_the_path() {
        let found = memberships(b"9:name=systemd:/a:b\n4:cpu,cpuacct:/x\n0::/\nbad\n");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].path, PathBuf::from("/a:b"));
        assert_eq!(found[1].name, "cpu,cpuacct");
        assert_eq!(found[2], Membership { name: String::new(), path: "/".into() });
    }
}
