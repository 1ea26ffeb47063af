//! Where a container's entrypoint is, opened without ever leaving the container.
//!
//! The entrypoint is looked up as execvp(3) would inside the container, and then, as crun does
//! for wasm, below the working directory and the root. It need not be executable.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::Error;
use crate::detect::MAGIC;
use crate::view::{Found, View};

/// What execvp(3) searches where the environment has no PATH, see confstr(3), _CS_PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// An entrypoint's file.
#[derive(Debug)]
pub struct Entrypoint {
    /// The regular file, open for reading at its start.
    pub file: OwnedFd,
    /// Its path inside the container, for messages; symbolic links are not resolved in it.
    pub path: PathBuf,
}

/// What [`locate`] found.
#[derive(Debug)]
pub enum Located {
    /// The file.
    Found(Entrypoint),
    /// The entrypoint lies in a mount whose content can be seen only once it is in place.
    Deferred(Candidates),
}

/// The paths at which an entrypoint is looked for, in order.
#[derive(Clone, Debug)]
pub struct Candidates {
    entrypoint: String,
    paths: Vec<PathBuf>,
}

/// Opens the entrypoint of a container that does not exist yet. `rootfs` is its root directory
/// without the spec's mounts; where a bind mount of the spec will cover the path, the file is
/// taken from that mount's source, and where another mount will, the answer is
/// [`Located::Deferred`]. A later mount covers an earlier one.
///
/// Symbolic links are followed as they will be inside the container; links of procfs are not
/// followed at all. Needs openat2(2), Linux 5.6.
///
/// # Errors
/// - [`Error::NoEntrypoint`]: the spec has no process or the process no arguments.
/// - [`Error::NotFound`]: no candidate exists; the error lists them.
/// - [`Error::NotRegular`]: the one that exists is a directory, device, fifo or socket.
/// - [`Error::Entrypoint`]: it could not be looked up or opened.
pub fn locate(spec: &Spec, rootfs: BorrowedFd<'_>) -> Result<Located, Error> {
    let candidates = Candidates::of(spec)?;
    let view = View::with_mounts(spec, rootfs)
        .map_err(|errno| Error::entrypoint(Path::new("/"), "look up the mounts", errno))?;
    match candidates.search(&view)? {
        Some(entrypoint) => Ok(Located::Found(entrypoint)),
        None => Ok(Located::Deferred(candidates)),
    }
}

impl Candidates {
    /// The paths to try for the entrypoint of a spec, absolute inside the container.
    ///
    /// # Errors
    /// [`Error::NoEntrypoint`].
    pub fn of(spec: &Spec) -> Result<Self, Error> {
        let process = spec.process().as_ref().ok_or(Error::NoEntrypoint)?;
        let entrypoint = process.args().as_ref().and_then(|args| args.first());
        let entrypoint = entrypoint.filter(|name| !name.is_empty()).ok_or(Error::NoEntrypoint)?;
        Ok(Candidates { entrypoint: entrypoint.clone(), paths: paths(process, entrypoint) })
    }

    /// Opens the entrypoint below a `rootfs` that has the mounts in place.
    ///
    /// # Errors
    /// As for [`locate`], but for [`Error::NoEntrypoint`].
    pub fn open(&self, rootfs: BorrowedFd<'_>) -> Result<Entrypoint, Error> {
        self.search(&View::without_mounts(rootfs))?.ok_or_else(|| self.not_found())
    }

    /// The first candidate that is a regular file; `None` if one that comes before may be.
    fn search(&self, view: &View<'_>) -> Result<Option<Entrypoint>, Error> {
        let mut irregular = None;
        for path in &self.paths {
            let open = view.open(path).map_err(|errno| Error::entrypoint(path, "open", errno))?;
            match open {
                Found::File(file) => {
                    return Ok(Some(Entrypoint { file, path: path.clone() }));
                }
                Found::Hidden => return Ok(None),
                Found::Missing => (),
                Found::Other(kind) => {
                    let kind = name_of(kind);
                    irregular.get_or_insert(Error::NotRegular { path: path.clone(), kind });
                }
            }
        }
        Err(irregular.unwrap_or_else(|| self.not_found()))
    }

    fn not_found(&self) -> Error {
        Error::NotFound { entrypoint: self.entrypoint.clone(), looked: self.paths.clone() }
    }
}

impl Entrypoint {
    /// Whether the file begins as every wasm binary does. Reads four bytes and leaves the
    /// file's position alone.
    ///
    /// # Errors
    /// [`Error::Entrypoint`]: the file could not be read.
    pub fn starts_with_magic(&self) -> Result<bool, Error> {
        let mut start = [0; MAGIC.len()];
        let mut have = 0;
        while have < start.len() {
            match rustix::io::pread(&self.file, &mut start[have..], have as u64) {
                Ok(0) => return Ok(false),
                Ok(len) => have += len,
                Err(Errno::INTR) => (),
                Err(errno) => return Err(Error::entrypoint(&self.path, "read", errno)),
            }
        }
        Ok(start == MAGIC)
    }
}

fn paths(process: &Process, entrypoint: &str) -> Vec<PathBuf> {
    let root = Path::new("/");
    // join() takes an absolute right side alone.
    let cwd = root.join(process.cwd());
    if entrypoint.contains('/') {
        return vec![cwd.join(entrypoint)];
    }
    let env = process.env().iter().flatten();
    let path = env.filter_map(|entry| entry.strip_prefix("PATH=")).next_back();
    let along_path = path.unwrap_or(DEFAULT_PATH).split(':').map(|dir| cwd.join(dir));
    let mut paths: Vec<PathBuf> = Vec::new();
    for dir in along_path.chain([cwd.clone(), root.to_owned()]) {
        let path = dir.join(entrypoint);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Symlink => "symbolic link",
        FileType::RegularFile | FileType::Unknown => "file of unknown type",
    }
}

#[cfg(test)]
mod tests;
