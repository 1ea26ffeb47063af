//! What is in the cache of compiled modules, and making room in it: `kiln aot list` and
//! `kiln aot prune`.

use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use crate::Error;
use crate::cache::{Cache, TEMPORARY, failed};
use crate::key;

/// A file that is being written this long belongs to a compiler that died.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A compiled module in the cache.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// SHA-256 of the module it was compiled from, in hexadecimal digits.
    pub digest: String,
    /// The engine's name and version.
    pub engine: String,
    /// A short hash of the processor's features.
    pub processor: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was looked up or added last.
    pub last_used: SystemTime,
}

/// What to remove from the cache.
#[derive(Clone, Copy, Debug)]
pub enum Prune {
    /// Everything.
    All,
    /// What was not used for so long.
    UnusedFor(Duration),
    /// What was not used for the longest time, until so many bytes or fewer remain.
    ToBytes(u64),
}

impl Cache {
    /// All compiled modules, the last used first.
    ///
    /// # Errors
    /// [`Error::Cache`]: the directory could not be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.files()?.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Removes compiled modules and returns them. A container that runs one keeps it. Also
    /// removes what compilers that died left behind.
    ///
    /// # Errors
    /// [`Error::Cache`]: the directory could not be read or a file not removed.
    pub fn prune(&self, what: Prune) -> Result<Vec<Entry>, Error> {
        self.remove_leftovers()?;
        let mut files = self.files()?;
        match what {
            Prune::All => (),
            Prune::UnusedFor(age) => files.retain(|(_, entry)| {
                let unused = entry.last_used.elapsed();
                unused.is_ok_and(|unused| unused >= age)
            }),
            Prune::ToBytes(limit) => keep_beyond(limit, &mut files),
        }
        self.remove(files)
    }

    /// Makes the cache as small as `limit` bytes, not counting the file `except`.
    pub(crate) fn make_room(&self, limit: u64, except: &str) -> Result<(), Error> {
        let mut files = self.files()?;
        files.retain(|(name, _)| name != except);
        keep_beyond(limit, &mut files);
        self.remove(files).map(drop)
    }

    /// The files of compiled modules, the last used first.
    fn files(&self) -> Result<Vec<(String, Entry)>, Error> {
        let names = self.names()?.into_iter();
        let mut files: Vec<_> = names.filter_map(|(name, stat)| entry(name, &stat)).collect();
        files.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.last_used));
        Ok(files)
    }

    /// Every regular file in the cache's directory.
    fn names(&self) -> Result<Vec<(String, Stat)>, Error> {
        let mut names = Vec::new();
        for item in Dir::read_from(&self.dir).map_err(failed(&self.path, "read"))? {
            let item = item.map_err(failed(&self.path, "read"))?;
            let Ok(name) = item.file_name().to_str() else {
                continue;
            };
            match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                    names.push((name.to_owned(), stat));
                }
                Ok(_) | Err(Errno::NOENT) => (), // removed by another process meanwhile
                Err(errno) => return Err(failed(&self.path.join(name), "stat")(errno)),
            }
        }
        Ok(names)
    }

    fn remove(&self, files: Vec<(String, Entry)>) -> Result<Vec<Entry>, Error> {
        let mut removed = Vec::new();
        for (name, entry) in files {
            if self.unlink(&name)? {
                removed.push(entry);
            }
        }
        Ok(removed)
    }

    fn remove_leftovers(&self) -> Result<(), Error> {
        for (name, stat) in self.names()? {
            let age = modified(&stat).elapsed().unwrap_or_default();
            if name.ends_with(TEMPORARY) && age >= ABANDONED {
                self.unlink(&name)?;
            } else if name.ends_with(".lock") {
                self.remove_stale_lock(name)?;
            }
        }
        Ok(())
    }

    /// Removes a file; false if another process has done so.
    fn unlink(&self, name: &str) -> Result<bool, Error> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed(&self.path.join(name), "unlink")(errno)),
            Ok(()) => Ok(true),
        }
    }
}

/// Keeps those files, of a list that begins with the last used, that do not fit into `limit`
/// bytes together with the ones before them.
fn keep_beyond(limit: u64, files: &mut Vec<(String, Entry)>) {
    let mut total: u64 = 0;
    files.retain(|(_, entry)| {
        total = total.saturating_add(entry.size_bytes);
        total > limit
    });
}

fn entry(name: String, stat: &Stat) -> Option<(String, Entry)> {
    let (digest, engine, processor) = key::parse(&name)?;
    let entry = Entry {
        digest: digest.to_owned(),
        engine: engine.to_owned(),
        processor: processor.to_owned(),
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        last_used: modified(stat),
    };
    Some((name, entry))
}

fn modified(stat: &Stat) -> SystemTime {
    let secs = u64::try_from(stat.st_mtime).unwrap_or(0);
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::new(secs, nanos)
}
