//! A throw-away bundle: a busybox rootfs and a `config.json` that starts as
//! what the runtime's own `spec` writes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::examples;
use crate::hostmount::HostMount;
use crate::{Cli, Container};

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// Programs linked to busybox in the rootfs.
const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "echo", "env",
    "false", "find", "grep", "head", "hostname", "id", "kill", "ln", "ls", "md5sum", "mkdir",
    "mknod", "mount", "mv", "od", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "sh",
    "sleep", "sort", "stat", "stty", "sync", "tail", "test", "timeout", "touch", "tr", "true",
    "tty", "umount", "uname", "wc", "yes",
];

/// A bundle in the making. The folder goes when this, or the [`Container`]
/// made from it, is dropped.
#[derive(Debug)]
pub struct Bundle {
    home: TempDir,
    /// The `config.json` to be, for what the methods do not cover.
    pub config: Value,
    host_mounts: Vec<HostMount>,
}

impl Bundle {
    /// A bundle whose container runs `true`, without a terminal, otherwise as
    /// `spec` writes it.
    ///
    /// # Panics
    /// Without root or busybox-static: neither is worth a skip per test.
    pub fn new() -> Self {
        assert!(rustix::process::getuid().is_root(), "the integration tests need root");
        let home = tempfile::Builder::new().prefix("kiln-it-").tempdir().unwrap();
        // A user namespace's root is somebody else here and must get through.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let bundle = Bundle { home, config: default_config().clone(), host_mounts: Vec::new() };
        bundle.fill_rootfs();
        bundle.set("/process/terminal", json!(false)).args(&["true"])
    }

    /// The same with `sh -c script` as the container's program.
    pub fn sh(script: &str) -> Self {
        Bundle::new().args(&["sh", "-c", script])
    }

    /// A bundle without anything in its rootfs but one example module, which is
    /// its program: what an image `FROM scratch` gives.
    ///
    /// # Panics
    /// If the example is not built; [`crate::needs_wasm!`] comes first.
    pub fn wasm(example: &str, arguments: &[&str]) -> Self {
        let name = format!("{example}.wasm");
        let from = examples::find(&name).unwrap_or_else(|| panic!("{name} is not built"));
        Bundle::module(&name, &fs::read(from).unwrap()).arguments(arguments)
    }

    /// The same with these bytes as the module, under this name.
    pub fn module(name: &str, bytes: &[u8]) -> Self {
        let bundle = Bundle::new();
        fs::remove_dir_all(bundle.rootfs()).unwrap();
        fs::create_dir(bundle.rootfs()).unwrap();
        fs::write(bundle.rootfs().join(name), bytes).unwrap();
        let bundle = bundle.args(&[&format!("/{name}")]);
        bundle.annotation("module.wasm.image/variant", "compat")
    }

    /// Adds arguments to those that there are.
    pub fn arguments(self, arguments: &[&str]) -> Self {
        arguments
            .iter()
            .fold(self, |bundle, argument| bundle.push("/process/args", json!(argument)))
    }

    /// Sets an annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.config["annotations"][name] = json!(value);
        self
    }

    /// Takes away all annotations.
    pub fn no_annotations(mut self) -> Self {
        self.config["annotations"] = json!({});
        self
    }

    /// The bundle's folder.
    pub fn path(&self) -> PathBuf {
        self.home.path().join("bundle")
    }

    /// The container's root, on the host.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// A scratch folder that is not in the bundle but goes with it.
    pub fn scratch(&self) -> PathBuf {
        self.home.path().join("scratch")
    }

    /// The folder of everything: bundle, scratch and state root.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The program and its arguments.
    pub fn args(self, args: &[&str]) -> Self {
        self.set("/process/args", json!(args))
    }

    /// Puts `value` at a JSON pointer, with the objects on the way to it.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut at = &mut self.config;
        for key in pointer.trim_start_matches('/').split('/') {
            at = match at {
                Value::Array(items) => &mut items[key.parse::<usize>().unwrap()],
                other => &mut other[key],
            };
        }
        *at = value;
        self
    }

    /// Takes away the field at a JSON pointer.
    pub fn unset(mut self, pointer: &str) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        self
    }

    /// Adds to the array at a JSON pointer, making it if need be.
    pub fn push(self, pointer: &str, item: Value) -> Self {
        let mut items = self.config.pointer(pointer).cloned().unwrap_or(Value::Null);
        if items.is_null() {
            items = json!([]);
        }
        items.as_array_mut().unwrap().push(item);
        self.set(pointer, items)
    }

    /// Adds a mount.
    pub fn mount(self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        let mount = json!({
            "destination": destination, "type": kind, "source": source, "options": options,
        });
        self.push("/mounts", mount)
    }

    /// Adds a bind mount of a host path.
    pub fn bind(self, source: impl AsRef<Path>, destination: &str, options: &[&str]) -> Self {
        let source = source.as_ref().to_str().unwrap().to_owned();
        self.mount(destination, "bind", &source, options)
    }

    /// Replaces or adds the namespace of this type: new, or joined by `path`.
    pub fn namespace(self, kind: &str, path: Option<&str>) -> Self {
        let mut bundle = self.without_namespace(kind);
        let mut entry = json!({ "type": kind });
        if let Some(path) = path {
            entry["path"] = json!(path);
        }
        bundle = bundle.push("/linux/namespaces", entry);
        bundle
    }

    /// Takes away the namespace of this type: the container shares the host's.
    pub fn without_namespace(mut self, kind: &str) -> Self {
        let list = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|entry| entry["type"] != kind);
        self
    }

    /// Gives the container a root that it may write to.
    pub fn writable(self) -> Self {
        self.set("/root/readonly", json!(false))
    }

    /// Gives the process these capabilities, in every set, and no others.
    pub fn capabilities(self, names: &[&str]) -> Self {
        let sets = ["bounding", "effective", "inheritable", "permitted", "ambient"];
        sets.iter().fold(self, |bundle, set| {
            bundle.set(&format!("/process/capabilities/{set}"), json!(names))
        })
    }

    /// Adds a user namespace that maps ids from 0 to `host_id` upwards, and
    /// gives the rootfs to its root.
    pub fn user_namespace(self, host_id: u32) -> Self {
        let map = json!([{ "containerID": 0, "hostID": host_id, "size": 65536 }]);
        for entry in [self.rootfs(), self.path(), self.home.path().to_path_buf()] {
            std::os::unix::fs::chown(entry, Some(host_id), Some(host_id)).unwrap();
        }
        self.namespace("user", None)
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
    }

    /// Keeps a mount on the host until the container is deleted.
    pub fn hold(&mut self, mount: HostMount) {
        self.host_mounts.push(mount);
    }

    /// Undoes the mounts on the host, the last one first.
    pub(crate) fn undo_host_mounts(&mut self) {
        while let Some(mount) = self.host_mounts.pop() {
            drop(mount);
        }
    }

    /// Writes `config.json` and makes a container id for it.
    pub fn container(self) -> Container {
        self.write();
        Container::new(self)
    }

    /// Writes `config.json`; for a test that changes it under a container.
    pub fn write(&self) {
        let text = serde_json::to_string_pretty(&self.config).unwrap();
        fs::write(self.path().join("config.json"), text).unwrap();
    }

    fn fill_rootfs(&self) {
        let rootfs = self.rootfs();
        for dir in ["bin", "dev", "proc", "sys", "tmp", "etc", "root"] {
            fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        fs::create_dir(self.scratch()).unwrap();
        // A copy, never a link: a container that may write to its root must not
        // reach the host's program.
        fs::copy(BUSYBOX, rootfs.join("bin/busybox"))
            .unwrap_or_else(|err| panic!("{BUSYBOX} (Debian's busybox-static): {err}"));
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Before the folder that they are in.
        self.undo_host_mounts();
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Bundle::new()
    }
}

/// What the binary's `spec` writes; asked once per test program.
/// containerd's default seccomp profile, for the capabilities of `spec`.
pub fn seccomp_profile() -> Value {
    let path =
        crate::binary::workspace().join("integration/fixtures/seccomp-containerd-default.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn default_config() -> &'static Value {
    static CONFIG: OnceLock<Value> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        Cli::new(["spec"]).dir(dir.path()).output().ok();
        let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    })
}
