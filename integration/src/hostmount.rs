//! Mounts on the host for a test, undone when dropped.

use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};

/// One mount on the host.
#[derive(Debug)]
pub struct HostMount(PathBuf);

impl HostMount {
    /// A tmpfs on `at`, which is made if need be.
    pub fn tmpfs(at: impl AsRef<Path>) -> Self {
        let at = at.as_ref();
        std::fs::create_dir_all(at).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
        HostMount(at.to_path_buf())
    }

    /// A bind of `source` on `at`, which must exist.
    pub fn bind(source: impl AsRef<Path>, at: impl AsRef<Path>) -> Self {
        mount_bind(source.as_ref(), at.as_ref()).unwrap();
        HostMount(at.as_ref().to_path_buf())
    }

    /// Makes it a shared mount, so that what is mounted below it propagates.
    pub fn shared(self) -> Self {
        mount_change(&self.0, MountPropagationFlags::SHARED).unwrap();
        self
    }

    /// Makes it read-only, and takes set-uid programs and devices away.
    pub fn restricted(self) -> Self {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(&self.0, flags, "").unwrap();
        self
    }

    /// Makes it a private mount.
    pub fn private(self) -> Self {
        mount_change(&self.0, MountPropagationFlags::PRIVATE).unwrap();
        self
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        if let Err(err) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmount {}: {err}", self.0.display());
        }
    }
}
