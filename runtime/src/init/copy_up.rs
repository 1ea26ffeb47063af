//! tmpfs mounts: the mode of the directory below, and with `tmpcopyup` what it holds.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// How deep directories may be nested; far beyond any image.
const MAX_DEPTH: usize = 256;

/// Gives the root of the new tmpfs `tree` the owner and mode of what it will cover, `covers`, where
/// it takes them over; with `copy`, copies all that is in `target`, the directory that it will cover.
///
/// Symlinks are copied, never followed; sockets and devices are left out.
pub fn fill(
    tree: &OwnedFd,
    target: &OwnedFd,
    copy: bool,
    covers: Option<&Stat>,
) -> Result<(), Errno> {
    // The mode alone is an option of the mount's already, and root owns it.
    let covers = covers.filter(|stat| stat.st_uid != 0 || stat.st_gid != 0);
    if !copy && covers.is_none() {
        return Ok(());
    }
    let root = reopen(tree.as_fd(), c".")?;
    if let Some(stat) = covers {
        take_attributes(root.as_fd(), stat)?;
    }
    match copy {
        true => copy_dir(reopen(target.as_fd(), c".")?, root.as_fd(), 0),
        false => Ok(()),
    }
}

fn reopen(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn take_attributes(file: BorrowedFd<'_>, from: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(from.st_uid), Gid::from_raw(from.st_gid));
    match rustix::fs::fchown(file, Some(uid), Some(gid)) {
        // An owner without a name in the user namespace: the file stays its root's.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(from.st_mode))
}

fn copy_dir(from: OwnedFd, to: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::RWXU;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, mode)?;
                let copy = reopen(to, name)?;
                copy_dir(reopen(from.as_fd(), name)?, copy.as_fd(), depth + 1)?;
                take_attributes(copy.as_fd(), &stat)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = rustix::fs::openat(&from, name, OFlags::RDONLY | flags, mode)?;
                // It may have been exchanged since: a device could be read without end.
                if !FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode).is_file() {
                    return Err(Errno::AGAIN);
                }
                let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let copy = rustix::fs::openat(to, name, create | flags, mode)?;
                std::io::copy(
                    &mut std::fs::File::from(source),
                    &mut std::fs::File::from(copy.try_clone().map_err(|_| Errno::MFILE)?),
                )
                .map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
                take_attributes(copy.as_fd(), &stat)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&from, name, Vec::new())?;
                rustix::fs::symlinkat(target.as_c_str(), to, name)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                match rustix::fs::chownat(to, name, Some(uid), Some(gid), flags) {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(errno) => return Err(errno),
                }
            }
            _ => {}
        }
    }
    Ok(())
}
