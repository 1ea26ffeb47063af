//! For unit tests and the fuzz target: a cgroup that is an ordinary directory.

#![cfg_attr(fuzzing, allow(dead_code))]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use tempfile::TempDir;

use crate::cgroup::{Cgroup, Member};
use crate::dir;
use crate::paths::Hierarchy;

/// One hierarchy with the given controllers; the container's cgroup in it has
/// the given empty files. A file takes one write: unlike in cgroupfs, a second
/// would overwrite the beginning of the first.
pub struct Fake {
    pub(crate) cgroup: Cgroup,
    root: TempDir,
}

impl Fake {
    pub(crate) fn new(v2: bool, controllers: &[&str], files: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join("c");
        std::fs::create_dir(&inside).unwrap();
        for file in files {
            std::fs::write(inside.join(file), "").unwrap();
        }
        let hierarchy = Hierarchy::for_test(v2, controllers, root.path());
        let parent = dir::open_mount(root.path()).unwrap();
        let dir = dir::open_child(&parent, Path::new("c")).unwrap();
        let cgroup = Cgroup { members: vec![Member { hierarchy, parent, dir }] };
        Self { cgroup, root }
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.root.path().join("c").join(file), text).unwrap();
    }

    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.root.path().join("c").join(file)).unwrap();
    }

    /// In the directory that stands for the hierarchy's root.
    pub(crate) fn write_root(&self, file: &str, text: &str) {
        std::fs::write(self.root.path().join(file), text).unwrap();
    }

    /// Likewise.
    #[cfg(fuzzing)]
    pub(crate) fn read_root(&self, file: &str) -> String {
        std::fs::read_to_string(self.root.path().join(file)).unwrap_or_default()
    }

    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.root.path().join("c").join(file)).unwrap()
    }
}

/// Says that a test did not run and why; with KILN_TEST_NO_SKIP=1 it fails.
pub(crate) fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
    assert!(std::env::var("KILN_TEST_NO_SKIP").as_deref() != Ok("1"), "not run: {reason}");
}
