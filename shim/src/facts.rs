//! The few things that the shim itself must know of a container's config.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_wasm::annotations::{
    CONTAINERD_CONTAINER_TYPE, CRIO_CONTAINER_TYPE, HANDLER, SANDBOX, VARIANT,
};
use serde::Deserialize;

use crate::error::{Context, Error};

/// Names the pod's sandbox, for which there is one shim.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// Groups containers in one shim without a pod, as runc's shim has it.
const GROUP: &str = "io.containerd.runc.v2.group";

/// See the module.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Facts {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    linux: Option<Linux>,
    #[serde(default)]
    process: Option<Process>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Process {
    #[serde(default)]
    args: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<String>,
}

impl Facts {
    /// Reads the bundle's config.json.
    ///
    /// # Errors
    /// It cannot be read, or is no config.
    pub fn read(bundle: &Path) -> Result<Self, Error> {
        let path = bundle.join("config.json");
        let json = std::fs::read(&path).file("read", &path)?;
        serde_json::from_slice(&json).map_err(|error| Error::Request {
            field: "bundle",
            problem: format!("{}: {error}", path.display()),
        })
    }

    /// The group of containers that share a shim: the pod's sandbox; else the container alone.
    pub fn group(&self) -> Option<&str> {
        let mut values = [GROUP, SANDBOX_ID].into_iter().filter_map(|name| self.annotation(name));
        values.find(|value| !value.is_empty())
    }

    /// Whether an annotation may ask for wasm, in this container or, of a sandbox, in its pod.
    pub fn may_be_wasm(&self) -> bool {
        self.annotation(HANDLER).is_some() || self.annotation(VARIANT).is_some()
    }

    /// `process.args[0]`.
    pub fn entrypoint(&self) -> Option<&str> {
        self.process.as_ref()?.args.first().map(String::as_str)
    }

    /// Whether this is a pod's pause container.
    pub fn is_sandbox(&self) -> bool {
        let kinds = [CONTAINERD_CONTAINER_TYPE, CRIO_CONTAINER_TYPE];
        kinds.iter().any(|name| self.annotation(name) == Some(SANDBOX))
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether other processes may outlive the container's init: nobody but its cgroup tells then
    /// which are its.
    pub fn shares_pids(&self) -> bool {
        let namespaces = self.linux.as_ref().and_then(|linux| linux.namespaces.as_ref());
        let own = |namespace: &Namespace| {
            namespace.kind == "pid" && namespace.path.as_ref().is_none_or(String::is_empty)
        };
        !namespaces.is_some_and(|namespaces| namespaces.iter().any(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(json: &str) -> Facts {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn of_a_pod() {
        let container = facts(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s","run.oci.handler":"wasm"},
                "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/n"}]}}"#,
        );
        assert_eq!(container.group(), Some("s"));
        assert!(container.may_be_wasm() && !container.is_sandbox() && !container.shares_pids());
        let sandbox = facts(
            r#"{"annotations":{"io.kubernetes.cri.container-type":"sandbox"},
                "linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#,
        );
        assert!(sandbox.is_sandbox() && sandbox.shares_pids() && sandbox.group().is_none());
        assert!(facts("{}").shares_pids() && !facts("{}").may_be_wasm());
    }
}
