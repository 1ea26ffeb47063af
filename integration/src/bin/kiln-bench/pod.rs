//! What runs while something is measured, and ends with its guard.

use std::path::{Path, PathBuf};

use kiln_integration::fresh_id;
use kiln_integration::ttrpc::Client;

use crate::memory::{Keepers, Memory, init_of};
use crate::pods::{Bench, Subject, VARIANT};

/// A container that sleeps; ends with this.
pub struct Idle<'a> {
    bench: &'a Bench,
    /// Whose it is.
    pub subject: &'a Subject,
    /// Its id.
    pub id: String,
}

impl<'a> Idle<'a> {
    /// Starts one.
    pub fn start(bench: &'a Bench, subject: &'a Subject) -> Self {
        let id = fresh_id();
        bench.run_cli(subject, &["--detach"], &id, &["/busybox", "sleep", "100000"]).output().ok();
        Idle { bench, subject, id }
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.bench.delete(&self.id);
    }
}

/// A sandbox and the containers that share its shim; ends with this.
pub struct Pod<'a> {
    bench: &'a Bench,
    subject: &'a Subject,
    wasm: bool,
    /// The sandbox's first.
    pub ids: Vec<String>,
}

impl<'a> Pod<'a> {
    /// Only the sandbox, for containers of this kind.
    pub fn start(bench: &'a Bench, subject: &'a Subject, wasm: bool) -> Self {
        let mut pod = Pod { bench, subject, wasm, ids: Vec::new() };
        pod.add("sandbox", &["/pause"]);
        pod
    }

    /// Adds a container that sleeps.
    pub fn add_idle(&mut self) {
        let words: &[&str] =
            if self.wasm { &["/sleep.wasm", "100000"] } else { &["/busybox", "sleep", "100000"] };
        self.add("container", words);
    }

    fn add(&mut self, kind: &str, words: &[&str]) {
        let id = fresh_id();
        let sandbox = self.ids.first().unwrap_or(&id);
        let [sandbox, kind] = [("sandbox-id", sandbox.as_str()), ("container-type", kind)]
            .map(|(name, value)| format!("io.kubernetes.cri.{name}={value}"));
        let mut flags = vec!["--detach", "--annotation", &sandbox, "--annotation", &kind];
        if self.wasm {
            flags.extend(["--annotation", VARIANT]);
        }
        self.bench.run_cli(self.subject, &flags, &id, words).output().ok();
        self.ids.push(id);
    }

    /// The sandbox's bundle.
    pub fn bundle(&self) -> PathBuf {
        self.bench.bundle(&self.ids[0])
    }

    /// The sandbox's process.
    pub fn init(&self) -> i32 {
        init_of(&self.bundle())
    }

    /// A connection to its shim.
    pub fn client(&self) -> Client {
        let address = std::fs::read_to_string(self.bundle().join("address")).unwrap();
        Client::connect(Path::new(address.strip_prefix("unix://").expect("a path")))
    }

    /// What its shim and warm parent need.
    pub fn keepers(&self) -> Keepers {
        let bundles: Vec<_> = self.ids.iter().map(|id| self.bench.bundle(id)).collect();
        Keepers::of(&bundles)
    }

    /// Everything of the pod but the sandbox's container.
    pub fn whole(&self) -> Memory {
        let inits = self.ids[1..].iter().map(|id| self.bench.memory_of_init(id));
        let keepers = self.keepers();
        Memory::sum(inits.chain([keepers.shim, keepers.warm()]))
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        for id in self.ids.iter().rev() {
            self.bench.delete(id);
        }
    }
}
