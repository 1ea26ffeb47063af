//! Compiled modules: taken from kiln's cache, or compiled for the next time.
//!
//! A module that is not in the cache is interpreted at once, while a process of its own, outside
//! of the container's cgroup, compiles it. What that process cannot compile it does not try
//! again for an hour: an attempt leaves a note in the cache where the compiled module would be.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_wasm::cache::Cache;
use kiln_wasm::folder::{Folder, Libraries};
use kiln_wasm::key::{self, Key};
use kiln_wasm::module::Module;
use rustix::fs::MemfdFlags;

use crate::{compile, sys};

/// How long a module is left alone after an attempt to compile it.
const PAUSE: Duration = Duration::from_secs(3600);
/// Begins the note; the time in seconds follows. A compiled module is an ELF file.
const NOTE: &str = "kiln: compiling since ";
const ELF: &[u8] = b"\x7fELF";

/// What the cache has for a module.
#[derive(Debug)]
pub enum State {
    /// Compiled code, open.
    Compiled(OwnedFd),
    /// An attempt not long ago that has not ended, or not well.
    Tried,
    /// Nothing.
    Missing,
}

/// The cache's name for what this engine makes of `module` on this processor.
pub fn key(module: &Module) -> Key {
    let engine = format!("wasmedge-{}", sys::version());
    Key::new(&module.digest(), &engine, &key::cpu_features())
}

/// Looks `key` up.
pub fn state(cache: &Cache, key: &Key) -> Result<State, kiln_wasm::Error> {
    let Some(cached) = cache.lookup(key)? else {
        return Ok(State::Missing);
    };
    let file = File::from(cached.file);
    let mut start = [0; 64];
    // What cannot be read is compiled again, and replaced.
    let length = file.read_at(&mut start, 0).unwrap_or(0);
    if start[..length].starts_with(ELF) {
        return Ok(State::Compiled(file.into()));
    }
    match note_time(&start[..length]) {
        Some(then) if elapsed_since(then) < PAUSE => Ok(State::Tried),
        _ => Ok(State::Missing),
    }
}

/// Leaves a note in the cache that somebody tries to compile for `key`.
pub fn note_attempt(cache: &Cache, key: &Key) -> Result<(), Box<dyn std::error::Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let pending = cache.begin(key)?;
    let mut file = File::options().write(true).open(pending.path())?;
    writeln!(file, "{NOTE}{}", now.as_secs())?;
    pending.commit()?;
    Ok(())
}

fn note_time(start: &[u8]) -> Option<SystemTime> {
    let seconds = std::str::from_utf8(start).ok()?.strip_prefix(NOTE)?.trim_end();
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))
}

/// Zero if the clock was set back: then the pause is as long again.
fn elapsed_since(then: SystemTime) -> Duration {
    SystemTime::now().duration_since(then).unwrap_or_default()
}

/// Looks `module` up in the cache of this host, and has it compiled if it is not there.
///
/// Nothing of this is needed to run it: what fails is logged.
pub fn compiled(module: &Module, folder: Option<&Folder>) -> Option<OwnedFd> {
    let found = Cache::open().and_then(|cache| {
        let key = key(module);
        let state = state(&cache, &key)?;
        // Whoever has the lock is compiling it.
        let missing = matches!(state, State::Missing) && cache.try_lock(&key)?.is_some();
        Ok((state, missing))
    });
    let (state, missing) = match found {
        Ok(found) => found,
        // An ordinary user has no cache unless a directory for it is set.
        Err(error @ kiln_wasm::Error::Cache { .. }) => {
            log::info!("no compiled modules: {error}");
            return None;
        }
        Err(error) => {
            log::warn!("no compiled modules: {error}");
            return None;
        }
    };
    if let (true, Some(folder)) = (missing, folder)
        && let Err(error) = compile_in_background(module, folder)
    {
        log::warn!("compile {}: {error}", module.path().display());
    }
    match state {
        State::Compiled(file) => Some(file),
        State::Tried | State::Missing => None,
    }
}

/// As [`compiled`], from inside a container's init, which neither makes a cache nor compiles.
pub fn compiled_before(module: &Module) -> Option<OwnedFd> {
    let cache = Cache::open_existing().ok()??;
    match state(&cache, &key(module)).ok()? {
        State::Compiled(file) => Some(file),
        State::Tried | State::Missing => None,
    }
}

/// As [`compiled`], for whoever runs the module for long: where there is nothing yet, returns a socket on
/// which the compiled code comes, as a descriptor with one byte, or which is closed without.
pub fn compiled_or_promised(
    module: &Module,
    folder: Option<&Folder>,
) -> (Option<OwnedFd>, Option<OwnedFd>) {
    let found = Cache::open().and_then(|cache| state(&cache, &key(module)));
    match (found, folder) {
        (Ok(State::Compiled(file)), _) => (Some(file), None),
        (Ok(State::Missing | State::Tried), Some(folder)) => {
            let promise = promise(module, folder);
            let path = module.path().display();
            (None, promise.inspect_err(|error| log::warn!("compile {path}: {error}")).ok())
        }
        (Ok(_), None) => (None, None),
        (Err(error), _) => {
            log::info!("no compiled modules: {error}");
            (None, None)
        }
    }
}

fn promise(module: &Module, folder: &Folder) -> std::io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let compiler =
        folder.command(Libraries::Compile, [compile::COMMAND.into(), compile::TELL.into()]);
    sys::process::spawn_detached(&compiler, input(module)?, Some(theirs.into()))?;
    Ok(ours.into())
}

/// The compiler gets the bytes that were checked, not the file: the container may change that.
fn compile_in_background(module: &Module, folder: &Folder) -> std::io::Result<()> {
    let compiler = folder.command(Libraries::Compile, [compile::COMMAND.into()]);
    sys::process::spawn_detached(&compiler, input(module)?, None)
}

fn input(module: &Module) -> std::io::Result<OwnedFd> {
    let mut input = File::from(rustix::fs::memfd_create("module", MemfdFlags::CLOEXEC)?);
    input.write_all(module.bytes())?;
    Ok(input.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn module() -> Module {
        let bytes = wat::parse_str("(module)").unwrap();
        Module::from_bytes(Path::new("/app.wasm"), bytes, false).unwrap()
    }

    fn put(cache: &Cache, key: &Key, content: &[u8]) {
        let pending = cache.begin(key).unwrap();
        std::fs::write(pending.path(), content).unwrap();
        pending.commit().unwrap();
    }

    #[test]
    fn states_of_an_entry() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create_at(dir.path(), 1 << 20).unwrap();
        let key = key(&module());
        assert!(matches!(state(&cache, &key).unwrap(), State::Missing));
        note_attempt(&cache, &key).unwrap();
        assert!(matches!(state(&cache, &key).unwrap(), State::Tried));
        put(&cache, &key, format!("{NOTE}1000\n").as_bytes());
        assert!(matches!(state(&cache, &key).unwrap(), State::Missing), "long ago");
        put(&cache, &key, b"torn");
        assert!(matches!(state(&cache, &key).unwrap(), State::Missing), "no code");
        put(&cache, &key, b"\x7fELF...");
        assert!(matches!(state(&cache, &key).unwrap(), State::Compiled(_)));
    }
}
