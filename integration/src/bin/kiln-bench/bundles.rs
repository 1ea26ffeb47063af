//! The bundles that are run: the default of `spec` with another program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_integration::seccomp_profile;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::measure::Runtime;

/// All bundles of the benchmark, in one folder that goes with this.
pub struct Bundles {
    home: TempDir,
    default: Value,
    examples: PathBuf,
}

impl Bundles {
    /// Takes the default config from the first runtime's `spec`, so that all
    /// run the same one.
    pub fn new(runtime: &Runtime, examples: &Path) -> Self {
        let home = tempfile::Builder::new().prefix("kiln-bench-").tempdir().unwrap();
        let mut spec = Command::new(&runtime.binary);
        let status = spec.arg("spec").current_dir(home.path()).status().unwrap();
        assert!(status.success(), "{spec:?}: {status}");
        let text = fs::read_to_string(home.path().join("config.json")).unwrap();
        let mut default: Value = serde_json::from_str(&text).unwrap();
        default["process"]["terminal"] = json!(false);
        // crun 1.8 knows no newer one.
        default["ociVersion"] = json!("1.0.2");
        Bundles { home, default, examples: examples.to_path_buf() }
    }

    /// Where a runtime keeps its state.
    pub fn root(&self, runtime: &Runtime) -> PathBuf {
        self.home.path().join(format!("root-{}", runtime.name))
    }

    /// A file for `--pid-file`.
    pub fn pid_file(&self) -> PathBuf {
        self.home.path().join("pid")
    }

    /// Where kiln keeps compiled filters and modules during the benchmark.
    pub fn cache(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    /// The same for runs that are to be interpreted.
    pub fn interpreted_cache(&self) -> PathBuf {
        self.home.path().join("cache-interpreted")
    }

    /// A bundle that runs an example with these arguments.
    pub fn example(&self, program: &str, arguments: &[&str]) -> PathBuf {
        let mut config = self.default.clone();
        let entrypoint = format!("/{program}");
        let words = [entrypoint.as_str()].into_iter().chain(arguments.iter().copied());
        config["process"]["args"] = json!(words.collect::<Vec<_>>());
        if program.ends_with(".wasm") {
            config["annotations"]["module.wasm.image/variant"] = json!("compat");
        }
        self.write(program, &config)
    }

    /// Has a bundle's container join namespaces of a process.
    pub fn join(bundle: &Path, pid: i32, kinds: &[&str]) {
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let kind = namespace["type"].as_str().unwrap();
            if kinds.contains(&kind) {
                let file = kind.replace("network", "net");
                namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
            }
        }
        // The host's name is the pod's.
        config.as_object_mut().unwrap().remove("hostname");
        fs::write(path, config.to_string()).unwrap();
    }

    /// The same bundle anew, which nobody has written to: as containerd makes one for every
    /// container.
    pub fn fresh(&self, bundle: &Path) -> TempDir {
        let copy = tempfile::tempdir_in(self.home.path()).unwrap();
        fs::copy(bundle.join("config.json"), copy.path().join("config.json")).unwrap();
        fs::create_dir(copy.path().join("rootfs")).unwrap();
        for file in fs::read_dir(bundle.join("rootfs")).unwrap() {
            let file = file.unwrap();
            // Mount points that earlier containers have made there are folders.
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), copy.path().join("rootfs").join(file.file_name())).unwrap();
            }
        }
        copy
    }

    /// A bundle that runs until it is killed, with the static `true` beside.
    pub fn idle(&self) -> PathBuf {
        let mut config = self.default.clone();
        config["process"]["args"] = json!(["/busybox", "sleep", "100"]);
        let bundle = self.write("true", &config);
        fs::copy("/bin/busybox", bundle.join("rootfs/busybox")).expect("Debian's busybox-static");
        bundle
    }

    /// The static `true` with containerd's default seccomp profile.
    pub fn with_seccomp(&self) -> PathBuf {
        let mut config = self.default.clone();
        config["process"]["args"] = json!(["/true"]);
        config["linux"]["seccomp"] = seccomp_profile();
        self.write("true", &config)
    }

    fn write(&self, program: &str, config: &Value) -> PathBuf {
        let number = fs::read_dir(self.home.path()).unwrap().count();
        let bundle = self.home.path().join(format!("{number}-{program}"));
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let from = self.examples.join(program);
        fs::copy(&from, bundle.join("rootfs").join(program))
            .unwrap_or_else(|err| panic!("{} (examples/build makes it): {err}", from.display()));
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_joins_a_process() {
        let dir = tempfile::tempdir().unwrap();
        let kinds = [json!({ "type": "pid" }), json!({ "type": "network" })];
        let config = json!({ "hostname": "h", "linux": { "namespaces": kinds } });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Bundles::join(dir.path(), 7, &["network", "uts"]);
        let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
        let kinds =
            [json!({ "type": "pid" }), json!({ "type": "network", "path": "/proc/7/ns/net" })];
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({ "linux": { "namespaces": kinds } })
        );
    }
}
