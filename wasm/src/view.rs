//! The container's file system as it will look once the spec's mounts are in place, seen from
//! the host before any of them is.
//!
//! Symbolic links are followed here, one component at a time, because each may lead from the
//! rootfs into a bind mount or back. What the kernel is asked to open is always a path without
//! symbolic links, below a directory that the spec names: a link that is exchanged for another
//! meanwhile makes the lookup fail, never leave the container.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::io::Errno;

/// As many symbolic links as the kernel follows, path_resolution(7).
const MAX_LINKS: usize = 40;

/// For the last step only: what is opened may turn out to be a device or a fifo.
const OPEN: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// What is at a path.
pub(crate) enum Found {
    /// A regular file, open for reading.
    File(OwnedFd),
    /// Something else.
    Other(FileType),
    /// Nothing.
    Missing,
    /// Only the mount that covers the path can tell, once it is there.
    Hidden,
}

/// A rootfs below the mounts of a spec.
pub(crate) struct View<'a> {
    rootfs: BorrowedFd<'a>,
    mounts: Vec<Covering>,
}

/// One mount, at its destination with all links resolved, relative to the container's root.
struct Covering {
    destination: PathBuf,
    content: Content,
}

enum Content {
    /// A directory of the host.
    Tree { dir: OwnedFd, recursive: bool },
    /// A file of the host.
    File(PathBuf),
    /// Not there yet, or not to be seen from here.
    Hidden,
}

/// Where on the host a resolved path of the container is to be found.
enum Place<'a> {
    Below { dir: BorrowedFd<'a>, path: PathBuf, resolve: ResolveFlags },
    File(&'a Path),
    Missing,
    Hidden,
}

/// What is at a resolved path, without opening it.
enum Node {
    Is(FileType),
    Link(PathBuf),
    Missing,
    Hidden,
}

impl<'a> View<'a> {
    /// The rootfs alone: also what a container's init sees below its root once the mounts are
    /// in place.
    pub(crate) fn without_mounts(rootfs: BorrowedFd<'a>) -> Self {
        View { rootfs, mounts: Vec::new() }
    }

    /// The rootfs below the spec's mounts. The sources of bind mounts are opened; one that
    /// cannot be is left to the mount itself to report.
    pub(crate) fn with_mounts(spec: &Spec, rootfs: BorrowedFd<'a>) -> Result<Self, Errno> {
        let mut view = View::without_mounts(rootfs);
        for mount in spec.mounts().iter().flatten() {
            // In the order of the spec: a destination is looked up below the earlier mounts.
            let (destination, _) = view.walk(mount.destination())?;
            view.mounts.push(Covering { destination, content: content(mount) });
        }
        Ok(view)
    }

    /// Opens the regular file at `path`, absolute inside the container.
    pub(crate) fn open(&self, path: &Path) -> Result<Found, Errno> {
        let (resolved, node) = self.walk(path)?;
        match node {
            Node::Missing => return Ok(Found::Missing),
            Node::Hidden => return Ok(Found::Hidden),
            // Before it is opened: opening a device can have effects.
            Node::Is(kind) if kind != FileType::RegularFile => return Ok(Found::Other(kind)),
            Node::Is(_) => (),
            Node::Link(_) => return Err(Errno::LOOP), // walk() returns none
        }
        let file = match self.place(&resolved) {
            Place::Below { dir, path, resolve } => {
                rustix::fs::openat2(dir, path, OPEN | OFlags::NOFOLLOW, Mode::empty(), resolve)?
            }
            Place::File(source) => rustix::fs::openat(CWD, source, OPEN, Mode::empty())?,
            Place::Missing => return Ok(Found::Missing),
            Place::Hidden => return Ok(Found::Hidden),
        };
        // It may have been exchanged since walk() looked.
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(Found::File(file)),
            kind => Ok(Found::Other(kind)),
        }
    }

    /// Follows `path` from the container's root. Behind a component that is missing or hidden,
    /// the rest is taken as it is written, up to the next mount. Returns the path without links, relative to
    /// the root, and what is there.
    fn walk(&self, path: &Path) -> Result<(PathBuf, Node), Errno> {
        let mut todo = steps(path);
        let mut at = PathBuf::new();
        let mut node = Node::Is(FileType::Directory);
        let mut links = 0;
        while let Some(step) = todo.pop() {
            if step == ".." {
                at.pop();
                if matches!(node, Node::Is(kind) if kind != FileType::Directory) {
                    node = Node::Missing;
                }
                continue;
            }
            at.push(step);
            match node {
                Node::Is(FileType::Directory) => node = self.look(&at)?,
                Node::Is(_) => node = Node::Missing, // something below a file
                // Where something is mounted, there will be a directory for it.
                Node::Missing | Node::Hidden if self.is_destination(&at) => {
                    node = self.look(&at)?;
                }
                Node::Link(_) | Node::Missing | Node::Hidden => (),
            }
            if let Node::Link(target) = node {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                at.pop();
                if target.is_absolute() {
                    at.clear();
                }
                todo.extend(steps(&target));
                node = Node::Is(FileType::Directory);
            }
        }
        Ok((at, node))
    }

    fn is_destination(&self, at: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.destination == at)
    }

    /// What is at `at`, a path without links.
    fn look(&self, at: &Path) -> Result<Node, Errno> {
        let file = match self.place(at) {
            Place::Missing => return Ok(Node::Missing),
            Place::Hidden => return Ok(Node::Hidden),
            Place::File(source) => {
                let stat = rustix::fs::stat(source)?;
                return Ok(Node::Is(FileType::from_raw_mode(stat.st_mode)));
            }
            Place::Below { dir, path, resolve } => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Node::Missing),
                    Err(Errno::XDEV) => return Ok(Node::Hidden),
                    file => file?,
                }
            }
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::Symlink => {
                // Some links of procfs lead where their text does not say.
                if rustix::fs::fstatfs(&file)?.f_type == PROC_SUPER_MAGIC {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&file, "", Vec::new())?;
                Ok(Node::Link(PathBuf::from(OsString::from_vec(target.into_bytes()))))
            }
            kind => Ok(Node::Is(kind)),
        }
    }

    fn place(&self, at: &Path) -> Place<'_> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // The last one: a later mount covers whatever is at and below its destination.
        let covering = self.mounts.iter().rev().find_map(|mount| {
            at.strip_prefix(&mount.destination).ok().map(|rest| (&mount.content, rest))
        });
        match covering {
            None => Place::Below { dir: self.rootfs, path: or_dot(at), resolve },
            Some((Content::Hidden, _)) => Place::Hidden,
            Some((Content::File(source), rest)) if rest.as_os_str().is_empty() => {
                Place::File(source)
            }
            Some((Content::File(_), _)) => Place::Missing,
            Some((Content::Tree { dir, recursive }, rest)) => {
                // Without rbind, what is mounted below the source on the host stays there.
                let xdev = if *recursive { ResolveFlags::empty() } else { ResolveFlags::NO_XDEV };
                Place::Below { dir: dir.as_fd(), path: or_dot(rest), resolve: resolve | xdev }
            }
        }
    }
}

/// What a mount will show. The source of a bind mount is the host's own path and followed as
/// mount(2) does. One relative to the bundle cannot be found from here.
fn content(mount: &Mount) -> Content {
    let option = |name: &str| mount.options().iter().flatten().any(|option| option == name);
    let recursive = option("rbind");
    let is_bind = recursive || option("bind") || mount.typ().as_deref() == Some("bind");
    let Some(source) = mount.source().as_ref().filter(|path| is_bind && path.is_absolute()) else {
        return Content::Hidden;
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, source, flags, Mode::empty())
        .and_then(|file| Ok((FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode), file)));
    match opened {
        Ok((FileType::Directory, dir)) => Content::Tree { dir, recursive },
        Ok(_) => Content::File(source.clone()),
        Err(_) => Content::Hidden,
    }
}

/// The components of a path in reverse, without `/` and `.`.
fn steps(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

fn or_dot(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() }
}
