//! Wasm containers: what kiln and its engine read in a rootfs is never read outside of it, nothing
//! is written there, and the guest learns nothing of the runtime that it shares a process with.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use kiln_integration::{Bundle, Cli, command, examples, json, needs_wasm, refused, skip};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

fn hello() -> Vec<u8> {
    fs::read(examples::find("hello.wasm").unwrap()).unwrap()
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device).unwrap();
}

/// Every path below `dir`, with what a link says.
fn tree(dir: &Path) -> Vec<(PathBuf, Option<PathBuf>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        found.push((path.clone(), fs::read_link(&path).ok()));
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&path));
        }
    }
    found.sort();
    found
}

/// The runtime's own environment and command line: the engine is never executed anew.
#[test]
fn the_guest_does_not_see_the_callers_environment() {
    needs_wasm!();
    for file in ["/proc/self/environ", "/proc/1/environ", "/proc/1/cmdline"] {
        let c = Bundle::wasm("files", &["read", file]).container();
        let outcome = c.run_cli(&[]).env("SECRET", "hunter2").output().ok();
        assert!(!outcome.stdout.contains("hunter2"), "{file}: {outcome}");
        let root = c.root();
        assert!(!outcome.stdout.contains(root.to_str().unwrap()), "{file}: {outcome}");
        let text = outcome.stdout.trim_end_matches('\0');
        let wanted =
            if file.ends_with("cmdline") { "/files.wasm\0read\0/proc/1/cmdline" } else { "" };
        assert_eq!(text, wanted, "{file}");
    }
    // Also for one that waits for `start`, and whose module is in a mount.
    let bundle = Bundle::wasm("files", &["read", "/proc/self/environ"]);
    let volume = bundle.scratch().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::rename(bundle.rootfs().join("files.wasm"), volume.join("files.wasm")).unwrap();
    let bundle = bundle.bind(&volume, "/app", &["rbind"]);
    let c = bundle.args(&["/app/files.wasm", "read", "/proc/self/environ"]).container();
    let outcome = c.run_cli(&[]).env("SECRET", "hunter2").output().ok();
    assert!(!outcome.stdout.contains("hunter2"), "{outcome}");
}

#[test]
fn a_module_is_not_read_through_a_link_out_of_the_rootfs() {
    needs_wasm!();
    let outside = |bundle: &Bundle| {
        let path = bundle.scratch().join("outside.wasm");
        fs::write(&path, hello()).unwrap();
        path
    };
    // From the rootfs: absolute, relative, through a folder, through procfs.
    for way in ["absolute", "relative", "folder", "magic"] {
        let bundle = Bundle::module("x", b"").args(&["/app.wasm"]);
        let host = outside(&bundle);
        let link = bundle.rootfs().join("app.wasm");
        let bundle = match way {
            "absolute" => symlink(&host, link).map(|()| bundle).unwrap(),
            "relative" => symlink("../../scratch/outside.wasm", link).map(|()| bundle).unwrap(),
            "folder" => {
                symlink(bundle.scratch(), bundle.rootfs().join("dir")).unwrap();
                bundle.args(&["/dir/outside.wasm"])
            }
            _ => {
                symlink(format!("/proc/self/root{}", host.display()), link).unwrap();
                bundle
            }
        };
        refused(bundle, &["wasm"]);
    }
    // From a volume.
    for target in ["../outside.wasm", "/proc/self/cwd/outside.wasm", "../../scratch/outside.wasm"] {
        let bundle = Bundle::module("x", b"").args(&["/volume/app.wasm"]);
        let host = outside(&bundle);
        let volume = host.with_file_name("volume");
        fs::create_dir(&volume).unwrap();
        symlink(target, volume.join("app.wasm")).unwrap();
        refused(bundle.bind(&volume, "/volume", &["rbind"]), &["app.wasm"]);
    }
}

/// Neither waits for a writer nor reads without end.
#[test]
fn a_module_that_is_no_file_of_a_sensible_size() {
    needs_wasm!();
    let bundle = || Bundle::module("x", b"").args(&["/app.wasm"]);
    let fifo = bundle();
    node(&fifo.rootfs().join("app.wasm"), FileType::Fifo, 0);
    refused(fifo, &["app.wasm"]);
    for device in [makedev(1, 5), makedev(1, 9)] {
        let endless = bundle();
        node(&endless.rootfs().join("app.wasm"), FileType::CharacterDevice, device);
        refused(endless, &["app.wasm"]);
    }
    let huge = bundle();
    let file = fs::File::create(huge.rootfs().join("app.wasm")).unwrap();
    file.set_len(8 << 30).unwrap();
    refused(huge, &["app.wasm", "limit"]);
    // The same as the source of a bind mount, and in a mount that is seen only later.
    let bound = bundle();
    let fifo = bound.scratch().join("fifo");
    node(&fifo, FileType::Fifo, 0);
    refused(bound.bind(&fifo, "/app.wasm", &["bind"]), &["app.wasm"]);
    let deferred = bundle().mount("/late", "tmpfs", "tmpfs", &["tmpcopyup"]).writable();
    fs::create_dir(deferred.rootfs().join("late")).unwrap();
    symlink("/late/app.wasm", deferred.rootfs().join("app.wasm")).unwrap();
    symlink("/proc/1/root/dev/zero", deferred.rootfs().join("late/app.wasm")).unwrap();
    refused(deferred, &["app.wasm"]);
}

/// CVE-2025-24965 (crun's krun handler): nothing is written, so nothing through a link.
#[test]
fn nothing_is_written_into_the_rootfs() {
    needs_wasm!();
    let bundle = Bundle::wasm("hello", &[]).writable();
    let outside = bundle.scratch().join("outside");
    fs::create_dir(&outside).unwrap();
    for name in [".krun_config.json", "run", "tmp", "var", "usr", "lib", "root"] {
        symlink(&outside, bundle.rootfs().join(name)).unwrap();
    }
    // The targets of the spec's mounts are made.
    for dir in ["dev", "proc", "sys"] {
        fs::create_dir(bundle.rootfs().join(dir)).unwrap();
    }
    let before = tree(&bundle.rootfs());
    let c = bundle.container();
    c.run().ok().prints("hello from wasm\n");
    assert_eq!(tree(&c.bundle.rootfs()), before);
    assert_eq!(tree(&c.bundle.scratch().join("outside")), []);
}

/// What an image, or its environment, says of caches and plugins is nothing to the engine.
#[test]
fn the_engine_loads_no_code_from_the_rootfs() {
    needs_wasm!();
    if !command::exists("strace") {
        skip!("strace is not installed");
    }
    let env = [
        "KILN_CACHE_DIR=/evil",
        "WASMEDGE_PLUGIN_PATH=/evil/plugin",
        "LD_LIBRARY_PATH=/evil",
        "LD_PRELOAD=/evil/plugin/libwasmedgePluginEvil.so",
        "HOME=/evil",
    ];
    let bundle = Bundle::wasm("hello", &[]).set("/process/env", json!(env)).writable();
    let cache = bundle.home().join("cache");
    let module = examples::find("hello.wasm").unwrap();
    let warm = Cli::new(["aot", "warm"]).arg(module).env("KILN_CACHE_DIR", &cache);
    warm.output().ok();
    // Under the very names that the engine would look for.
    let rootfs = bundle.rootfs();
    for dir in [
        "evil/aot",
        "var/cache/kiln/aot",
        "evil/plugin",
        "usr/lib/wasmedge",
        "evil/.wasmedge/plugin",
        "usr/local/lib/wasmedge",
    ] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
        fs::write(rootfs.join(dir).join("libwasmedgePluginEvil.so"), "\x7fELF evil").unwrap();
        for entry in fs::read_dir(cache.join("aot")).unwrap().flatten() {
            fs::write(rootfs.join(dir).join(entry.file_name()), "\x7fELF evil").unwrap();
        }
    }
    let c = bundle.container();
    let log = c.bundle.scratch().join("strace");
    let strace = ["strace", "-f", "-qq", "-s", "4096", "-o", log.to_str().unwrap()];
    let trace = ["-e", "trace=openat,openat2,open,execve,execveat,pivot_root"];
    let words: Vec<_> = strace.iter().chain(&trace).copied().collect();
    let cli = c.run_cli(&[]).env("KILN_CACHE_DIR", &cache);
    cli.under(&words).output().ok().prints("hello from wasm\n");
    let calls = fs::read_to_string(log).unwrap();
    let inside = calls.split_once("pivot_root(\"").unwrap().1;
    for name in ["evil", ".aot", ".so", "wasmedge", "/var/cache"] {
        assert!(!inside.to_lowercase().contains(name), "{name} in {inside}");
    }
    assert!(!calls.contains("evil/"), "{calls}");
}
