//! From `linux.cgroupsPath` to a unit, its slice and its cgroup: runc's docs/systemd.md,
//! systemd.unit(5), systemd.slice(5).

use std::path::Path;

use crate::error::Error;

/// systemd's UNIT_NAME_MAX, without the NUL.
const MAX_NAME: usize = 255;

/// A unit that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// Such as `cri-containerd-0a1b.scope`.
    pub unit: String,
    /// The slice that it goes into.
    pub slice: String,
}

impl Name {
    /// `[slice]:[prefix]:[name]`. Without a slice it is `default_slice`, `-` is the root slice;
    /// the unit is `prefix-name.scope`, but a name that ends in `.slice` is the unit itself.
    /// Without a path: as `:kiln:ID`.
    pub fn parse(
        cgroups_path: Option<&Path>,
        id: &str,
        default_slice: &str,
    ) -> Result<Self, Error> {
        let given = cgroups_path.filter(|path| !path.as_os_str().is_empty());
        let whole = given.map_or_else(|| format!(":kiln:{id}").into(), Path::to_owned);
        let error = |reason| Error::CgroupsPath { path: whole.clone(), reason };
        let text = whole.to_str().ok_or_else(|| error("is not text"))?;
        let mut parts = text.split(':');
        let (Some(slice), Some(prefix), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error("must be slice:prefix:name for the systemd driver"));
        };
        let slice = match slice {
            "" => default_slice,
            "-" => "-.slice",
            slice => slice,
        };
        let name = if name.is_empty() { id } else { name };
        let unit = match name.ends_with(".slice") {
            true => name.to_owned(),
            false => format!("{prefix}-{name}.scope"),
        };
        if unit.len() > MAX_NAME || !unit.bytes().all(is_unit_char) {
            return Err(error("does not make a valid unit name, see systemd.unit(5)"));
        }
        let unit = Self { unit, slice: slice.to_owned() };
        if unit.path().is_none() {
            return Err(error("does not name a valid slice, see systemd.slice(5)"));
        }
        Ok(unit)
    }

    /// Whether the unit is a slice itself.
    pub fn is_slice(&self) -> bool {
        self.unit.ends_with(".slice")
    }

    /// The unit's cgroup, below the manager's, without a slash at its beginning. A slice's place
    /// follows from its name, whatever slice it was given.
    pub fn path(&self) -> Option<String> {
        let slice = slice_path(&self.slice)?;
        if self.is_slice() {
            return slice_path(&self.unit).filter(|path| !path.is_empty());
        }
        let unit = escape(&self.unit);
        Some(if slice.is_empty() { unit } else { format!("{slice}/{unit}") })
    }
}

/// `a-b.slice` is in `a.slice`: `a.slice/a-b.slice`. The root slice is the empty path.
fn slice_path(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    if stem.len() > MAX_NAME || !stem.bytes().all(is_unit_char) {
        return None;
    }
    let mut path = String::new();
    let mut name = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return None;
        }
        if !name.is_empty() {
            name.push('-');
            path.push('/');
        }
        name += part;
        path += &escape(&format!("{name}.slice"));
    }
    Some(path)
}

fn is_unit_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte)
}

/// systemd puts a `_` before a name that could be taken for a file of cgroupfs: cg_escape() in
/// src/basic/cgroup-util.c.
fn escape(name: &str) -> String {
    const CONTROLLERS: [&str; 12] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "io",
        "blkio",
        "memory",
        "devices",
        "pids",
        "bpf-firewall",
        "bpf-devices",
        "bpf-foreign",
        "cgroup",
    ];
    let first = name.split('.').next().unwrap_or_default();
    let taken = name.starts_with(['_', '.'])
        || matches!(name, "notify_on_release" | "release_agent" | "tasks")
        || CONTROLLERS.contains(&first);
    if taken { format!("_{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Result<Name, Error> {
        Name::parse(Some(Path::new(path)), "web1", "system.slice")
    }

    #[track_caller]
    fn is(path: &str, unit: &str, slice: &str, cgroup: &str) {
        let found = name(path).unwrap();
        assert_eq!((found.unit.as_str(), found.slice.as_str()), (unit, slice), "{path}");
        assert_eq!(found.path().as_deref(), Some(cgroup), "{path}");
    }

    #[test]
    fn prefix_and_name_make_a_scope() {
        is("a.slice:kiln:web", "kiln-web.scope", "a.slice", "a.slice/kiln-web.scope");
        is(
            "kubepods-burstable-pod1_2.slice:cri-containerd:0a1b",
            "cri-containerd-0a1b.scope",
            "kubepods-burstable-pod1_2.slice",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/\
             cri-containerd-0a1b.scope",
        );
        is(
            "machine.slice:libpod:x",
            "libpod-x.scope",
            "machine.slice",
            "machine.slice/libpod-x.scope",
        );
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        is(":kiln:web", "kiln-web.scope", "system.slice", "system.slice/kiln-web.scope");
        is("::", "-web1.scope", "system.slice", "system.slice/-web1.scope");
        is("-:kiln:web", "kiln-web.scope", "-.slice", "kiln-web.scope");
        is("-.slice:kiln:web", "kiln-web.scope", "-.slice", "kiln-web.scope");
        let absent = Name::parse(None, "web1", "user.slice").unwrap();
        assert_eq!(absent.unit, "kiln-web1.scope");
        assert_eq!(absent.slice, "user.slice");
        assert_eq!(Name::parse(Some(Path::new("")), "web1", "user.slice").unwrap(), absent);
    }

    #[test]
    fn a_name_that_ends_in_slice_is_a_slice() {
        let found = name("a.slice:ignored:a-b.slice").unwrap();
        assert!(found.is_slice());
        assert_eq!(found.unit, "a-b.slice");
        assert_eq!(found.path().unwrap(), "a.slice/a-b.slice");
        assert!(name("a.slice::-.slice").is_err());
    }

    #[test]
    fn names_that_look_like_files_are_escaped_as_systemd_does() {
        is("memory.slice:x:y", "x-y.scope", "memory.slice", "_memory.slice/x-y.scope");
        is("a.slice:_b:c", "_b-c.scope", "a.slice", "a.slice/__b-c.scope");
        is("cpus.slice:a:c", "a-c.scope", "cpus.slice", "cpus.slice/a-c.scope");
    }

    #[test]
    fn wrong_ones_are_named() {
        for path in ["/a/b", "web", "a:b", "a.slice:b:c:d"] {
            let error = name(path).unwrap_err().to_string();
            let expected = format!(
                "linux.cgroupsPath {path}: must be slice:prefix:name for the systemd driver"
            );
            assert_eq!(error, expected);
        }
        for path in ["a.slice/b.slice:k:x", "a:k:x", ".slice:k:x", "a--b.slice:k:x", "a-.slice:k:x"]
        {
            assert!(name(path).unwrap_err().to_string().contains("valid slice"), "{path}");
        }
        let long = format!(":k:{}", "x".repeat(260));
        for path in [":k:a/b", ":k:a b", ":k:a+b", ":k:\u{e9}", &long] {
            assert!(name(path).unwrap_err().to_string().contains("valid unit name"), "{path}");
        }
    }
}
