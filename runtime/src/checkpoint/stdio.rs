//! stdin, stdout and stderr of a container: what they were when it was checkpointed, and what takes
//! their place when it is restored.
//!
//! As runc does it, `descriptors.json` in the image holds what /proc/PID/fd/0 to 2 were. Pipes are
//! replaced by the restoring caller's streams. So is, unlike with runc, a file that is not in the
//! container's mounts (a log on the host, or the host's /dev/null): CRIU is told that it is
//! external, by the name `file[MOUNT:INODE]` in hexadecimal, which stands first in its entry then.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};

use crate::error::{Error, Step};
use crate::mount_table::MountTable;

const FILE: &str = "descriptors.json";
const NULL: &str = "/dev/null";

/// What init's three streams are, and those that CRIU is to be told of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Streams {
    entries: Vec<String>,
    /// `file[MOUNT:INODE]` each.
    pub external: Vec<String>,
}

impl Streams {
    /// Looks at the process `pid`, whose mounts are `table`.
    pub fn of(pid: i32, table: &MountTable) -> Self {
        let mut streams = Self::default();
        for number in 0..3 {
            let Stream { target, external, .. } = settled(|| Stream::of(pid, number, table));
            streams.entries.push(match external {
                Some(name) => {
                    let entry = format!("{name} {target}");
                    if !streams.external.contains(&name) {
                        streams.external.push(name);
                    }
                    entry
                }
                None => target,
            });
        }
        streams
    }

    /// Writes the file in the image's directory.
    ///
    /// # Errors
    /// Those of open(2) and write(2).
    pub fn write(&self, images: &OwnedFd) -> Result<(), Error> {
        let step = || format!("write {FILE}");
        let json = serde_json::to_vec(&self.entries).map_err(std::io::Error::from).step(step)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let flags = flags | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(images, FILE, flags, Mode::RUSR | Mode::WUSR).step(step)?;
        File::from(file).write_all(&json).step(step)
    }
}

/// One of a process's streams.
#[derive(Debug)]
struct Stream {
    /// What /proc/PID/fd says.
    target: String,
    /// The name of a regular file or a device, other than a terminal, that is not in the container's
    /// mounts.
    external: Option<String>,
    /// Whether it is a regular file that is in them.
    is_own_file: bool,
}

impl Stream {
    fn of(pid: i32, number: i32, table: &MountTable) -> Self {
        let path = format!("/proc/{pid}/fd/{number}");
        let target = std::fs::read_link(&path).unwrap_or_else(|_| NULL.into());
        let mut stream = Self {
            target: target.to_string_lossy().into_owned(),
            external: None,
            is_own_file: false,
        };
        let Ok(stat) = rustix::fs::stat(&path) else { return stream };
        let is_terminal = matches!(rustix::fs::major(stat.st_rdev), 4 | 5 | 136..=143);
        let is_file = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => true,
            FileType::CharacterDevice if !is_terminal => false,
            _ => return stream,
        };
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        let info = info.unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let Some(id) = id.and_then(|id| id.trim().parse().ok()) else { return stream };
        match table.with_id(id) {
            Some(_) => stream.is_own_file = is_file,
            None => stream.external = Some(format!("file[{id:x}:{:x}]", stat.st_ino)),
        }
        stream
    }
}

/// Looks again at a stream that is a file of the container's own: a shell redirects its streams for
/// as long as a command like `echo` takes, and has what it was given again by the time that CRIU
/// looks. A file that stays is what the stream is.
fn settled(mut look: impl FnMut() -> Stream) -> Stream {
    let mut stream = look();
    for milliseconds in [1, 2, 4, 8, 16] {
        if !stream.is_own_file {
            break;
        }
        std::thread::sleep(Duration::from_millis(milliseconds));
        stream = look();
    }
    stream
}

/// What CRIU is to use instead of something in the image.
#[derive(Debug)]
pub struct Inherited {
    /// Its name there.
    pub key: String,
    /// The descriptor in CRIU's process.
    pub number: i32,
    /// Ours to keep open until then.
    pub descriptor: Option<OwnedFd>,
}

/// Reads what `checkpoint` wrote and says which of this process's streams stands for what.
///
/// # Errors
/// The file is missing or damaged: the directory has no checkpoint of a container.
pub fn inherited(images: &OwnedFd, path: &Path) -> Result<Vec<Inherited>, Error> {
    let step = || format!("open {}", path.join(FILE).display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(images, FILE, flags, Mode::empty()).step(step)?;
    let mut json = Vec::new();
    File::from(file).take(1 << 20).read_to_end(&mut json).step(step)?;
    let entries: Vec<String> =
        serde_json::from_slice(&json).map_err(|error| Error::file(&path.join(FILE), error))?;
    let mut all = Vec::new();
    for (number, entry) in (0..3).zip(&entries) {
        let entry: &str = entry;
        let (name, target) = entry.split_once(' ').unwrap_or((entry, ""));
        let key = name.to_owned();
        if entry.contains("pipe:") {
            all.push(Inherited { key: entry.to_owned(), number, descriptor: None });
        } else if name.starts_with("file[") && target == NULL {
            // It stays what it was, for reading and writing: it may be more than one of the three.
            let null = rustix::fs::open(NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
            let null = null.step(|| format!("open {NULL}"))?;
            all.push(Inherited { key, number: null.as_raw_fd(), descriptor: Some(null) });
        } else if name.starts_with("file[") {
            all.push(Inherited { key, number, descriptor: None });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::open_dir;

    fn written(entries: &[&str]) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let images = open_dir(dir.path()).unwrap();
        let entries = entries.iter().map(ToString::to_string).collect();
        Streams { entries, external: Vec::new() }.write(&images).unwrap();
        (dir, images)
    }

    #[test]
    fn pipes_and_external_files_are_inherited() {
        let (dir, images) = written(&["file[3:4] /dev/null", "pipe:[77]", "/in/the/container"]);
        let all = inherited(&images, dir.path()).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].key.as_str(), all[1].number), ("pipe:[77]", 1));
        assert!(all[0].key == "file[3:4]" && all[0].descriptor.is_some());
        let (dir, images) = written(&["/dev/null", "file[3:5] /var/log/x", "file[3:5] /var/log/x"]);
        let all = inherited(&images, dir.path()).unwrap();
        assert_eq!(all.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_directory_without_a_checkpoint_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let images = open_dir(dir.path()).unwrap();
        let error = inherited(&images, dir.path()).unwrap_err().to_string();
        assert!(error.contains("descriptors.json: no such file"), "{error}");
    }

    #[test]
    fn what_a_shell_redirects_is_looked_at_again() {
        let own = || Stream { target: "/n".to_owned(), external: None, is_own_file: true };
        let pipe = || Stream { target: "pipe:[7]".to_owned(), is_own_file: false, ..own() };
        let mut looks = [own(), own(), pipe(), own()].into_iter();
        assert_eq!(settled(|| looks.next().unwrap()).target, "pipe:[7]");
        let mut looks = 0;
        let stays = settled(|| {
            looks += 1;
            own()
        });
        assert_eq!((stays.target.as_str(), looks), ("/n", 6));
    }

    #[test]
    fn only_what_lies_outside_is_external() {
        let mut child = std::process::Command::new("sleep")
            .arg("9")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        let inside = Streams::of(pid, &MountTable::of("self").unwrap());
        assert_eq!((inside.entries[0].as_str(), inside.external.len()), (NULL, 0));
        assert!(inside.entries[1].starts_with("pipe:["));
        let outside = Streams::of(pid, &MountTable::empty());
        assert_eq!(outside.external.len(), 1);
        assert_eq!(outside.entries[2], format!("{} {NULL}", outside.external[0]));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
