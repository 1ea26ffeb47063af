//! The bundles that are run: the default of `spec` with another program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_integration::binary::workspace;
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
        let profile = workspace().join("integration/fixtures/seccomp-containerd-default.json");
        let text = fs::read_to_string(profile).unwrap();
        config["linux"]["seccomp"] = serde_json::from_str(&text).unwrap();
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
