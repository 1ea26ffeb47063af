//! Files and directories of cgroupfs, always relative to a descriptor.
//!
//! Directories are opened O_PATH: enough to make, open and remove below, and
//! for CLONE_INTO_CGROUP and bpf(2). No symbolic link is followed and no mount
//! crossed below a hierarchy's mount point.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a hierarchy's mount point.
pub(crate) fn open_mount(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())
}

/// Opens the directory `name` (one component) in `parent`.
pub(crate) fn open_child(parent: impl AsFd, name: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

/// Opens `path` below `base`; the empty path is `base` itself.
pub(crate) fn open_below(base: OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut components = path.components();
    if components.next().is_none() {
        return Ok(base);
    }
    if components.next().is_none() {
        return open_child(&base, path);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(&base, path, DIRECTORY, Mode::empty(), resolve) {
        // Linux before 5.6, or a seccomp filter from before openat2.
        Err(Errno::NOSYS | Errno::PERM) => walk(base, path),
        result => result,
    }
}

fn walk(base: OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    path.iter().try_fold(base, |dir, name| open_child(&dir, Path::new(name)))
}

/// Makes the directory `name` in `parent`; false if it was there before.
pub(crate) fn make(parent: impl AsFd, name: &Path) -> Result<bool, Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes the directory `name` in `parent`; that it is not there is success.
pub(crate) fn remove_empty(parent: impl AsFd, name: &Path) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Writes `value` to the file `name` in `dir` with one write(2): cgroupfs takes
/// each write as one request.
pub(crate) fn write_file(dir: impl AsFd, name: &str, value: &[u8]) -> Result<(), Errno> {
    let file = open_for_writing(dir, name)?;
    write_all(&file, value)
}

/// Opens the file `name` in `dir` for writing.
pub(crate) fn open_for_writing(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    open_file(dir, name, OFlags::WRONLY)
}

/// Opens the file `name` in `dir`; `access` is RDONLY, WRONLY or RDWR.
pub(crate) fn open_file(dir: impl AsFd, name: &str, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// One request to a file of cgroupfs.
pub(crate) fn write_all(file: impl AsFd, value: &[u8]) -> Result<(), Errno> {
    loop {
        match rustix::io::write(&file, value) {
            Err(Errno::INTR) => {}
            Ok(written) if written < value.len() => return Err(Errno::IO),
            result => return result.map(drop),
        }
    }
}

/// The whole text of the file `name` in `dir`.
pub(crate) fn read_file(dir: impl AsFd, name: impl AsRef<Path>) -> Result<String, Errno> {
    String::from_utf8(read_bytes(dir, name)?).map_err(|_| Errno::ILSEQ)
}

/// The whole content of the file `name` in `dir`.
///
/// A page at a time: std::fs::read would begin with 32 bytes, because files of
/// procfs and cgroupfs say that they are empty.
pub(crate) fn read_bytes(dir: impl AsFd, name: impl AsRef<Path>) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    read_all(rustix::fs::openat(dir, name.as_ref(), flags, Mode::empty())?)
}

/// From the current offset to the end.
pub(crate) fn read_all(file: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    loop {
        bytes.reserve(4096);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => return Ok(bytes),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The names of the directories in `dir`.
///
/// cgroupfs keeps a directory's link count at 2 plus its children, so one
/// without children costs a single fstat(2).
pub(crate) fn children(dir: impl AsFd) -> Result<Vec<PathBuf>, Errno> {
    let stat = rustix::fs::statat(&dir, "", AtFlags::EMPTY_PATH)?;
    if stat.st_nlink == 2 {
        return Ok(Vec::new());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(&dir, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(readable)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(OsStr::from_bytes(name.to_bytes()).into());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_mount(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn symlinks_are_not_followed() {
        let (dir, fd) = temp();
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        std::os::unix::fs::symlink("a/b", dir.path().join("link")).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("filelink")).unwrap();
        assert_eq!(open_child(&fd, Path::new("link")).unwrap_err(), Errno::NOTDIR);
        assert_eq!(write_file(&fd, "filelink", b"y").unwrap_err(), Errno::LOOP);
        assert_eq!(read_file(&fd, "filelink").unwrap_err(), Errno::LOOP);
        let below = |path: &str| open_below(open_mount(dir.path()).unwrap(), Path::new(path));
        assert!(below("a/b/c").is_ok());
        assert!(below("").is_ok());
        assert_eq!(below("link/c").unwrap_err(), Errno::LOOP);
        assert_eq!(below("a/../..").unwrap_err(), Errno::XDEV);
        assert!(walk(open_mount(dir.path()).unwrap(), Path::new("a/b/c")).is_ok());
    }

    #[test]
    fn make_remove_and_children() {
        let (dir, fd) = temp();
        assert!(children(&fd).unwrap().is_empty());
        assert!(make(&fd, Path::new("a")).unwrap());
        assert!(!make(&fd, Path::new("a")).unwrap());
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(children(&fd).unwrap(), [Path::new("a")]);
        remove_empty(&fd, Path::new("a")).unwrap();
        remove_empty(&fd, Path::new("a")).unwrap();
    }
}
