//! The directories that a guest finds open, and under which names.
//!
//! WASI has no working directory and no absolute paths: a guest's C library matches a path with
//! the names of the open directories and takes the longest that fits. wasi-libc, which C, C++
//! and Rust use, drops a leading `/` or `./` first, so that `/data/x` and `data/x` are one; of
//! names that are equal then, the last counts. Hence:
//!
//! 1. the working directory under its own name comes first, which Zig and Go take for it;
//! 2. then `/`;
//! 3. then the mounts and, unless the working directory is `/`, the directories of the root, so
//!    that absolute paths into them stay absolute;
//! 4. last `.`, so that all other paths are relative to the working directory.
//!
//! What remains: with a working directory other than `/`, a guest made with wasi-libc cannot
//! name a file that lies in `/` itself.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// WasmEdge's notation, `GUEST:HOST`, for each of them; it passes over what it cannot open.
/// Called in the container's root and working directory.
pub fn preopens(cwd: &Path, mounts: &[&Path]) -> Vec<CString> {
    let mut names = vec![cwd.to_owned(), PathBuf::from("/")];
    names.extend(mounts.iter().map(|mount| mount.to_path_buf()));
    if cwd != Path::new("/") {
        names.extend(top_level());
    }
    names.push(PathBuf::from("."));
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names.iter().filter_map(|name| notation(name)).collect()
}

/// What lies in the root, in the order of the names.
fn top_level() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/").into_iter().flatten().flatten();
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    names.sort();
    names
}

/// WasmEdge follows no symbolic link that the host's name ends in, and takes the first colon
/// for the end of the guest's name. What cannot be written is still there below `/`.
fn notation(guest: &Path) -> Option<CString> {
    let host = match guest.is_symlink() {
        true => guest.canonicalize().ok()?,
        false => guest.to_owned(),
    };
    let [guest, host] = [guest, &host].map(|path| path.as_os_str().as_bytes());
    if guest.contains(&b':') || host.contains(&b':') {
        return None;
    }
    CString::new([guest, b":", host].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(cwd: &str, mounts: &[&str]) -> Vec<String> {
        let mounts: Vec<&Path> = mounts.iter().map(Path::new).collect();
        let written = preopens(Path::new(cwd), &mounts);
        written.iter().map(|name| name.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn below_the_root() {
        let none = names("/", &[]);
        assert_eq!(none, ["/:/", ".:."]);
        let some = names("/", &["/proc", "/dev/shm", "/proc"]);
        assert_eq!(some, ["/:/", "/proc:/proc", "/dev/shm:/dev/shm", ".:."], "each once");
    }

    #[test]
    fn below_another_directory() {
        let names = names("/usr/bin", &["/proc/sys"]);
        assert_eq!(names[..3], ["/usr/bin:/usr/bin", "/:/", "/proc/sys:/proc/sys"]);
        assert!(names.contains(&"/etc:/etc".to_owned()));
        assert_eq!(names.last().unwrap(), ".:.");
    }

    #[test]
    fn colons_cannot_be_written() {
        let dir = tempfile::Builder::new().prefix("a:b").tempdir().unwrap();
        assert_eq!(names("/", &[dir.path().to_str().unwrap()]), ["/:/", ".:."]);
    }

    #[test]
    fn links_are_resolved_for_wasmedge() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        let link = link.to_str().unwrap();
        assert_eq!(names(link, &[])[0], format!("{link}:/proc"));
    }
}
