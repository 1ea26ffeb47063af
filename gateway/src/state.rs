//! The gateway's directory: 0700, locked, and all that it makes lies in it.
//!
//! ```text
//! STATE/lock              locked (flock(2)) while a gateway uses the directory
//! STATE/root              the state root of the containers that were made last
//! STATE/containers/       that state root, unless another was asked for
//! STATE/bundles/ID/       the bundle of container ID, made ahead
//! STATE/sockets/ID.http   where ID answers requests, and ID.admin where it is asked how it is
//! STATE/logs/NAME.log     what a function has written, and NAME.log.1 what came before
//! STATE/added/NAME.toml   functions that were added while the gateway ran
//! STATE/control.sock      `kiln fn`
//! ```

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};

/// The directory, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// For paths to sockets, which may not be long.
    sockets: OwnedFd,
    /// From the directory's inode: one for each gateway of a machine.
    tag: String,
    _lock: File,
}

impl StateDir {
    /// Opens the directory, making it where missing, and locks it.
    ///
    /// # Errors
    /// It is somebody else's, others may write to it, another gateway uses it, or it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        let make = |path: &Path| {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.with_context(|| format!("make {}", path.display()))
        };
        make(path)?;
        let path = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
        let meta = path.metadata().with_context(|| format!("stat {}", path.display()))?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            bail!("state directory {} belongs to uid {}, not to us", path.display(), meta.uid());
        }
        if meta.mode() & 0o077 != 0 {
            bail!(
                "state directory {} is open to others: mode {:o} (hint: chmod 700)",
                path.display(),
                meta.mode() & 0o7777
            );
        }
        let lock = lock(&path)?;
        for name in ["bundles", "sockets", "logs", "added"] {
            make(&path.join(name))?;
        }
        let sockets = path.join("sockets");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let sockets = rustix::fs::open(&sockets, flags, Mode::empty())
            .with_context(|| format!("open {}", sockets.display()))?;
        let tag = format!("{:x}-{:x}", meta.dev(), meta.ino());
        Ok(Self { path, sockets, tag, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The containers' state root where none was asked for.
    pub fn default_root(&self) -> PathBuf {
        self.path.join("containers")
    }

    /// Where bundles are.
    pub fn bundles(&self) -> PathBuf {
        self.path.join("bundles")
    }

    /// A function's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// Where functions are that were added while the gateway ran.
    pub fn added(&self) -> PathBuf {
        self.path.join("added")
    }

    /// The path of a socket, short whatever the directory's is; good in this process alone.
    pub fn socket(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.sockets.as_raw_fd()))
    }

    /// The cgroup that has all containers of this gateway below it, absolute in each hierarchy.
    pub fn cgroup(&self) -> PathBuf {
        PathBuf::from(format!("/kiln-gateway-{}", self.tag))
    }

    /// The state root of the gateway that used the directory before.
    pub fn last_root(&self) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let bytes = std::fs::read(self.path.join("root")).ok()?;
        Some(std::ffi::OsString::from_vec(bytes).into()).filter(|root: &PathBuf| root.is_absolute())
    }

    /// Records the state root, for the gateway that comes after this.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record_root(&self, root: &Path) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        write_atomically(&self.path.join("root"), root.as_os_str().as_bytes())
            .context("record the state root")
    }
}

/// The control socket's path below a state directory.
pub fn control_socket(state: &Path) -> PathBuf {
    state.join("control.sock")
}

fn lock(path: &Path) -> Result<File> {
    let file = path.join("lock");
    let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(&file);
    let opened = opened.with_context(|| format!("open {}", file.display()))?;
    match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(opened),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("another gateway uses {}", path.display())
        }
        Err(errno) => Err(errno).with_context(|| format!("lock {}", file.display())),
    }
}

/// Writes a file beside its place and moves it there: whoever reads it finds the old one or the new.
///
/// # Errors
/// Those of open(2), write(2), fsync(2) and rename(2).
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gateway_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let refused = StateDir::open(&path).unwrap_err().to_string();
        assert!(refused.starts_with("another gateway uses "), "{refused}");
        state.record_root(Path::new("/run/x")).unwrap();
        assert_eq!(state.last_root().unwrap(), Path::new("/run/x"));
        drop(state);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_is_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let refused = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("open to others: mode 755"), "{refused}");
    }
}
