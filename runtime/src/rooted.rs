//! Paths inside the rootfs, resolved so that nothing outside it can be reached.
//!
//! Every look-up is one openat2(2) with RESOLVE_IN_ROOT: symlinks, absolute ones and `..` too, are
//! taken relative to the rootfs by the kernel itself, and magic links (/proc/self/fd/N) are
//! refused. What is found is worked on through its descriptor; a path is never resolved again.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A directory that acts as `/` for every path given to the methods.
#[derive(Debug)]
pub struct Rooted<'a>(BorrowedFd<'a>);

/// How many dangling symlinks may be followed while directories are made (as many as the kernel
/// follows in one look-up).
const MAX_SYMLINKS: usize = 40;
/// RESOLVE_IN_ROOT gives up with EAGAIN when something was renamed meanwhile; a peer that renames
/// in a loop must not hold us up for ever.
const MAX_RETRIES: usize = 128;

impl<'a> Rooted<'a> {
    /// Takes `root` as `/`.
    pub fn new(root: &'a impl AsFd) -> Self {
        Self(root.as_fd())
    }

    /// Opens `path` inside the root; close-on-exec.
    ///
    /// # Errors
    /// Those of openat2(2); ELOOP for a magic link.
    pub fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, Mode::empty(), ResolveFlags::empty())
    }

    /// Like [`Self::open`], but any symlink on the way is ELOOP.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn open_real(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
    }

    fn open_with(
        &self,
        path: &Path,
        flags: OFlags,
        mode: Mode,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(self.0, path, flags, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < MAX_RETRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// Opens the directory `path` (O_PATH), making it and its parents (mode 0755) where missing.
    ///
    /// # Errors
    /// Those of openat2(2) and mkdirat(2); ENOTDIR if something else is there.
    pub fn make_dirs(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        // Most often only the last one is missing, and nothing is in its place.
        if let (Some(name), Some(parent)) = (path.file_name(), path.parent()) {
            let parent = self.open(parent, OFlags::PATH | OFlags::DIRECTORY);
            let mode = Mode::from_raw_mode(0o755);
            if let Ok(parent) = parent
                && rustix::fs::mkdirat(&parent, name, mode).is_ok()
            {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                return rustix::fs::openat(&parent, name, flags | OFlags::CLOEXEC, mode);
            }
        }
        self.make_missing_dirs(path)
    }

    fn make_missing_dirs(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut pending = components(path);
        let mut retries = 0;
        let mut done = PathBuf::new();
        let mut current = self.open(Path::new("."), OFlags::PATH | OFlags::DIRECTORY)?;
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let next = done.join(&name);
            // Resolved from the root each time: `current` may have been moved, and only the root
            // is a boundary for `..` and symlinks.
            match self.open(&next, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(fd) => {
                    current = fd;
                    done = next;
                    continue;
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
            // Each name is made once; more often only if a peer removes it all the time.
            retries += 1;
            if retries > MAX_RETRIES + path.as_os_str().len() {
                return Err(Errno::AGAIN);
            }
            match rustix::fs::mkdirat(&current, &*name, Mode::from_raw_mode(0o755)) {
                // Made by us, or by somebody at the same moment.
                Ok(()) => pending.push(name),
                // ENOENT above and EEXIST here: a symlink that leads to nothing yet, such as
                // /var/run -> /run in an image without /run. Make what it leads to.
                Err(Errno::EXIST) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = match rustix::fs::readlinkat(&current, &*name, Vec::new()) {
                        Ok(target) => PathBuf::from(OsStr::from_bytes(target.as_bytes())),
                        Err(Errno::INVAL) => {
                            pending.push(name);
                            continue;
                        }
                        Err(errno) => return Err(errno),
                    };
                    if target.is_absolute() {
                        done = PathBuf::new();
                    }
                    current = self.open(&done, OFlags::PATH | OFlags::DIRECTORY)?;
                    pending.extend(components(&target));
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(current)
    }

    /// Opens `path` (O_PATH) as the target of a mount on a file, making an empty file, and its
    /// parents, where nothing is; at the end of a symlink that dangles, too.
    ///
    /// # Errors
    /// Those of [`Self::make_dirs`] and mknodat(2); EISDIR if a directory is there.
    pub fn make_file(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut path = path.to_owned();
        for _ in 0..MAX_SYMLINKS {
            match self.open(&path, OFlags::PATH) {
                Err(Errno::NOENT) => {}
                other => return other,
            }
            let (parent, name) = self.make_parent(&path)?;
            let mode = Mode::from_raw_mode(0o755);
            match rustix::fs::mknodat(&parent, &*name, FileType::RegularFile, mode, 0) {
                Ok(()) => return open_no_follow(&parent, &name),
                // A symlink that leads to nothing yet: make what it leads to.
                Err(Errno::EXIST) => match rustix::fs::readlinkat(&parent, &*name, Vec::new()) {
                    Ok(target) => {
                        path.pop();
                        path.push(OsStr::from_bytes(target.as_bytes()));
                    }
                    // Somebody made it at the same moment.
                    Err(Errno::INVAL) => return open_no_follow(&parent, &name),
                    Err(errno) => return Err(errno),
                },
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::LOOP)
    }

    /// Makes the parent of `path` where missing and returns it (O_PATH) with the last name.
    ///
    /// # Errors
    /// Those of [`Self::make_dirs`]; EISDIR for a path without a last name.
    pub fn make_parent(&self, path: &Path) -> Result<(OwnedFd, std::ffi::OsString), Errno> {
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        let parent = self.make_dirs(path.parent().unwrap_or(Path::new(".")))?;
        Ok((parent, name))
    }
}

/// The names in `path`, last first; `..` stays, the kernel bounds it at the root.
fn components(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

/// Opens `name` in `dir` (O_PATH) itself, even if it is a symlink.
fn open_no_follow(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let fd = rustix::fs::open(dir.path().join("root"), OFlags::PATH, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn makes_directories_and_files_inside_only() {
        let (dir, fd) = root();
        let rooted = Rooted::new(&fd);
        rooted.make_dirs(Path::new("/a/b/c")).unwrap();
        rooted.make_dirs(Path::new("../../x")).unwrap();
        rooted.make_file(Path::new("/a/f/file")).unwrap();
        assert!(dir.path().join("root/a/b/c").is_dir());
        assert!(dir.path().join("root/x").is_dir() && !dir.path().join("x").exists());
        assert!(dir.path().join("root/a/f/file").is_file());
    }

    #[test]
    fn symlinks_stay_inside() {
        let (dir, fd) = root();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let root = dir.path().join("root");
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../../outside", root.join("relative")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let rooted = Rooted::new(&fd);
        rooted.make_dirs(Path::new("/absolute/d")).unwrap();
        rooted.make_dirs(Path::new("/relative/d")).unwrap();
        assert_eq!(rooted.make_dirs(Path::new("/loop/d")).unwrap_err(), Errno::LOOP);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(root.join("outside/d").is_dir());
        assert!(root.join(outside.strip_prefix("/").unwrap()).join("d").is_dir());
    }

    #[test]
    fn files_are_made_where_dangling_symlinks_lead() {
        let (dir, fd) = root();
        let root = dir.path().join("root");
        fs::create_dir(root.join("etc")).unwrap();
        symlink("/tmp/foo", root.join("jump")).unwrap();
        symlink("../jump/baz/hosts", root.join("etc/hosts")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let rooted = Rooted::new(&fd);
        rooted.make_file(Path::new("/etc/hosts")).unwrap();
        assert!(root.join("tmp/foo/baz/hosts").is_file());
        assert!(root.join("etc/hosts").is_symlink());
        assert_eq!(rooted.make_file(Path::new("/loop")).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn magic_links_are_refused() {
        let root = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        let path = Path::new("/proc/self/exe");
        assert_eq!(Rooted::new(&root).open(path, OFlags::PATH).unwrap_err(), Errno::LOOP);
        assert_eq!(Rooted::new(&root).open_real(path, OFlags::PATH).unwrap_err(), Errno::LOOP);
    }
}
