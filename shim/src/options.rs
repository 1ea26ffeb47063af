//! Runtime options: those of runc's shim, whichever way containerd passes them on.
//!
//! `ctr` and Docker send `containerd.runc.v1.Options`. The CRI plugin knows that message for runc's
//! shim only; for any other it sends `runtimeoptions.v1.Options`: the TOML of the runtime's
//! `options` table (1.7), or the path of a file with it (`ConfigPath`). The Go client of containerd
//! 1.x sends a runtime that is not called `io.containerd.runc.*` what the first shims took
//! (`containerd.linux.runc.CreateOptions`), for one, where a container has a user namespace.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error};

/// Where state is, unless an option says otherwise: a directory for each namespace.
const ROOT: &str = "/run/containerd/kiln";
/// The file in the bundle that keeps them.
const SAVED: &str = "kiln-options.json";

/// What of runc's options kiln's shim knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Options {
    /// MS_MOVE rather than pivot_root(2).
    pub no_pivot_root: bool,
    /// Leave the containers the shim's session keyring.
    pub no_new_keyring: bool,
    /// A cgroup for the shim itself.
    pub shim_cgroup: String,
    /// The owner of the FIFOs.
    pub io_uid: u32,
    /// Their group.
    pub io_gid: u32,
    /// Of no use: this shim is the runtime. An error, so that nobody believes otherwise.
    pub binary_name: String,
    /// The directory below which state is.
    pub root: String,
    /// systemd makes the cgroups.
    pub systemd_cgroup: bool,
    /// Where checkpoints are written.
    pub criu_image_path: String,
    /// Where CRIU works.
    pub criu_work_path: String,
    /// Of no use: CRIU is found along PATH.
    pub criu_path: String,
}

impl Options {
    /// Reads what came with a request or on stdin; none is the defaults.
    ///
    /// # Errors
    /// Another type, or one that cannot be read: the field is named.
    pub fn read(any: Option<&Any>) -> Result<Self, Error> {
        let Some(any) = any else { return Ok(Self::default()) };
        // typeurl writes bare names; others put a host before.
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let options = match name {
            "" => Self::default(),
            "containerd.runc.v1.Options" => {
                let read = oci::Options::parse_from_bytes(&any.value);
                read.map_err(|error| problem(error.to_string()))?.into()
            }
            "runtimeoptions.v1.Options" => generic(&any.value)?,
            "containerd.linux.runc.CreateOptions" => first(&any.value)?,
            other => return Err(problem(format!("type {other} is not known"))),
        };
        if !options.binary_name.is_empty() {
            return Err(problem(
                "BinaryName: this shim is the runtime (hint: io.containerd.runc.v2 takes another \
                 one)"
                    .to_owned(),
            ));
        }
        Ok(options)
    }

    /// Keeps them in the bundle, for the `delete` after the shim has died.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, bundle: &Path) -> Result<(), Error> {
        let path = bundle.join(SAVED);
        let json = serde_json::to_vec(self).map_err(std::io::Error::from);
        json.and_then(|json| std::fs::write(&path, json)).file("write", path)
    }

    /// Those of a bundle; the defaults if there are none.
    pub fn saved(bundle: &Path) -> Self {
        let json = std::fs::read(bundle.join(SAVED)).unwrap_or_default();
        serde_json::from_slice(&json).unwrap_or_default()
    }

    /// The state root for a namespace.
    pub fn state_root(&self, namespace: &str) -> PathBuf {
        let root = if self.root.is_empty() { ROOT } else { &self.root };
        Path::new(root).join(namespace)
    }
}

impl From<oci::Options> for Options {
    fn from(options: oci::Options) -> Self {
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
            criu_path: String::new(),
        }
    }
}

fn problem(problem: String) -> Error {
    Error::Request { field: "options", problem }
}

/// `containerd.linux.runc.CreateOptions`. What it has for CRIU's sake, `restore` does not take.
fn first(bytes: &[u8]) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut read = || {
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag >> 3 {
                1 => options.no_pivot_root = input.read_bool()?,
                2..=5 => drop(input.read_bool()?),
                8 => options.no_new_keyring = input.read_bool()?,
                9 => options.shim_cgroup = input.read_string()?,
                10 => options.io_uid = input.read_uint32()?,
                11 => options.io_gid = input.read_uint32()?,
                12 => options.criu_work_path = input.read_string()?,
                13 => options.criu_image_path = input.read_string()?,
                _ => drop(input.read_bytes()?),
            }
        }
        Ok::<_, containerd_shim_protos::protobuf::Error>(())
    };
    read().map_err(|error| problem(error.to_string()))?;
    Ok(options)
}

/// Reads the options of a checkpoint; none is the defaults.
///
/// # Errors
/// They cannot be read.
pub fn of_checkpoint(any: Option<&Any>) -> Result<oci::CheckpointOptions, Error> {
    let Some(any) = any else { return Ok(oci::CheckpointOptions::new()) };
    let read = oci::CheckpointOptions::parse_from_bytes(&any.value);
    let mut options = read.map_err(|error| problem(error.to_string()))?;
    // The same message but for two fields that have changed places.
    if any.type_url.ends_with("containerd.linux.runc.CheckpointOptions") {
        std::mem::swap(&mut options.image_path, &mut options.work_path);
    }
    Ok(options)
}

/// `runtimeoptions.v1.Options`: 1 is the type, 2 the path of a file, 3 its content.
fn generic(bytes: &[u8]) -> Result<Options, Error> {
    let (mut path, mut body) = (String::new(), Vec::new());
    let mut read = || {
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag >> 3 {
                2 => path = input.read_string()?,
                3 => body = input.read_bytes()?,
                _ => drop(input.read_bytes()?),
            }
        }
        Ok::<_, containerd_shim_protos::protobuf::Error>(())
    };
    read().map_err(|error| problem(error.to_string()))?;
    if body.is_empty() && !path.is_empty() {
        body = std::fs::read(&path).map_err(|error| problem(format!("{path}: {error}")))?;
    }
    let text = String::from_utf8(body).map_err(|_| problem("is not UTF-8".to_owned()))?;
    toml::from_str(&text).map_err(|error| problem(error.message().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, value: Vec<u8>) -> Any {
        let mut any = Any::new();
        any.type_url = name.to_owned();
        any.value = value;
        any
    }

    fn problem_of(any: &Any) -> String {
        Options::read(Some(any)).unwrap_err().to_string()
    }

    #[test]
    fn runcs_options() {
        assert_eq!(Options::read(None).unwrap(), Options::default());
        let mut runc = oci::Options::new();
        runc.systemd_cgroup = true;
        runc.root = "/run/x".into();
        let message = any("containerd.runc.v1.Options", runc.write_to_bytes().unwrap());
        let options = Options::read(Some(&message)).unwrap();
        assert!(options.systemd_cgroup);
        assert_eq!(options.state_root("k8s.io"), Path::new("/run/x/k8s.io"));
        let default = Options::default().state_root("moby");
        assert_eq!(default, Path::new("/run/containerd/kiln/moby"));
        runc.binary_name = "crun".into();
        let message = any("x/containerd.runc.v1.Options", runc.write_to_bytes().unwrap());
        assert!(problem_of(&message).contains("BinaryName"));
        assert!(problem_of(&any("what.Options", Vec::new())).contains("what.Options"));
    }

    #[test]
    fn options_of_the_first_shims() {
        let name = "containerd.linux.runc.CreateOptions";
        let bytes = [&[1 << 3, 1, 7 << 3 | 2, 1, b'x', 9 << 3 | 2, 2][..], b"/s", &[10 << 3, 7]];
        let options = Options::read(Some(&any(name, bytes.concat()))).unwrap();
        assert!(options.no_pivot_root && !options.no_new_keyring);
        assert_eq!((options.shim_cgroup.as_str(), options.io_uid, options.io_gid), ("/s", 7, 0));
        assert!(problem_of(&any(name, vec![9 << 3 | 2, 9])).starts_with("options"));

        let bytes = [&[1 << 3, 1, 8 << 3 | 2, 1, b'w', 9 << 3 | 2, 1, b'i'][..]].concat();
        let name = "containerd.linux.runc.CheckpointOptions";
        let options = of_checkpoint(Some(&any(name, bytes))).unwrap();
        assert!(options.exit);
        assert_eq!((options.image_path.as_str(), options.work_path.as_str()), ("i", "w"));
        assert_eq!(of_checkpoint(None).unwrap(), oci::CheckpointOptions::new());
    }

    #[test]
    fn cris_options_are_toml() {
        let field = |number: u8, text: &str| {
            [&[number << 3 | 2, u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat()
        };
        let name = "runtimeoptions.v1.Options";
        let body = [field(1, "x"), field(3, "SystemdCgroup = true\nNoPivotRoot = true")].concat();
        let options = Options::read(Some(&any(name, body))).unwrap();
        assert!(options.systemd_cgroup && options.no_pivot_root);

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "Root = \"/r\"").unwrap();
        let path = field(2, file.path().to_str().unwrap());
        assert_eq!(Options::read(Some(&any(name, path))).unwrap().root, "/r");

        assert!(problem_of(&any(name, field(2, "/nowhere"))).contains("/nowhere"));
        assert!(problem_of(&any(name, field(3, "Sytemd = 1"))).contains("Sytemd"));
        assert!(problem_of(&any(name, vec![0xff])).starts_with("options"));
    }
}
