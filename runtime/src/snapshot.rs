//! A snapshot: the mounts that make the rootfs in a bundle, as containerd's snapshotters give them to
//! whoever creates the container.

mod idmapped;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Step};
use idmapped::Ids;

/// One of the mounts: mount(2) and containerd's types/mount.proto.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as there")]
pub struct Mount {
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// The rootfs in a bundle.
pub fn of(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Makes the mounts, one upon the other. Changes the working directory.
///
/// # Errors
/// One of them cannot be made; those before it are gone again.
pub fn mount_all(mounts: &[Mount], bundle: &Path) -> Result<(), Error> {
    let rootfs = of(bundle);
    if !mounts.is_empty() {
        // Not the bundle: one that has gone was given up.
        match std::fs::DirBuilder::new().mode(0o711).create(&rootfs) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.step(|| format!("make {}", rootfs.display()))?,
        }
    }
    let made = mounts.iter().try_for_each(|mount| make(mount, &rootfs, bundle));
    made.inspect_err(|_| unmount_all(bundle))
}

/// Whether there is nothing in the rootfs, as in that of an image that is no filesystem.
pub fn is_empty(bundle: &Path) -> bool {
    std::fs::read_dir(of(bundle)).is_ok_and(|mut entries| entries.next().is_none())
}

/// Takes away whatever is mounted there. Being not mounted is fine.
pub fn unmount_all(bundle: &Path) {
    let rootfs = of(bundle);
    // What is used somewhere goes when it is used no more.
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    while umount2(&rootfs, flags).is_ok() {}
    idmapped::remove_layers(bundle);
}

fn make(mount_point: &Mount, rootfs: &Path, bundle: &Path) -> Result<(), Error> {
    let Mount { kind, source, options } = mount_point;
    let mut plan = Plan::new(options);
    let ids = Ids::take(&mut plan.data)?;
    let overlay = kind == "overlay";
    let layers = match &ids {
        Some(ids) if overlay => ids.map_layers(&mut plan.data, bundle)?,
        _ => None,
    };
    let data = relative(kind, &plan.data)?;
    let what = || format!("mount {kind} {source} on {}", rootfs.display());
    let call = |source: Option<&str>, flags, data: Option<&str>| {
        mount(source, rootfs, Some(kind.as_str()), flags, data)
            .map_err(std::io::Error::from)
            .step(what)
    };
    let data = Some(data.as_str()).filter(|data| !data.is_empty());
    call(Some(source), plan.flags, data)?;
    drop(layers);
    // A bind mount takes its flags in a second step (mount(2), Remounting an existing mount).
    let kept = plan.flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if plan.flags.contains(MsFlags::MS_BIND) && !kept.is_empty() {
        call(None, kept | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, None)?;
    }
    if let Some(ids) = ids.filter(|_| !overlay) {
        ids.attach(rootfs, rootfs)?;
    }
    match plan.propagation.is_empty() {
        true => Ok(()),
        false => call(None, plan.propagation, None),
    }
}

/// Options, sorted into what the kernel takes apart.
#[derive(Debug, PartialEq)]
struct Plan {
    flags: MsFlags,
    propagation: MsFlags,
    data: Vec<String>,
}

impl Plan {
    fn new(options: &[String]) -> Self {
        let none = MsFlags::empty();
        let mut plan = Self { flags: none, propagation: none, data: Vec::new() };
        for option in options {
            let (set, clear) = match option.as_str() {
                "bind" => (MsFlags::MS_BIND, MsFlags::empty()),
                "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, MsFlags::empty()),
                "ro" => (MsFlags::MS_RDONLY, MsFlags::empty()),
                "rw" => (MsFlags::empty(), MsFlags::MS_RDONLY),
                "nosuid" => (MsFlags::MS_NOSUID, MsFlags::empty()),
                "suid" => (MsFlags::empty(), MsFlags::MS_NOSUID),
                "nodev" => (MsFlags::MS_NODEV, MsFlags::empty()),
                "dev" => (MsFlags::empty(), MsFlags::MS_NODEV),
                "noexec" => (MsFlags::MS_NOEXEC, MsFlags::empty()),
                "exec" => (MsFlags::empty(), MsFlags::MS_NOEXEC),
                "sync" => (MsFlags::MS_SYNCHRONOUS, MsFlags::empty()),
                "async" => (MsFlags::empty(), MsFlags::MS_SYNCHRONOUS),
                "noatime" => (MsFlags::MS_NOATIME, MsFlags::empty()),
                "atime" => (MsFlags::empty(), MsFlags::MS_NOATIME),
                "nodiratime" => (MsFlags::MS_NODIRATIME, MsFlags::empty()),
                "relatime" => (MsFlags::MS_RELATIME, MsFlags::empty()),
                "strictatime" => (MsFlags::MS_STRICTATIME, MsFlags::empty()),
                "defaults" | "" => continue,
                "private" => (MsFlags::MS_PRIVATE, MsFlags::empty()),
                "rprivate" => (MsFlags::MS_PRIVATE | MsFlags::MS_REC, MsFlags::empty()),
                "slave" => (MsFlags::MS_SLAVE, MsFlags::empty()),
                "rslave" => (MsFlags::MS_SLAVE | MsFlags::MS_REC, MsFlags::empty()),
                "shared" => (MsFlags::MS_SHARED, MsFlags::empty()),
                "rshared" => (MsFlags::MS_SHARED | MsFlags::MS_REC, MsFlags::empty()),
                _ => {
                    plan.data.push(option.clone());
                    continue;
                }
            };
            let types = MsFlags::MS_PRIVATE | MsFlags::MS_SLAVE | MsFlags::MS_SHARED;
            if set.intersects(types) {
                plan.propagation = set;
            } else {
                plan.flags = plan.flags.difference(clear).union(set);
            }
        }
        plan
    }
}

/// The data as one string. An image of many layers has more than the page that mount(2) takes:
/// then the paths of its layers are shortened by what they begin with, which becomes the working
/// directory, as containerd does it.
fn relative(kind: &str, data: &[String]) -> Result<String, Error> {
    const LIMIT: usize = 4096 - 1;
    let joined = data.join(",");
    let lowerdir = data.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let (Some(lowerdir), "overlay", true) = (lowerdir, kind, joined.len() > LIMIT) else {
        return Ok(joined);
    };
    let layers: Vec<&str> = lowerdir.split(':').collect();
    let base = common_directory(&layers);
    let layers: Vec<&str> =
        layers.iter().map(|layer| layer[base.len()..].trim_start_matches('/')).collect();
    std::env::set_current_dir(base).step(|| format!("enter {base}"))?;
    let short = format!("lowerdir={}", layers.join(":"));
    let options = data.iter().map(|option| match option.starts_with("lowerdir=") {
        true => short.as_str(),
        false => option,
    });
    Ok(options.collect::<Vec<_>>().join(","))
}

/// The longest directory that all paths lie in.
fn common_directory<'a>(paths: &[&'a str]) -> &'a str {
    let first = paths.first().copied().unwrap_or_default();
    let shared = |length: &usize| paths.iter().all(|path| path.starts_with(&first[..*length]));
    let slashes = first.match_indices('/').map(|(at, _)| at + 1);
    let length = slashes.take_while(shared).last().unwrap_or_default();
    &first[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn options_are_told_apart() {
        let plan = Plan::new(&strings(&["rbind", "ro", "rw", "nodev", "rslave", "index=off"]));
        assert_eq!(plan.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_NODEV);
        assert_eq!(plan.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(plan.data, ["index=off"]);
    }

    #[test]
    fn paths_have_a_directory_in_common() {
        assert_eq!(common_directory(&["/a/b/1/fs", "/a/b/12/fs"]), "/a/b/");
        assert_eq!(common_directory(&["/a/b", "/c"]), "/");
        assert_eq!(common_directory(&["/a/b/fs"]), "/a/b/");
        assert_eq!(common_directory(&["rel"]), "");
    }
}
