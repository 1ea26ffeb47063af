//! Hands v2 controllers down: a cgroup has only the controllers that its
//! parent's `cgroup.subtree_control` names, at every level; cgroups(7).

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::dir;
use crate::error::Hint;
use crate::paths::Hierarchy;

/// Enables controllers in each ancestor of the container's cgroup, from the
/// mount point down, writing only those that are missing: `only` that one, or
/// all there are.
///
/// That one cannot be enabled is no error: whoever needs its files finds them
/// missing and says which limit that was for. Returns what it did not manage,
/// as a hint for that message.
pub(crate) fn enable(hierarchy: &Hierarchy, only: Option<&str>) -> Hint {
    let mut hint = Hint::none();
    let Ok(mut current) = dir::open_mount(hierarchy.mount_point()) else {
        return hint;
    };
    let mut path = hierarchy.mount_point().to_owned();
    let (parents, _) = hierarchy.split();
    let mut names = parents.iter();
    loop {
        if let Err(failure) = enable_at(&current, only)
            && hint == Hint::none()
        {
            hint = explain(&path, &failure);
        }
        let Some(name) = names.next() else {
            return hint;
        };
        let Ok(child) = dir::open_child(&current, Path::new(name)) else {
            return hint;
        };
        path.push(name);
        current = child;
    }
}

#[derive(Debug)]
struct Failure {
    controllers: String,
    errno: Errno,
}

fn enable_at(cgroup: &std::os::fd::OwnedFd, only: Option<&str>) -> Result<(), Failure> {
    let failure = |errno| Failure { controllers: only.unwrap_or("controllers").to_owned(), errno };
    let offered = dir::read_file(cgroup, "cgroup.controllers").map_err(failure)?;
    let enabled = dir::read_file(cgroup, "cgroup.subtree_control").map_err(failure)?;
    let missing = missing(&offered, &enabled, only);
    if missing.is_empty() {
        return Ok(());
    }
    let write = |names: &[&str]| {
        let value = format!("+{}", names.join(" +"));
        dir::write_file(cgroup, "cgroup.subtree_control", value.as_bytes())
    };
    if write(&missing).is_ok() {
        return Ok(());
    }
    // All or nothing: one that cannot be enabled (cpu while there are realtime
    // processes, say) must not take the others with it.
    let mut result = Ok(());
    for name in &missing {
        if let Err(errno) = write(&[name])
            && result.is_ok()
        {
            result = Err(Failure { controllers: (*name).to_owned(), errno });
        }
    }
    result
}

fn missing<'a>(offered: &'a str, enabled: &str, only: Option<&str>) -> Vec<&'a str> {
    let is_enabled = |name: &&str| enabled.split_whitespace().any(|other| other == *name);
    let is_wanted = |name: &&str| only.is_none_or(|only| only == *name);
    offered.split_whitespace().filter(is_wanted).filter(|name| !is_enabled(name)).collect()
}

fn explain(cgroup: &Path, failure: &Failure) -> Hint {
    let file: PathBuf = cgroup.join("cgroup.subtree_control");
    let Failure { controllers, errno } = failure;
    Hint::new(match *errno {
        Errno::BUSY => format!(
            "{} has processes of its own, so it cannot give {controllers} to its children: move them to a child",
            cgroup.display()
        ),
        Errno::OPNOTSUPP | Errno::INVAL => {
            format!("{} cannot take +{controllers}: {errno}; see its cgroup.type", file.display())
        }
        _ => format!("enable {controllers} in {}: {errno}", file.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_enabled() {
        assert_eq!(missing("cpu io memory\n", "memory\n", None), ["cpu", "io"]);
        assert_eq!(missing("cpu io memory\n", "", Some("io")), ["io"]);
        assert!(missing("cpu io\n", "io", Some("io")).is_empty());
        assert!(missing("cpu\n", "", Some("hugetlb")).is_empty());
    }

    #[test]
    fn every_ancestor_gets_what_it_lacks() {
        let root = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy::for_test(true, &["cpu", "io"], root.path()).moved("a/b/c");
        let level = |path: &str, enabled: &str| {
            let dir = root.path().join(path);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("cgroup.controllers"), "cpu io\n").unwrap();
            std::fs::write(dir.join("cgroup.subtree_control"), enabled).unwrap();
        };
        let control = |path: &str| {
            std::fs::read_to_string(root.path().join(path).join("cgroup.subtree_control")).unwrap()
        };
        level("", "cpu io");
        level("a", "cpu");
        level("a/b", "");
        level("a/b/c", "");
        assert_eq!(enable(&hierarchy, None), Hint::none());
        // A real file would not keep what was written.
        assert_eq!(["", "a", "a/b", "a/b/c"].map(control), ["cpu io", "+io", "+cpu +io", ""]);
        level("a/b", "");
        enable(&hierarchy, Some("cpu"));
        assert_eq!(control("a/b"), "+cpu");
        std::fs::remove_file(root.path().join("a/cgroup.subtree_control")).unwrap();
        let hint = enable(&hierarchy, None).to_string();
        assert!(hint.contains("a/cgroup.subtree_control: No such file"), "{hint}");
    }

    #[test]
    fn hints_say_what_to_do() {
        let failure = Failure { controllers: "memory".into(), errno: Errno::BUSY };
        let hint = explain(Path::new("/sys/fs/cgroup/a"), &failure).to_string();
        assert!(hint.contains("/sys/fs/cgroup/a has processes of its own"), "{hint}");
    }
}
