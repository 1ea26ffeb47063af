//! A peer that exchanges a file for a link while kiln works on it (CVE-2021-30465, CVE-2024-45310,
//! CVE-2025-31133, CVE-2025-52565): renameat2(RENAME_EXCHANGE) in a loop, on a volume that both
//! share, or in the rootfs itself.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use kiln_integration::{Bundle, Container, Outcome, json, proc};
use rustix::fs::{CWD, RenameFlags};

/// Exchanges two paths until dropped.
struct Peer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    fn exchanging(a: PathBuf, b: PathBuf) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, rounds) = (stop.clone(), rounds.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Peer { stop, rounds, thread: Some(thread) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
        assert!(self.rounds.load(Ordering::Relaxed) > 10, "the peer did not get to run");
    }
}

/// Every path below `dir` with its kind, mode, owner and content.
fn snapshot(dir: &Path) -> Vec<(PathBuf, u32, u32, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let text = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        found.push((path.clone(), meta.mode(), meta.uid(), text));
        if meta.is_dir() {
            found.extend(snapshot(&path));
        }
    }
    found.sort();
    found
}

/// A folder of the host's that has all that the config works on.
fn outside(bundle: &Bundle) -> PathBuf {
    let outside = bundle.scratch().join("outside");
    for dir in ["tmp", "files", "masked", "readonly", "work"] {
        fs::create_dir_all(outside.join(dir)).unwrap();
        fs::write(outside.join(dir).join("secret"), "the host's secret\n").unwrap();
    }
    outside
}

/// Ends as it should, or was refused; never in another way.
#[track_caller]
fn ends_well(outcome: &Outcome) {
    assert!(matches!(outcome.status.code(), Some(0 | 1)), "{outcome}");
    assert!(!outcome.stdout.contains("secret"), "{outcome}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
}

/// What is mounted in the container lies below one of these.
#[track_caller]
fn mounts_are_below(outcome: &Outcome, allowed: &[&str]) {
    for mount in proc::parse_mountinfo(&outcome.stdout) {
        let inside = allowed.iter().any(|path| mount.point.starts_with(path));
        assert!(inside || mount.point == Path::new("/"), "{mount:?}: {outcome}");
    }
}

fn runs(c: &Container, rounds: u32, check: impl Fn(&Outcome)) -> u32 {
    let mut good = 0;
    for _ in 0..kiln_integration::rounds(rounds) {
        let outcome = c.run();
        ends_well(&outcome);
        check(&outcome);
        good += u32::from(outcome.status.success());
    }
    good
}

/// Five hundred of them, in two tests side by side.
const ROUNDS: u32 = 250;

fn mount_targets(link: impl Fn(&Path) -> PathBuf) {
    let bundle = Bundle::sh("cat /proc/self/mountinfo; cat /volume/a/*/secret 2>/dev/null; true");
    let outside = outside(&bundle);
    let volume = bundle.scratch().join("volume");
    fs::create_dir_all(volume.join("a")).unwrap();
    symlink(link(&outside), volume.join("b")).unwrap();
    let file = bundle.scratch().join("file");
    fs::write(&file, "file\n").unwrap();
    let tree = bundle.scratch().join("tree");
    fs::create_dir(&tree).unwrap();
    let bundle = bundle
        .bind(&volume, "/volume", &["rbind"])
        .mount("/volume/a/tmp", "tmpfs", "tmpfs", &[])
        .bind(&file, "/volume/a/files/file", &["rbind"])
        .bind(&tree, "/volume/a/deep/er/tree", &["rbind"])
        .push("/linux/maskedPaths", json!("/volume/a/masked/file"))
        .push("/linux/readonlyPaths", json!("/volume/a/readonly"))
        .set("/process/cwd", json!("/volume/a/work/there"))
        .writable();
    let before = snapshot(&outside);
    let peer = Peer::exchanging(volume.join("a"), volume.join("b"));
    let c = bundle.container();
    let host = outside.ancestors().nth(3).unwrap().to_str().unwrap().to_owned();
    // A link of the volume's is one in the rootfs: there it may lead.
    let allowed = ["/volume", "/proc", "/sys", "/dev", &host];
    let good = runs(&c, ROUNDS, |outcome| mounts_are_below(outcome, &allowed));
    drop(peer);
    assert!(good > 0, "none of {ROUNDS} succeeded: nothing was tried");
    assert_eq!(snapshot(&outside), before);
    // Nor anything beside it.
    let mut beside: Vec<_> = fs::read_dir(outside.parent().unwrap()).unwrap().flatten().collect();
    beside.retain(|entry| {
        !matches!(entry.file_name().to_str(), Some("outside" | "volume" | "file" | "tree"))
    });
    assert!(beside.is_empty(), "{beside:?}");
}

#[test]
fn a_mount_target_exchanged_for_an_absolute_link() {
    mount_targets(Path::to_owned);
}

#[test]
fn a_mount_target_exchanged_for_a_link_that_climbs() {
    mount_targets(|outside| {
        Path::new("../../../../../../../..").join(outside.strip_prefix("/").unwrap())
    });
}

/// The same of what every container has: in a rootfs that a peer writes to.
fn in_the_rootfs(place: &str, target: &str, terminal: bool, check: impl Fn(&Outcome)) {
    let script = "cat /proc/self/mountinfo; stat -c 'masked %t:%T' /etc/masked; cat /etc/masked";
    let mut bundle = Bundle::sh(script).writable().set("/process/terminal", json!(terminal));
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| {
        let at = mount["destination"].as_str().unwrap();
        !at.starts_with("/dev") || at == "/dev/pts"
    });
    let bundle =
        bundle.set("/linux/maskedPaths", json!(["/etc/masked", "/proc/keys", "/sys/kernel"]));
    let outside = outside(&bundle);
    let rootfs = bundle.rootfs();
    fs::write(rootfs.join("etc/masked"), "a secret of the image's\n").unwrap();
    let at = rootfs.join(place);
    match place {
        "dev/null" => {
            let device = rustix::fs::makedev(1, 3);
            let kind = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(CWD, &at, kind, 0o666.into(), device).unwrap();
        }
        "dev/console" => fs::write(&at, "").unwrap(),
        _ => fs::create_dir_all(&at).unwrap(),
    }
    symlink(target.replace("OUTSIDE", outside.to_str().unwrap()), rootfs.join("link")).unwrap();
    let before = snapshot(&outside);
    let core_pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let peer = Peer::exchanging(at, rootfs.join("link"));
    let c = bundle.container();
    runs(&c, 50, check);
    drop(peer);
    assert_eq!(snapshot(&outside), before);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), core_pattern);
}

#[track_caller]
fn is_masked(outcome: &Outcome) {
    if outcome.status.success() {
        assert!(outcome.stdout.contains("masked 1:3"), "{outcome}");
    }
}

#[test]
fn a_null_device_exchanged_for_a_link_does_not_unmask() {
    in_the_rootfs("dev/null", "/proc/sys/kernel/core_pattern", false, is_masked);
    in_the_rootfs("dev/null", "OUTSIDE/tmp/secret", false, is_masked);
}

#[test]
fn a_console_exchanged_for_a_link_is_mounted_on_nothing_else() {
    for target in ["/proc/sys/kernel/core_pattern", "OUTSIDE/tmp/secret", "/etc/passwd"] {
        in_the_rootfs("dev/console", target, true, |outcome| {
            is_masked(outcome);
            for mount in proc::parse_mountinfo(&outcome.stdout) {
                if mount.kind == "devpts" {
                    // The file that it was mounted on may be called otherwise by now.
                    let wanted = ["/dev/pts", "/dev/console", "/link"];
                    let right = wanted.iter().any(|path| mount.point == Path::new(path));
                    assert!(right, "{mount:?}: {outcome}");
                }
            }
        });
    }
}

/// The folder may be called otherwise by now, in every line of mountinfo; what is mounted on it
/// is masked all the same.
#[test]
fn proc_and_sys_exchanged_for_links_are_masked_wherever_they_are() {
    for (place, kind, masked) in [("proc", "proc", "keys"), ("sys", "sysfs", "kernel")] {
        in_the_rootfs(place, "/etc", false, |outcome| {
            // Number, parent, device, root and point.
            let lines = outcome.stdout.lines().filter(|line| line.contains(" - "));
            let lines: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
            let is_root = |line: &&Vec<&str>| line.contains(&kind) && line[3] == "/";
            for mount in lines.iter().filter(is_root) {
                let name = format!("/{masked}");
                let on_it = |line: &Vec<&str>| line[1] == mount[0] && line[4].ends_with(&name);
                assert!(lines.iter().any(on_it), "{mount:?}: {outcome}");
                let right = [&*format!("/{place}"), "/link"].contains(&mount[4]);
                assert!(right, "{mount:?}: {outcome}");
            }
        });
    }
}
