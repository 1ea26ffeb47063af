//! The command that compiles modules into the cache. It runs in a process of its own, with the
//! real libLLVM.
//!
//! Without arguments it takes a module from its standard input, which is how kiln starts it in
//! the background: it says nothing, and leaves at once if another process compiles the same.
//! Told to `--tell`, it waits for such a process, and in the end sends what is in the cache then to
//! the socket that is its standard output, as a descriptor: to a server of functions, which cannot
//! see the cache.
//!
//! With other arguments, which name files, it waits as well and reports on each file.

use std::ffi::{CString, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_wasm::cache::{Cache, KeyLock};
use kiln_wasm::key::Key;
use kiln_wasm::locate::Entrypoint;
use kiln_wasm::module::{INITIALIZE, Module, START};
use rustix::fs::{CWD, Mode, OFlags};

use crate::aot::{self, State};
use crate::load::{self, Entry};
use crate::sys::{self, Wasi};

/// The name of the command. Not one of kiln's: `kiln aot` is what users type.
pub const COMMAND: &str = "aot-compile";

/// See above.
pub const TELL: &str = "--tell";

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The command, without its name.
pub fn main(modules: impl Iterator<Item = OsString>) -> ExitCode {
    sys::log_errors(false);
    let mut modules = modules.map(PathBuf::from).peekable();
    if modules.next_if(|argument| argument == Path::new(TELL)).is_some() {
        return ExitCode::from(u8::from(in_background(true).is_err()));
    }
    if modules.peek().is_none() {
        return ExitCode::from(u8::from(in_background(false).is_err()));
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

fn in_background(tell: bool) -> Outcome<()> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let module = Module::from_bytes(Path::new("stdin"), bytes, false)?;
    let cache = Cache::open()?;
    let key = aot::key(&module);
    let lock = if tell { Some(cache.lock(&key)?) } else { cache.try_lock(&key)? };
    if let Some(lock) = lock
        && matches!(aot::state(&cache, &key)?, State::Missing)
    {
        compile(&module, &cache, &key, &lock)?;
    }
    if tell && let State::Compiled(file) = aot::state(&cache, &key)? {
        kiln_keeper::call::send(rustix::stdio::stdout(), b"c", &[file.as_fd()])?;
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
    let entry = match module.exports(INITIALIZE) && !module.exports(START) {
        true => Entry::Handler(INITIALIZE),
        false => Entry::Start,
    };
    load::check(module, &Wasi::default(), entry)?;
    aot::note_attempt(cache, key)?;
    let pending = cache.begin(key)?;
    let output = CString::new(pending.path().as_os_str().as_bytes())?;
    let bytes = without_custom_sections(module.bytes()).ok_or("malformed sections")?;
    load::with_proposals(module, true, |config| sys::compile(config, &bytes, &output))?;
    Ok(pending.commit()?.path)
}

/// The compiled module has the original in it, of which WasmEdge makes two copies whenever it
/// loads it. Names and debugging information, often most of a module, nobody reads there.
fn without_custom_sections(module: &[u8]) -> Option<Vec<u8>> {
    const CUSTOM: u8 = 0;
    let (header, mut rest) = module.split_at_checked(8)?;
    let mut kept = header.to_vec();
    while let Some((&id, after_id)) = rest.split_first() {
        let (size, content) = leb128(after_id)?;
        let (_, next) = content.split_at_checked(size)?;
        if id != CUSTOM {
            kept.extend_from_slice(&rest[..rest.len() - next.len()]);
        }
        rest = next;
    }
    Some(kept)
}

/// Reads a u32 in the encoding of WebAssembly, core specification, 5.2.2.
fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::load::{Loaded, Prepared};
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
        let prepared = Loaded::new(&module, Some(&file), Entry::Start).unwrap().into_prepared();
        assert!(load::native(&module, &file).is_some());
        for status in 0..=255 {
            let argument = CString::new(vec![b'x'; status]).unwrap();
            let mut loaded = Loaded::again(Rc::clone(&prepared));
            loaded.wasi().provide(&[argument], &[], &[]);
            assert_eq!(loaded.run(), Ending::Exit(status as u32));
        }
        // Again, from the cache.
        compiled(&cache, EXIT).unwrap();
    }

    /// As in the warm parent: each is the module that it was made of, whatever was loaded before.
    #[test]
    fn one_process_keeps_several_modules_apart() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create_at(dir.path(), 1 << 30).unwrap();
        let exit = |status: u32| {
            format!(
                r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                   (memory (export "memory") 1)
                   (func (export "_start") (call $exit (i32.const {status}))))"#
            )
        };
        let prepared = [3, 4, 5].map(|status| {
            let module = compiled(&cache, &exit(status)).unwrap();
            let State::Compiled(file) = aot::state(&cache, &aot::key(&module)).unwrap() else {
                panic!("not in the cache");
            };
            (status, Rc::new(Prepared::compiled(&module, file, Entry::Start).unwrap().unwrap()))
        });
        for (status, prepared) in prepared {
            let mut loaded = Loaded::again(prepared);
            loaded.wasi().provide(&[], &[], &[]);
            assert_eq!(loaded.run(), Ending::Exit(status));
        }
    }

    #[test]
    fn custom_sections_are_left_out() {
        let bytes = wat::parse_str(
            "(module (@custom \"a\" (before first) \"...\") (memory 1) (func (export \"_start\"))
             (@custom \"b\" (after last) \"...\"))",
        );
        let plain = wat::parse_str("(module (memory 1) (func (export \"_start\")))").unwrap();
        assert_eq!(without_custom_sections(&bytes.unwrap()).unwrap(), plain);
        assert_eq!(without_custom_sections(&plain[..plain.len() - 1]), None);
        assert_eq!(leb128(&[0xe5, 0x8e, 0x26, 7]), Some((624_485, &[7][..])));
        assert_eq!(leb128(&[0x80; 9]), None);
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
