//! Compiled programs on disk.
//!
//! One file for each program, named by its key, in a directory that nobody but the runtime's own
//! user can write: `/var/cache/kiln/seccomp`, or `seccomp` below `KILN_CACHE_DIR`. A program read
//! back decides what a container may do, so a directory or file that does not look right is not
//! used. Nothing here fails: the caller compiles what the cache does not have.
//!
//! A hit costs eight system calls. Files are replaced by rename(2), never written in place.

use std::ffi::CStr;
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use libc::sock_filter;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::MAX_INSTRUCTIONS;
use super::compile::{INSTRUCTION, decode};
use super::key::{CHECKSUM, Key};
use crate::error::errno_text;
use crate::privilege::Privilege;

/// What an entry begins with; the digit is the version of its layout.
const MAGIC: &[u8; 8] = b"kilnbpf1";
/// [`MAGIC`], the checksum, then the program as it is in memory.
const HEADER: usize = MAGIC.len() + CHECKSUM;
/// How many entries are kept. A host has one or two profiles, as a rule.
const ENTRIES: usize = 256;

/// A directory of compiled programs that may be trusted.
#[derive(Debug)]
pub struct Cache {
    dir: OwnedFd,
    /// The effective user, whose files alone are read.
    uid: u32,
}

impl Cache {
    /// Opens the cache: `seccomp` in `KILN_CACHE_DIR`, or else in root's `/var/cache/kiln`, or a
    /// user's `$XDG_CACHE_HOME/kiln` or `~/.cache/kiln`.
    ///
    /// See [`Cache::open`].
    pub fn system() -> Option<Self> {
        let base = std::env::var_os("KILN_CACHE_DIR").filter(|base| !base.is_empty());
        let base = base.map_or_else(own_base, PathBuf::from);
        if !base.is_absolute() {
            log::warn!("seccomp cache not used: KILN_CACHE_DIR={} is relative", base.display());
            return None;
        }
        Self::open(&base.join("seccomp"))
    }

    /// Opens the cache in `path`, made if it is missing (mode 0700, the directories above it 0755).
    ///
    /// None, with the reason in the log, if it cannot be had or trusted: it must be a directory,
    /// no symbolic link, of the effective user, which only that user can write.
    pub fn open(path: &Path) -> Option<Self> {
        let dir = match open_dir(path) {
            Err(Errno::NOENT) => match make(path) {
                Ok(()) => open_dir(path),
                // Common and harmless: no root, a read-only /var.
                Err(error) => {
                    log::debug!("seccomp cache not used: make {}: {error}", path.display());
                    return None;
                }
            },
            other => other,
        };
        let checked = dir.and_then(|dir| Ok((rustix::fs::fstat(&dir)?, dir)));
        let uid = rustix::process::geteuid().as_raw();
        match checked {
            Ok((stat, dir)) if private(&stat, uid) => Some(Self { dir, uid }),
            Ok((stat, _)) => {
                log::warn!(
                    "seccomp cache not used: {} belongs to user {} and has mode {:o}, not to user \
                     {uid} alone",
                    path.display(),
                    stat.st_uid,
                    stat.st_mode & 0o7777,
                );
                None
            }
            Err(error) => {
                let error = errno_text(error.raw_os_error());
                log::warn!("seccomp cache not used: open {}: {error}", path.display());
                None
            }
        }
    }

    /// The program of `key`, if there is a sound one.
    pub(super) fn load(&self, key: &Key) -> Option<Vec<sock_filter>> {
        let name = key.file_name();
        match self.read(&name) {
            Ok(bytes) => {
                let program = program(key, &bytes);
                if program.is_none() {
                    log::warn!("seccomp cache: {name} is damaged: replaced");
                }
                program
            }
            Err(Errno::NOENT) => None,
            Err(error) => {
                log::warn!("seccomp cache: read {name}: {error}: replaced");
                None
            }
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        // NONBLOCK: a pipe in the place of a file must not hold us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || !private(&stat, self.uid)
        {
            return Err(Errno::PERM);
        }
        let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        if size > HEADER + MAX_INSTRUCTIONS * INSTRUCTION {
            return Err(Errno::FBIG);
        }
        // Exactly its size: one read(2), and no further one to find the end.
        let mut bytes = vec![0; size];
        File::from(file).read_exact(&mut bytes).map_err(errno)?;
        Ok(bytes)
    }

    /// Keeps `program` under `key`. A failure is logged.
    pub(super) fn store(&self, key: &Key, program: &[sock_filter]) {
        if let Err(error) = self.write(key, program).and_then(|()| self.evict()) {
            log::warn!("seccomp cache: keep {}: {error}", key.file_name());
        }
    }

    fn write(&self, key: &Key, program: &[sock_filter]) -> Result<(), Errno> {
        let name = key.file_name();
        // Several processes may compile the same program at once; the last rename wins.
        let temporary = format!(".{}.{}", &name[..16], std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.dir, &temporary, flags, mode);
        let file = match file {
            // Of a process that had our pid and was killed.
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty())?;
                rustix::fs::openat(&self.dir, &temporary, flags, mode)
            }
            other => other,
        }?;
        let written = File::from(file)
            .write_all(&entry(key, program))
            .map_err(errno)
            .and_then(|()| rustix::fs::renameat(&self.dir, &temporary, &self.dir, &name));
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty());
        }
        written
    }

    /// Removes the oldest files beyond [`ENTRIES`], temporary ones left by a killed process
    /// among them.
    fn evict(&self) -> Result<(), Errno> {
        let mut files = Vec::new();
        for file in Dir::read_from(&self.dir)? {
            let file = file?;
            let name = file.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            files.push(name.to_owned());
        }
        let Some(excess) = files.len().checked_sub(ENTRIES).filter(|excess| *excess > 0) else {
            return Ok(());
        };
        let age = |name: &CStr| {
            let stat = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW);
            // Gone meanwhile: as good as oldest.
            stat.map(|stat| (stat.st_mtime, stat.st_mtime_nsec)).unwrap_or_default()
        };
        files.sort_by_cached_key(|name| age(name));
        for name in &files[..excess] {
            match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// XDG Base Directory Specification; a value that is not absolute counts as none. Root of a user's
/// namespace, as Podman without root calls us, is that user.
fn own_base() -> PathBuf {
    let roots = PathBuf::from("/var/cache/kiln");
    if Privilege::of_caller().is_root() {
        return roots;
    }
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let absolute = |path: &PathBuf| path.is_absolute();
    let cache = variable("XDG_CACHE_HOME").filter(absolute);
    let home = || variable("HOME").filter(absolute).map(|home| home.join(".cache"));
    cache.or_else(home).map_or(roots, |cache| cache.join("kiln"))
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn make(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Whether it is the user's, and no other's to write.
fn private(stat: &Stat, uid: u32) -> bool {
    stat.st_uid == uid && stat.st_mode & 0o022 == 0
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn entry(key: &Key, program: &[sock_filter]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    let checksum = key.checksum(&bytes[HEADER..]);
    bytes[..MAGIC.len()].copy_from_slice(MAGIC);
    bytes[MAGIC.len()..HEADER].copy_from_slice(&checksum);
    bytes
}

/// The program in an entry, if it is whole and `key`'s.
fn program(key: &Key, bytes: &[u8]) -> Option<Vec<sock_filter>> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (checksum, program) = rest.split_first_chunk::<CHECKSUM>()?;
    let count = program.len() / INSTRUCTION;
    let whole = program.len() % INSTRUCTION == 0 && (1..=MAX_INSTRUCTIONS).contains(&count);
    (magic == MAGIC && whole && *checksum == key.checksum(program)).then(|| decode(program))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn cache(dir: &tempfile::TempDir) -> (Cache, PathBuf) {
        let path = dir.path().join("base/seccomp");
        (Cache::open(&path).unwrap(), path)
    }

    fn mode(bits: u32) -> std::fs::Permissions {
        PermissionsExt::from_mode(bits)
    }

    fn some(k: u32) -> Vec<sock_filter> {
        vec![sock_filter { code: 0x06, jt: 0, jf: 0, k }; 3]
    }

    fn values(program: Option<Vec<sock_filter>>) -> Option<Vec<u32>> {
        program.map(|program| program.iter().map(|instruction| instruction.k).collect())
    }

    #[test]
    fn keeps_and_returns_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, path) = cache(&dir);
        let key = Key([7; 32]);
        assert!(cache.load(&key).is_none());
        cache.store(&key, &some(1));
        cache.store(&key, &some(2));
        assert_eq!(values(cache.load(&key)), Some(vec![2; 3]));
        assert!(cache.load(&Key([8; 32])).is_none());

        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let files: Vec<_> = path.read_dir().unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 1, "no temporary file is left");
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_entry_is_no_entry_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, path) = cache(&dir);
        let key = Key([7; 32]);
        cache.store(&key, &some(1));
        let file = path.join(key.file_name());
        let sound = std::fs::read(&file).unwrap();
        let damages: [fn(&mut Vec<u8>); 6] = [
            |bytes| bytes.clear(),
            |bytes| bytes.truncate(HEADER),
            |bytes| bytes.truncate(HEADER + 8),
            |bytes| bytes.push(0),
            |bytes| bytes[0] ^= 1,
            |bytes| bytes[HEADER + 5] ^= 1,
        ];
        for (index, damage) in damages.into_iter().enumerate() {
            let mut bytes = sound.clone();
            damage(&mut bytes);
            std::fs::write(&file, bytes).unwrap();
            assert!(cache.load(&key).is_none(), "damage {index}");
        }
        std::fs::write(&file, vec![0; HEADER + (MAX_INSTRUCTIONS + 1) * INSTRUCTION]).unwrap();
        assert!(cache.load(&key).is_none(), "too long");
        cache.store(&key, &some(1));
        assert_eq!(std::fs::read(&file).unwrap(), sound);

        // Whole, but another key's: what a wrong rename would leave.
        std::fs::copy(&file, path.join(Key([8; 32]).file_name())).unwrap();
        assert!(cache.load(&Key([8; 32])).is_none());
    }

    #[test]
    fn an_entry_that_others_can_write_or_that_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, path) = cache(&dir);
        let key = Key([7; 32]);
        cache.store(&key, &some(1));
        let file = path.join(key.file_name());
        std::fs::set_permissions(&file, mode(0o620)).unwrap();
        assert!(cache.load(&key).is_none());

        let elsewhere = dir.path().join("elsewhere");
        std::fs::set_permissions(&file, mode(0o600)).unwrap();
        std::fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(cache.load(&key).is_none());
        // A new entry takes the link's place and leaves its target alone.
        cache.store(&key, &some(2));
        assert_eq!(values(cache.load(&key)), Some(vec![2; 3]));
        assert!(file.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (_, path) = cache(&dir);
        for bits in [0o770, 0o702, 0o1777] {
            std::fs::set_permissions(&path, mode(bits)).unwrap();
            assert!(Cache::open(&path).is_none(), "mode {bits:o}");
        }
        std::fs::set_permissions(&path, mode(0o700)).unwrap();
        assert!(Cache::open(&path).is_some());

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Cache::open(&link).is_none());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Cache::open(&file).is_none());
        assert!(Cache::open(&file.join("below")).is_none());
    }

    #[test]
    fn a_directory_of_another_user_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (_, path) = cache(&dir);
        let other = if rustix::process::geteuid().is_root() { 65534 } else { 0 };
        let stat = rustix::fs::stat(&path).unwrap();
        assert!(private(&stat, stat.st_uid));
        assert!(!private(&stat, other));
    }

    #[test]
    fn only_the_youngest_entries_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, path) = cache(&dir);
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        for index in 0..ENTRIES + 10 {
            let file = File::create(path.join(format!("{index:064}"))).unwrap();
            file.set_modified(old + std::time::Duration::from_secs(index as u64)).unwrap();
        }
        let key = Key([7; 32]);
        cache.store(&key, &some(1));
        assert_eq!(path.read_dir().unwrap().count(), ENTRIES);
        assert!(cache.load(&key).is_some());
        assert!(!path.join(format!("{:064}", 10)).exists());
        assert!(path.join(format!("{:064}", 11)).exists());
    }
}
