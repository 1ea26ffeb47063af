//! The cache of compiled modules, and `kiln aot warm|list|prune`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_integration::{Bundle, Cli, Container, eventually, examples, needs_wasm};
use sha2::{Digest, Sha256};

fn digest(example: &str) -> String {
    let bytes = fs::read(examples::find(&format!("{example}.wasm")).unwrap()).unwrap();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A container on this example with a cache of its own, empty at first.
fn with_cache(example: &str, arguments: &[&str]) -> (Container, PathBuf) {
    let c = Bundle::wasm(example, arguments).container();
    let cache = c.bundle.home().join("cache");
    (c, cache)
}

fn aot(cache: &Path, words: &[&str]) -> Cli {
    Cli::new(["aot"]).args(words).env("KILN_CACHE_DIR", cache)
}

fn listed(cache: &Path) -> String {
    aot(cache, &["list", "--quiet"]).output().ok().stdout
}

fn module(example: &str) -> String {
    examples::find(&format!("{example}.wasm")).unwrap().to_str().unwrap().to_owned()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn warm_list_and_prune() {
    needs_wasm!();
    let (c, cache) = with_cache("hello", &[]);
    assert_eq!(listed(&cache), "");
    aot(&cache, &["warm", &module("hello"), &module("exit")]).output().ok();
    let list = listed(&cache);
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(list.contains(&digest("hello")) && list.contains(&digest("exit")), "{list}");
    let table = aot(&cache, &["list"]).output().ok();
    assert!(table.stdout.to_lowercase().contains("wasmedge-0.14"), "{table}");
    c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().ok().prints("hello from wasm\n");
    aot(&cache, &["prune"]).output().ok();
    assert_eq!(listed(&cache), "");
    c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().ok().prints("hello from wasm\n");
}

#[test]
fn warm_of_a_bad_file_is_an_error() {
    needs_wasm!();
    let (c, cache) = with_cache("hello", &[]);
    let bad = c.bundle.scratch().join("bad.wasm");
    fs::write(&bad, "not wasm").unwrap();
    aot(&cache, &["warm", bad.to_str().unwrap()]).output().fails(&["bad.wasm"]);
    aot(&cache, &["warm", "/no/such/module.wasm"]).output().fails(&["/no/such/module.wasm"]);
    assert_eq!(listed(&cache), "");
}

/// The first run is interpreted; meanwhile a process outside of the container
/// compiles for the next.
#[test]
fn the_first_run_fills_the_cache_and_does_not_wait() {
    needs_wasm!();
    let (c, cache) = with_cache("sort", &["2", "1"]);
    c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().ok().prints("1 2\n");
    // The container's cgroup could not be removed with the compiler in it.
    c.assert_nothing_left();
    let digest = digest("sort");
    eventually("the module to be compiled", || {
        files(&cache)
            .iter()
            .any(|file| fs::read(file).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF")))
    });
    eventually("the module to be listed", || listed(&cache).contains(&digest));
    c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().ok().prints("1 2\n");
}

#[test]
fn compiled_code_behaves_as_interpreted_code_does() {
    needs_wasm!();
    for (example, arguments, code) in [
        ("exit", ["9"], 9),
        ("trap", ["unreachable"], 134),
        ("trap", ["divide"], 134),
        ("trap", ["memory"], 134),
    ] {
        let (c, cache) = with_cache(example, &arguments);
        aot(&cache, &["warm", &module(example)]).output().ok();
        let outcome = c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().exits(code);
        assert_eq!(outcome.stderr.is_empty(), code == 9, "{outcome}");
    }
}

#[test]
fn signals_end_compiled_code() {
    needs_wasm!();
    let (c, cache) = with_cache("loop", &[]);
    aot(&cache, &["warm", &module("loop")]).output().ok();
    let mut running = c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).spawn();
    eventually("the module to run", || running.stdout() == "looping\n");
    running.signal(rustix::process::Signal::TERM);
    running.wait().exits(143);
}

#[test]
fn the_cache_is_roots_alone() {
    needs_wasm!();
    let (c, cache) = with_cache("hello", &[]);
    aot(&cache, &["warm", &module("hello")]).output().ok();
    let mut paths = files(&cache);
    assert!(!paths.is_empty());
    paths.push(cache.join("aot"));
    for path in paths {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.uid(), 0, "{}", path.display());
        assert_eq!(meta.permissions().mode() & 0o022, 0, "{}", path.display());
    }
    let mode = fs::metadata(cache.join("aot")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    drop(c);
}

/// Native code that others could have written is not run.
#[test]
fn a_cache_that_others_may_write_is_not_used() {
    needs_wasm!();
    let (c, cache) = with_cache("hello", &[]);
    aot(&cache, &["warm", &module("hello")]).output().ok();
    fs::set_permissions(cache.join("aot"), fs::Permissions::from_mode(0o777)).unwrap();
    let outcome = c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().ok();
    assert_eq!(outcome.stdout, "hello from wasm\n");
    assert!(outcome.stderr.contains("cache"), "it is said: {outcome}");
}

#[test]
fn a_broken_entry_is_not_fatal() {
    needs_wasm!();
    for content in [&b""[..], b"\x7fELF", &[0xff; 5000]] {
        let (c, cache) = with_cache("hello", &[]);
        aot(&cache, &["warm", &module("hello")]).output().ok();
        for file in files(&cache) {
            fs::write(file, content).unwrap();
        }
        let outcome = c.run_cli(&[]).env("KILN_CACHE_DIR", &cache).output().ok();
        assert_eq!(outcome.stdout, "hello from wasm\n");
    }
}

#[test]
fn the_cache_is_bounded() {
    needs_wasm!();
    let (_c, cache) = with_cache("hello", &[]);
    for example in ["hello", "exit", "sort"] {
        let warm = aot(&cache, &["warm", &module(example)]);
        warm.env("KILN_AOT_CACHE_BYTES", "100000").output();
    }
    let size: u64 = files(&cache).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(size <= 100_000, "{size}");
}

#[test]
fn one_module_warmed_by_many_at_once() {
    needs_wasm!();
    let (_c, cache) = with_cache("sort", &[]);
    let path = module("sort");
    let running: Vec<_> = (0..6).map(|_| aot(&cache, &["warm", &path]).spawn()).collect();
    running.into_iter().for_each(|command| drop(command.wait().ok()));
    assert_eq!(listed(&cache), format!("{}\n", digest("sort")));
}

#[test]
fn a_read_only_place_for_the_cache_does_not_matter() {
    needs_wasm!();
    let (c, _) = with_cache("hello", &[]);
    let outcome = c.run_cli(&[]).env("KILN_CACHE_DIR", "/proc/no-such-cache").output().ok();
    assert_eq!(outcome.stdout, "hello from wasm\n");
}
