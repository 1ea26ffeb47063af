//! The command that compiles modules into the cache. It runs in a process of its own, with the
//! real libLLVM.
//!
//! Without arguments it takes a module from its standard input, which is how kiln starts it in
//! the background: it says nothing, and leaves at once if another process compiles the same.
//! With arguments, which name files, it waits for such a process and reports on each file.

use std::ffi::{CString, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_wasm::Error;
use kiln_wasm::cache::{Cache, KeyLock};
use kiln_wasm::key::Key;
use kiln_wasm::locate::Entrypoint;
use kiln_wasm::module::Module;
use rustix::fs::{CWD, Mode, OFlags};

use crate::aot::{self, State};
use crate::load;
use crate::sys::{self, Wasi};

/// The name of the command. Not one of kiln's: `kiln aot` is what users type.
pub const COMMAND: &str = "aot-compile";

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The command, without its name.
pub fn main(modules: impl Iterator<Item = OsString>) -> ExitCode {
    sys::log_errors(false);
    let mut modules = modules.map(PathBuf::from).peekable();
    if modules.peek().is_none() {
        return ExitCode::from(u8::from(in_background().is_err()));
    }
    let mut code = ExitCode::SUCCESS;
    for path in modules {
        match Cache::open().map_err(Into::into).and_then(|cache| warm(&cache, &path)) {
            Ok(compiled) => println!("{}: {}", path.display(), compiled.display()),
            Err(error) => {
                eprintln!("kiln: {}: {error}", path.display());
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn in_background() -> Outcome<()> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let module = Module::from_bytes(Path::new("stdin"), bytes, false)?;
    let cache = Cache::open()?;
    let key = aot::key(&module);
    if let Some(lock) = cache.try_lock(&key)?
        && matches!(aot::state(&cache, &key)?, State::Missing)
    {
        compile(&module, &cache, &key, &lock)?;
    }
    Ok(())
}

/// Compiles the module at `path` unless it is in the cache; returns where it is there.
fn warm(cache: &Cache, path: &Path) -> Outcome<PathBuf> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let module = Module::read(Entrypoint { file, path: path.to_owned() }, false)?;
    let key = aot::key(&module);
    let lock = cache.lock(&key)?;
    match aot::state(cache, &key)? {
        State::Compiled(file) => {
            Ok(std::fs::read_link(format!("/proc/self/fd/{}", number(&file)))?)
        }
        // The user has asked for it, whatever came of it before.
        State::Tried | State::Missing => compile(&module, cache, &key, &lock),
    }
}

fn number(file: &impl AsFd) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_fd().as_raw_fd()
}

/// Compiles what a container could run, and nothing else.
fn compile(module: &Module, cache: &Cache, key: &Key, _lock: &KeyLock<'_>) -> Outcome<PathBuf> {
    load::check(module, &Wasi::default())?;
    aot::note_attempt(cache, key)?;
    let pending = cache.begin(key)?;
    let output = CString::new(pending.path().as_os_str().as_bytes())?;
    load::with_proposals(module, true, |config| sys::compile(config, module.bytes(), &output))?;
    let compiled = pending.commit();
    Ok(compiled.map_err(|error: Error| error)?.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Loaded;
    use crate::sys::Ending;

    /// Exits with the length of its first argument.
    const EXIT: &str = r#"(module
        (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func $leave (call $exit (i32.sub (i32.load (i32.const 4)) (i32.const 1))))
        (func (export "_start")
            (drop (call $sizes (i32.const 0) (i32.const 4))) (call $leave) unreachable))"#;

    fn compiled(cache: &Cache, text: &str) -> Outcome<Module> {
        let file = tempfile::Builder::new().suffix(".wat").tempfile()?;
        std::fs::write(file.path(), text)?;
        let path = warm(cache, file.path())?;
        assert_eq!(path.parent().unwrap(), cache.path());
        let bytes = wat::parse_str(text)?;
        Ok(Module::from_bytes(file.path(), bytes, false)?)
    }

    #[test]
    fn compiled_modules_keep_every_exit_status() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create_at(dir.path(), 1 << 30).unwrap();
        let module = compiled(&cache, EXIT).unwrap();
        let State::Compiled(file) = aot::state(&cache, &aot::key(&module)).unwrap() else {
            panic!("not in the cache");
        };
        let mut loaded = Loaded::new(&module, Some(&file)).unwrap();
        assert!(load::native(&module, &file).is_some());
        for status in 0..=255 {
            let argument = CString::new(vec![b'x'; status]).unwrap();
            loaded.wasi().provide(&[argument], &[], &[]);
            assert_eq!(loaded.run(), Ending::Exit(status as u32));
        }
        // Again, from the cache.
        compiled(&cache, EXIT).unwrap();
    }

    #[test]
    fn what_cannot_be_run_is_not_compiled() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create_at(dir.path(), 1 << 30).unwrap();
        let error = compiled(&cache, "(module (func (export \"run\")))").unwrap_err();
        assert!(error.to_string().contains("_start"), "{error}");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}
