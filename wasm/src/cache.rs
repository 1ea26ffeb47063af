//! The cache of modules compiled ahead of time: where they are, who may write there, how one
//! gets in. What is in it is native code that the engine will run, so everything on the way to
//! it must be ours alone. Compiling is the engine's; listing and making room is [`crate::prune`].

use std::env;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, flock,
    fstat, openat,
};
use rustix::io::Errno;

use crate::Error;
use crate::key::Key;

/// Names the directory that is used instead of [`DEFAULT_DIR`], or of a user's own.
pub const DIR_VARIABLE: &str = "KILN_CACHE_DIR";
/// Where kiln keeps what it can make again; compiled modules are in `aot` below it.
pub const DEFAULT_DIR: &str = "/var/cache/kiln";
/// Sets the limit of the cache, in bytes, instead of [`DEFAULT_LIMIT_BYTES`].
pub const LIMIT_VARIABLE: &str = "KILN_AOT_CACHE_BYTES";
/// How many bytes of compiled modules are kept.
pub const DEFAULT_LIMIT_BYTES: u64 = 1 << 30;

/// Ends the names of files that are being written.
pub(crate) const TEMPORARY: &str = ".tmp";

const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const CREATE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);

/// The directory of compiled modules, open. Owned by us, written by nobody else.
#[derive(Debug)]
pub struct Cache {
    pub(crate) dir: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) limit_bytes: u64,
}

/// A compiled module in the cache.
#[derive(Debug)]
pub struct Cached {
    /// The file, open for reading. It stays whole even if the cache drops it meanwhile.
    pub file: OwnedFd,
    /// Its path on the host.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A compiled module on its way into the cache. Removed when dropped.
#[derive(Debug)]
pub struct Pending<'a> {
    cache: &'a Cache,
    key: &'a Key,
    name: String,
}

/// The right to compile for one key, until dropped.
#[derive(Debug)]
pub struct KeyLock<'a> {
    cache: &'a Cache,
    name: String,
    _file: OwnedFd,
}

impl Cache {
    /// Opens the cache that the environment names, or the default one, and makes its
    /// directories (mode 0700) where they are missing.
    ///
    /// # Errors
    /// - [`Error::Variable`]: [`DIR_VARIABLE`] is not absolute or [`LIMIT_VARIABLE`] no number.
    /// - [`Error::UnsafeCache`]: a directory is not ours, or others can write to it.
    /// - [`Error::Cache`]: a directory could not be made or opened; it may be a symbolic link.
    pub fn open() -> Result<Self, Error> {
        let (base, limit) = from_environment()?;
        Cache::create_at(&base, limit)
    }

    /// As [`Cache::open`], but makes nothing: `None` if there is no cache yet.
    ///
    /// # Errors
    /// As for [`Cache::open`].
    pub fn open_existing() -> Result<Option<Self>, Error> {
        let (base, limit) = from_environment()?;
        existing(Cache::open_at(&base, limit))
    }

    /// As [`Cache::open`], for the directory `aot` below `base`.
    ///
    /// # Errors
    /// As for [`Cache::open`], but for [`Error::Variable`].
    pub fn create_at(base: &Path, limit_bytes: u64) -> Result<Self, Error> {
        if let Some(cache) = existing(Cache::open_at(base, limit_bytes))? {
            return Ok(cache);
        }
        let path = base.join("aot");
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&path).map_err(|error| {
            failed(&path, "mkdir")(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        Cache::open_at(base, limit_bytes)
    }

    fn open_at(base: &Path, limit_bytes: u64) -> Result<Self, Error> {
        let path = base.join("aot");
        let base_dir = open_dir(CWD, base, base)?;
        let dir = open_dir(&base_dir, Path::new("aot"), &path)?;
        Ok(Cache { dir, path, limit_bytes })
    }

    /// The directory's path on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The compiled module for `key`, if it is there, which then counts as just used.
    ///
    /// # Errors
    /// - [`Error::UnsafeCache`]: the file is not ours, or others can write to it.
    /// - [`Error::Cache`]: it could not be opened.
    pub fn lookup(&self, key: &Key) -> Result<Option<Cached>, Error> {
        let name = key.file_name();
        let path = self.path.join(&name);
        let file = match openat(&self.dir, &name, READ, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(failed(&path, "open"))?,
        };
        let size_bytes = check(&file, FileType::RegularFile, &path)?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        rustix::fs::futimens(&file, &times).map_err(failed(&path, "futimens"))?;
        Ok(Some(Cached { file, path, size_bytes }))
    }

    /// Begins to add the compiled module for `key`: an empty file of mode 0600 that a compiler
    /// fills by its path.
    ///
    /// # Errors
    /// [`Error::Cache`]: the file could not be made.
    pub fn begin<'a>(&'a self, key: &'a Key) -> Result<Pending<'a>, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{count}{TEMPORARY}", std::process::id());
        let mode = Mode::from(0o600);
        let made = match openat(&self.dir, &name, CREATE, mode) {
            // Left by a process of the same number that died.
            Err(Errno::EXIST) => rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty())
                .and_then(|()| openat(&self.dir, &name, CREATE, mode)),
            made => made,
        };
        made.map_err(failed(&self.path.join(&name), "create"))?;
        Ok(Pending { cache: self, key, name })
    }

    /// Waits for the right to compile for `key`, in flock(2). Look the key up again then:
    /// whoever had it before has probably compiled.
    ///
    /// # Errors
    /// [`Error::Cache`]: the lock file could not be made or locked.
    pub fn lock(&self, key: &Key) -> Result<KeyLock<'_>, Error> {
        loop {
            if let Some(lock) = self.flock(key.lock_name(), FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// The right to compile for `key`, or `None` if somebody else has it.
    ///
    /// # Errors
    /// As for [`Cache::lock`].
    pub fn try_lock(&self, key: &Key) -> Result<Option<KeyLock<'_>>, Error> {
        self.flock(key.lock_name(), FlockOperation::NonBlockingLockExclusive)
    }

    /// `None` if another has the lock or the lock file was removed before we got it.
    fn flock(&self, name: String, how: FlockOperation) -> Result<Option<KeyLock<'_>>, Error> {
        let path = self.path.join(&name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, &name, flags, Mode::from(0o600));
        let file = file.map_err(failed(&path, "open"))?;
        match rustix::io::retry_on_intr(|| flock(&file, how)) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.map_err(failed(&path, "flock"))?,
        }
        // Its last owner removes it: then this is a lock on a file that nobody else will see.
        let links = fstat(&file).map_err(failed(&path, "fstat"))?.st_nlink;
        if links == 0 {
            return Ok(None);
        }
        Ok(Some(KeyLock { cache: self, name, _file: file }))
    }

    /// Removes a lock file that its owner left behind, if nobody has it locked.
    pub(crate) fn remove_stale_lock(&self, name: String) -> Result<(), Error> {
        self.flock(name, FlockOperation::NonBlockingLockExclusive).map(drop)
    }
}

impl Drop for KeyLock<'_> {
    fn drop(&mut self) {
        // While it is still locked. A lock file that stays is empty and harms nobody.
        let _ = rustix::fs::unlinkat(&self.cache.dir, &self.name, AtFlags::empty());
    }
}

impl Pending<'_> {
    /// Where the compiler must write, on the host.
    pub fn path(&self) -> PathBuf {
        self.cache.path.join(&self.name)
    }

    /// Puts what was written into the cache in one step, in place of what was there for the
    /// key. Makes room first by dropping what was not used for the longest time. What the
    /// compiler wrote is on the disk before its name is: a torn file would be run as code.
    ///
    /// # Errors
    /// - [`Error::CacheTooSmall`]: it is larger than the whole cache may be.
    /// - [`Error::UnsafeCache`]: the compiler wrote nothing, or left something else there.
    /// - [`Error::Cache`]: a system call failed.
    pub fn commit(self) -> Result<Cached, Error> {
        let (cache, temporary) = (self.cache, self.path());
        let file = openat(&cache.dir, &self.name, READ, Mode::empty())
            .map_err(failed(&temporary, "open"))?;
        // To be opened by the path of a descriptor that was handed over, too: by whatever user a container
        // has, which the directory (mode 0700) keeps out otherwise.
        rustix::fs::fchmod(&file, Mode::from(0o444)).map_err(failed(&temporary, "fchmod"))?;
        let size_bytes = check(&file, FileType::RegularFile, &temporary)?;
        if size_bytes == 0 {
            return Err(unsafe_cache(&temporary, "empty"));
        }
        if size_bytes > cache.limit_bytes {
            return Err(Error::CacheTooSmall {
                path: cache.path.clone(),
                size: size_bytes,
                limit: cache.limit_bytes,
            });
        }
        rustix::fs::fdatasync(&file).map_err(failed(&temporary, "fdatasync"))?;
        let name = self.key.file_name();
        cache.make_room(cache.limit_bytes - size_bytes, &name)?;
        let path = cache.path.join(&name);
        rustix::fs::renameat(&cache.dir, &self.name, &cache.dir, &name)
            .map_err(failed(&path, "rename"))?;
        Ok(Cached { file, path, size_bytes })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // Not there any more after commit().
        let _ = rustix::fs::unlinkat(&self.cache.dir, &self.name, AtFlags::empty());
    }
}

/// Makes an errno the error of `call` on `path`.
pub(crate) fn failed<'a>(
    path: &'a Path,
    call: &'static str,
) -> impl FnOnce(Errno) -> Error + use<'a> {
    move |errno| Error::Cache { path: path.to_owned(), call, errno }
}

fn unsafe_cache(path: &Path, why: &'static str) -> Error {
    Error::UnsafeCache { path: path.to_owned(), why }
}

fn existing(opened: Result<Cache, Error>) -> Result<Option<Cache>, Error> {
    match opened {
        Err(Error::Cache { errno: Errno::NOENT, .. }) => Ok(None),
        cache => cache.map(Some),
    }
}

fn open_dir(parent: impl AsFd, name: &Path, path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty()).map_err(failed(path, "open"))?;
    check(&dir, FileType::Directory, path)?;
    Ok(dir)
}

/// Checks that nobody but us can have written to `file`, and returns its size.
fn check(file: &OwnedFd, kind: FileType, path: &Path) -> Result<u64, Error> {
    let stat = fstat(file).map_err(failed(path, "fstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != kind {
        return Err(unsafe_cache(path, "not a regular file"));
    }
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(unsafe_cache(path, "owned by another user"));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(unsafe_cache(path, "writable by group or others"));
    }
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

fn from_environment() -> Result<(PathBuf, u64), Error> {
    let dir = base_dir(env::var_os(DIR_VARIABLE))?;
    Ok((dir, limit_bytes(env::var_os(LIMIT_VARIABLE))?))
}

fn base_dir(value: Option<OsString>) -> Result<PathBuf, Error> {
    match value {
        None => Ok(own_base(is_root(), env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))),
        Some(dir) if Path::new(&dir).is_absolute() => Ok(PathBuf::from(dir)),
        Some(dir) => Err(Error::Variable {
            name: DIR_VARIABLE,
            value: dir.to_string_lossy().into_owned(),
            why: "not an absolute path",
        }),
    }
}

/// PROC_USER_INIT_INO, include/linux/proc_ns.h: the initial user namespace's number.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether we are root of the machine. Root of a user's namespace, as Podman without root calls
/// us, is that user.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    let initial = |namespace: std::fs::Metadata| namespace.ino() == INITIAL_USER_NAMESPACE;
    // A kernel without user namespaces has no such file.
    rustix::process::geteuid().is_root()
        && std::fs::metadata("/proc/self/ns/user").map_or(true, initial)
}

/// Root's directory, or a user's: XDG Base Directory Specification, where a value that is not
/// absolute counts as none.
fn own_base(root: bool, cache: Option<OsString>, home: Option<OsString>) -> PathBuf {
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    let home = || home.and_then(absolute).map(|home| home.join(".cache"));
    match cache.and_then(absolute).or_else(home) {
        Some(cache) if !root => cache.join("kiln"),
        _ => PathBuf::from(DEFAULT_DIR),
    }
}

fn limit_bytes(value: Option<OsString>) -> Result<u64, Error> {
    let Some(value) = value else {
        return Ok(DEFAULT_LIMIT_BYTES);
    };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| Error::Variable {
        name: LIMIT_VARIABLE,
        value: value.to_string_lossy().into_owned(),
        why: "not a number of bytes",
    })
}

#[cfg(test)]
mod tests;
