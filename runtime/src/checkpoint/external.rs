//! What of a container's mounts and namespaces is not its own: CRIU writes down only that it was
//! there, and is told at `restore` what takes its place.
//!
//! A mount is named by its destination in config.json, as runc names it, so that what is restored
//! may lie elsewhere on the host, or behind another symlink in the rootfs.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_cgroups::Paths;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::OFlags;

use crate::devices;
use crate::error::{Error, Step};
use crate::init::paths::is_null_device;
use crate::mount_table::{MountTable, mount_root_id};
use crate::mounts::{MountPlan, Source, open_dir};
use crate::rooted::Rooted;

/// What hides a file of `linux.maskedPaths`.
const NULL: &str = "/dev/null";

/// Something of the host's in the container.
#[derive(Debug, PartialEq, Eq)]
struct Mapped {
    /// In the container, absolute; at the same time its name in the image.
    destination: PathBuf,
    /// On the host.
    source: PathBuf,
    /// With what is mounted below the source.
    recursive: bool,
}

/// All that is bound into the container, but for masked paths.
fn mapped(spec: &Spec, rootfs: &Path, cgroups: Option<&Paths>) -> Result<Vec<Mapped>, Error> {
    let mut all = Vec::new();
    let mut add = |destination: &Path, source: &Path, recursive| {
        let (destination, source) = (destination.components().collect(), source.to_owned());
        all.push(Mapped { destination, source, recursive });
    };
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let plan = MountPlan::new(index, mount)?;
        match &plan.source {
            Source::Bind { path, recursive, .. } => add(&plan.destination, path, *recursive),
            Source::Cgroup if !has_cgroup_namespace(spec) => {
                let v2 = cgroups.is_some_and(Paths::is_v2);
                for hierarchy in cgroups.map(Paths::hierarchies).unwrap_or_default() {
                    let name = hierarchy.mount_point().file_name().filter(|_| !v2);
                    let destination = name.map(|name| plan.destination.join(name));
                    let destination = destination.as_ref().unwrap_or(&plan.destination);
                    add(destination, &hierarchy.full_path(), false);
                }
            }
            _ => {}
        }
    }
    // In a user namespace the host's devices are bound.
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    for device in devices::plan(devices)? {
        add(&device.path, &device.path, false);
    }
    // The rootfs itself is no external mount; what is mounted in it on the host is.
    add(Path::new("/"), rootfs, true);
    Ok(all)
}

fn has_cgroup_namespace(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup)
}

/// CRIU's `mnt[KEY]:VALUE`.
fn mount(key: &Path, value: &Path) -> OsString {
    let mut text = OsString::from("mnt[");
    text.push(key);
    text.push("]:");
    text.push(value);
    text
}

/// For the checkpoint of the container whose init is `pid`: `mnt[MOUNT POINT]:NAME` each.
///
/// # Errors
/// The config cannot be used, or init has ended.
pub fn dumped(
    spec: &Spec,
    rootfs: &Path,
    cgroups: Option<&Paths>,
    pid: i32,
    table: &MountTable,
) -> Result<Vec<OsString>, Error> {
    let host = MountTable::of("self")?;
    let path = format!("/proc/{pid}/root");
    let root = open_dir(Path::new(&path)).step(|| format!("open {path}"))?;
    let root = Rooted::new(&root);
    // By its id, because a destination may be behind symlinks.
    let point = |path: &Path| -> Option<PathBuf> {
        let id = mount_root_id(&root.open(path, OFlags::PATH).ok()?).ok()??;
        Some(table.with_id(id)?.point.clone())
    };
    let mut keys: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut add = |key: PathBuf, name: PathBuf| {
        if !keys.iter().any(|(other, _)| *other == key) {
            keys.push((key, name));
        }
    };
    let mapped = mapped(spec, rootfs, cgroups)?;
    for mapped in mapped.iter().filter(|mapped| mapped.destination != Path::new("/")) {
        if let Some(key) = point(&mapped.destination) {
            add(key, mapped.destination.clone());
        }
    }
    for path in masked_paths(spec) {
        let is_null = root.open(path, OFlags::PATH).is_ok_and(|file| is_null_device(&file));
        if let Some(key) = point(path).filter(|_| is_null) {
            add(key, NULL.into());
        }
    }
    // What came along with a recursive bind mount is on the host, too.
    for mapped in mapped.iter().filter(|mapped| mapped.recursive) {
        let (Some(key), Ok(source)) = (point(&mapped.destination), mapped.source.canonicalize())
        else {
            continue;
        };
        for mount in table.below(&key) {
            let Ok(inside) = mount.point.strip_prefix(&key) else { continue };
            let original = host.on(&source.join(inside));
            if original.is_some_and(|original| original.shows_the_same(mount)) {
                add(mount.point.clone(), mapped.destination.join(inside));
            }
        }
    }
    Ok(keys.iter().map(|(key, name)| self::mount(key, name)).collect())
}

fn masked_paths(spec: &Spec) -> impl Iterator<Item = &Path> {
    let linux = spec.linux().as_ref();
    let paths = linux.and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default();
    paths.iter().map(Path::new)
}

/// For `restore`: `mnt[NAME]:PATH` each. What the image has no mount for is not looked at.
///
/// # Errors
/// The config cannot be used.
pub fn restored(
    spec: &Spec,
    rootfs: &Path,
    cgroups: Option<&Paths>,
) -> Result<Vec<OsString>, Error> {
    let host = MountTable::of("self")?;
    let mut all: Vec<(PathBuf, PathBuf)> = vec![(NULL.into(), NULL.into())];
    let mut add = |name: PathBuf, path: &Path| {
        if !all.iter().any(|(other, _)| *other == name) {
            all.push((name, path.to_owned()));
        }
    };
    let mapped = mapped(spec, rootfs, cgroups)?;
    for mapped in mapped.iter().filter(|mapped| mapped.destination != Path::new("/")) {
        add(mapped.destination.clone(), &mapped.source);
    }
    for mapped in mapped.iter().filter(|mapped| mapped.recursive) {
        let Ok(source) = mapped.source.canonicalize() else { continue };
        for below in host.below(&source) {
            if let Ok(inside) = below.point.strip_prefix(&source) {
                add(mapped.destination.join(inside), &below.point);
            }
        }
    }
    Ok(all.iter().map(|(name, path)| mount(name, path)).collect())
}

/// Makes the places in the rootfs that are mounted on, as `create` does. What lies in a filesystem
/// that CRIU itself makes is in the image; what lies in a bind mount is made in its source.
///
/// # Errors
/// A place cannot be made.
pub fn make_mount_points(spec: &Spec, rootfs: &OwnedFd) -> Result<(), Error> {
    let mut made: Vec<MountPlan> = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let plan = MountPlan::new(index, mount)?;
        let below = made.iter().rev().find(|over| {
            plan.destination.starts_with(&over.destination) && plan.destination != over.destination
        });
        match below.map(|over| (&over.source, &over.destination)) {
            None => make_mount_point(&plan, rootfs, &plan.destination)?,
            Some((Source::Bind { path, .. }, over)) => {
                let inside = plan.destination.strip_prefix(over).unwrap_or(&plan.destination);
                if let Ok(source) = open_dir(path) {
                    make_mount_point(&plan, &source, inside)?;
                }
            }
            Some(_) => {}
        }
        made.push(plan);
    }
    Ok(())
}

fn make_mount_point(plan: &MountPlan, root: &OwnedFd, path: &Path) -> Result<(), Error> {
    let step = || format!("make the mount point {}", plan.destination.display());
    let is_dir = match &plan.source {
        Source::Remount => return Ok(()),
        Source::Bind { path, .. } => path.metadata().step(step)?.is_dir(),
        _ => true,
    };
    let root = Rooted::new(root);
    if is_dir { root.make_dirs(path) } else { root.make_file(path) }.step(step).map(drop)
}

/// The bytes for the RPC.
pub fn bytes(text: &OsString) -> &[u8] {
    text.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn bind_mounts_are_named_by_their_destination() {
        let spec = spec(
            r#"{"ociVersion":"1.0.2","root":{"path":"r"},"mounts":[
                {"destination":"/proc","type":"proc","source":"proc"},
                {"destination":"//data/","source":"/srv","options":["rbind"]}],
                "linux":{"namespaces":[{"type":"cgroup"}]}}"#,
        );
        let mapped = mapped(&spec, Path::new("/b/r"), None).unwrap();
        assert_eq!(mapped[0].destination, Path::new("/data"));
        assert!(mapped[0].recursive && mapped[0].source == Path::new("/srv"));
        assert_eq!(mapped.last().unwrap().source, Path::new("/b/r"));
        let restored = restored(&spec, Path::new("/b/r"), None).unwrap();
        assert!(restored.contains(&"mnt[/data]:/srv".into()));
        assert!(restored.contains(&"mnt[/dev/null]:/dev/null".into()));
        assert!(!restored.iter().any(|text| text.to_string_lossy().contains("mnt[/proc]")));
    }

    #[test]
    fn places_are_made_where_create_makes_them() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&rootfs).unwrap();
        let json = format!(
            r#"{{"ociVersion":"1.0.2","mounts":[
                {{"destination":"/data","source":{source:?},"options":["bind"]}},
                {{"destination":"/data/file","source":"/etc/passwd","options":["bind"]}},
                {{"destination":"/run","type":"tmpfs","source":"tmpfs"}},
                {{"destination":"/run/inside","type":"tmpfs","source":"tmpfs"}}]}}"#
        );
        make_mount_points(&spec(&json), &open_dir(&rootfs).unwrap()).unwrap();
        assert!(rootfs.join("data").is_dir() && rootfs.join("run").is_dir());
        assert!(source.join("file").is_file() && !rootfs.join("data/file").exists());
        assert!(!rootfs.join("run/inside").exists());
    }
}
