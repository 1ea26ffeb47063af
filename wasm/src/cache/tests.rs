//! Caches in temporary directories.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::prune::{Entry, Prune};

const LIMIT: u64 = 1000;

fn cache() -> (TempDir, Cache) {
    let dir = TempDir::new().unwrap();
    let cache = Cache::create_at(&dir.path().join("kiln"), LIMIT).unwrap();
    (dir, cache)
}

/// Adds a file of `size` bytes that was last used `age` seconds ago.
fn add(cache: &Cache, digit: char, size: usize, age: u64) {
    let key = Key::sample(digit);
    let pending = cache.begin(&key).unwrap();
    fs::write(pending.path(), vec![b'x'; size]).unwrap();
    let cached = pending.commit().unwrap();
    let then = SystemTime::now() - Duration::from_secs(age);
    fs::File::from(cached.file).set_modified(then).unwrap();
}

/// The first digit of each entry.
fn digits(entries: &[Entry]) -> String {
    entries.iter().map(|entry| &entry.digest[..1]).collect()
}

/// What is cached, the last used first.
fn listed(cache: &Cache) -> String {
    digits(&cache.list().unwrap())
}

fn files(cache: &Cache) -> usize {
    fs::read_dir(cache.path()).unwrap().count()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_is_added_is_found() {
    let (_dir, cache) = cache();
    let key = Key::sample('a');
    assert!(cache.lookup(&key).unwrap().is_none());
    let pending = cache.begin(&key).unwrap();
    assert!(cache.lookup(&key).unwrap().is_none(), "not before it is whole");
    fs::write(pending.path(), "native").unwrap();
    let added = pending.commit().unwrap();
    assert_eq!((files(&cache), added.size_bytes), (1, 6));
    let found = cache.lookup(&key).unwrap().unwrap();
    assert_eq!(found.path, added.path);
    for cached in [added, found] {
        let mut text = String::new();
        fs::File::from(cached.file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "native");
    }
    assert!(cache.lookup(&Key::sample('b')).unwrap().is_none());
}

#[test]
fn nobody_else_can_write_whatever_the_compiler_does() {
    let (dir, cache) = cache();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&dir.path().join("kiln")), 0o700);
    assert_eq!(mode(cache.path()), 0o700);
    let key = Key::sample('a');
    let pending = cache.begin(&key).unwrap();
    assert_eq!(mode(&pending.path()), 0o600);
    fs::remove_file(pending.path()).unwrap();
    fs::write(pending.path(), "new file").unwrap();
    chmod(&pending.path(), 0o666);
    assert_eq!(mode(&pending.commit().unwrap().path), 0o444);
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let (_dir, cache) = cache();
    let key = Key::sample('a');
    let pending = cache.begin(&key).unwrap();
    fs::write(pending.path(), "half").unwrap();
    drop(pending);
    assert_eq!(files(&cache), 0);
    let error = cache.begin(&key).unwrap().commit().unwrap_err();
    assert!(error.to_string().ends_with(".tmp: empty"), "{error}");
    let pending = cache.begin(&key).unwrap();
    fs::remove_file(pending.path()).unwrap();
    symlink("/etc/passwd", pending.path()).unwrap();
    let error = pending.commit().unwrap_err();
    assert!(matches!(error, Error::Cache { call: "open", .. }), "{error}");
    assert_eq!(files(&cache), 0);
}

#[test]
fn a_name_left_by_the_dead_is_used_again() {
    let (_dir, cache) = cache();
    // Whatever number the next one gets in this process.
    for count in 0..1000 {
        let name = format!("{}-{count}{TEMPORARY}", std::process::id());
        fs::write(cache.path().join(name), "left").unwrap();
    }
    let key = Key::sample('a');
    let pending = cache.begin(&key).unwrap();
    assert_eq!(fs::read(pending.path()).unwrap(), b"");
}

#[test]
fn directories_that_others_can_write_to_are_refused() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("kiln");
    Cache::create_at(&base, LIMIT).unwrap();
    for path in [base.clone(), base.join("aot")] {
        for mode in [0o770, 0o702] {
            chmod(&path, mode);
            let error = Cache::create_at(&base, LIMIT).unwrap_err().to_string();
            let expected = format!("cache {}: writable by group or others", path.display());
            assert_eq!(error, expected);
        }
        chmod(&path, 0o755);
        Cache::create_at(&base, LIMIT).unwrap();
    }
    let link = dir.path().join("link");
    symlink(&base, &link).unwrap();
    let error = Cache::create_at(&link, LIMIT).unwrap_err();
    assert!(matches!(error, Error::Cache { call: "open", .. }), "{error}");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Cache::create_at(&file, LIMIT).is_err());
}

#[test]
fn what_others_own_or_can_write_to_is_refused() {
    let (_dir, cache) = cache();
    add(&cache, 'a', 10, 0);
    let file = cache.lookup(&Key::sample('a')).unwrap().unwrap().path;
    let error = || cache.lookup(&Key::sample('a')).unwrap_err().to_string();
    chmod(&file, 0o660);
    assert!(error().ends_with("writable by group or others"), "{}", error());
    symlink(&file, cache.path().join(Key::sample('b').file_name())).unwrap();
    let linked = cache.lookup(&Key::sample('b')).unwrap_err();
    assert!(matches!(linked, Error::Cache { .. }), "{linked}");
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped in part: only root can give a file away");
        return;
    }
    chmod(&file, 0o600);
    std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
    assert!(error().ends_with("owned by another user"), "{}", error());
    let base = cache.path().parent().unwrap();
    std::os::unix::fs::chown(base, Some(65534), None).unwrap();
    let error = Cache::create_at(base, LIMIT).unwrap_err().to_string();
    assert!(error.ends_with("kiln: owned by another user"), "{error}");
}

#[test]
fn the_least_recently_used_makes_room() {
    let (_dir, cache) = cache();
    add(&cache, 'a', 400, 30);
    add(&cache, 'b', 400, 20);
    assert_eq!(listed(&cache), "ba");
    cache.lookup(&Key::sample('a')).unwrap().unwrap();
    assert_eq!(listed(&cache), "ab", "a lookup counts as use");
    add(&cache, 'c', 300, 0);
    assert_eq!(listed(&cache), "ca");
    add(&cache, 'd', 1000, 0);
    assert_eq!(listed(&cache), "d");
    add(&cache, 'd', 900, 0);
    assert_eq!(listed(&cache), "d", "its own predecessor needs no room");
}

#[test]
fn larger_than_the_cache() {
    let (_dir, cache) = cache();
    add(&cache, 'a', 10, 0);
    let key = Key::sample('b');
    let pending = cache.begin(&key).unwrap();
    fs::write(pending.path(), vec![0; 1001]).unwrap();
    let error = pending.commit().unwrap_err().to_string();
    assert!(error.ends_with("1001 bytes exceed its limit of 1000"), "{error}");
    assert_eq!(listed(&cache), "a");
}

#[test]
fn listing_tells_all() {
    let (_dir, cache) = cache();
    add(&cache, 'a', 10, 5);
    fs::write(cache.path().join("README"), "not ours").unwrap();
    let entries = cache.list().unwrap();
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!(entry.digest, "a".repeat(64));
    assert_eq!(entry.engine, "wasmedge-0.14.1");
    assert_eq!(entry.processor, "0123456789abcdef");
    assert_eq!(entry.size_bytes, 10);
    let age = entry.last_used.elapsed().unwrap().as_secs();
    assert!((4..60).contains(&age), "{age}");
}

#[test]
fn pruning() {
    let (_dir, cache) = cache();
    let removed = |what| {
        add(&cache, 'a', 100, 300);
        add(&cache, 'b', 100, 200);
        add(&cache, 'c', 100, 100);
        digits(&cache.prune(what).unwrap())
    };
    assert_eq!(removed(Prune::UnusedFor(Duration::from_secs(150))), "ba");
    assert_eq!(listed(&cache), "c");
    assert_eq!(removed(Prune::ToBytes(200)), "a");
    assert_eq!(removed(Prune::ToBytes(300)), "");
    assert_eq!(removed(Prune::All), "cba");
    assert_eq!(files(&cache), 0);
}

#[test]
fn pruning_clears_what_the_dead_left() {
    let (_dir, cache) = cache();
    let old = fs::File::create(cache.path().join("1-0.tmp")).unwrap();
    old.set_modified(SystemTime::now() - Duration::from_secs(90_000)).unwrap();
    fs::write(cache.path().join("2-0.tmp"), "being written").unwrap();
    fs::write(cache.path().join(Key::sample('b').lock_name()), "").unwrap();
    let key = Key::sample('a');
    let held = cache.lock(&key).unwrap();
    assert!(cache.prune(Prune::All).unwrap().is_empty());
    let items = fs::read_dir(cache.path()).unwrap();
    let mut left: Vec<_> = items.map(|item| item.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["2-0.tmp", key.lock_name().as_str()]);
    drop(held);
    assert_eq!(files(&cache), 1);
}

#[test]
fn one_compiler_for_a_key() {
    let (dir, cache) = cache();
    let key = Key::sample('a');
    let lock = cache.lock(&key).unwrap();
    assert!(cache.try_lock(&key).unwrap().is_none());
    let other = cache.try_lock(&Key::sample('b')).unwrap();
    assert!(other.is_some(), "another key");
    drop(other);
    let base = dir.path().join("kiln");
    let (waiting, wait) = mpsc::channel();
    let other = std::thread::spawn(move || {
        let cache = Cache::create_at(&base, LIMIT).unwrap();
        waiting.send(()).unwrap();
        let _lock = cache.lock(&Key::sample('a')).unwrap();
        cache.lookup(&Key::sample('a')).unwrap().is_some()
    });
    wait.recv().unwrap();
    add(&cache, 'a', 10, 0);
    drop(lock);
    assert!(other.join().unwrap(), "had the lock only once the module was there");
    assert_eq!(files(&cache), 1, "no lock file stays");
}

#[test]
fn many_compilers_take_turns() {
    let (dir, cache) = cache();
    let turns: Vec<_> = (0..8)
        .map(|_| {
            let base = dir.path().join("kiln");
            std::thread::spawn(move || {
                let cache = Cache::create_at(&base, LIMIT).unwrap();
                for _ in 0..50 {
                    let _lock = cache.lock(&Key::sample('a')).unwrap();
                    let mark = base.join("inside");
                    fs::File::create_new(&mark).unwrap();
                    fs::remove_file(&mark).unwrap();
                }
            })
        })
        .collect();
    turns.into_iter().for_each(|turn| turn.join().unwrap());
    assert_eq!(files(&cache), 0);
}

#[test]
fn the_environment_sets_it_up() {
    let own = |root, cache: Option<&str>, home: Option<&str>| {
        own_base(root, cache.map(Into::into), home.map(Into::into))
    };
    assert_eq!(own(true, Some("/c"), Some("/h")), Path::new("/var/cache/kiln"));
    assert_eq!(own(false, Some("/c"), Some("/h")), Path::new("/c/kiln"));
    assert_eq!(own(false, Some("c"), Some("/h")), Path::new("/h/.cache/kiln"));
    assert_eq!(own(false, None, None), Path::new("/var/cache/kiln"));
    assert_eq!(base_dir(Some("/srv/kiln".into())).unwrap(), Path::new("/srv/kiln"));
    assert_eq!(
        base_dir(Some("kiln".into())).unwrap_err().to_string(),
        "KILN_CACHE_DIR=\"kiln\": not an absolute path"
    );
    assert_eq!(limit_bytes(None).unwrap(), 1 << 30);
    assert_eq!(limit_bytes(Some("4096".into())).unwrap(), 4096);
    assert_eq!(
        limit_bytes(Some("1G".into())).unwrap_err().to_string(),
        "KILN_AOT_CACHE_BYTES=\"1G\": not a number of bytes"
    );
}
