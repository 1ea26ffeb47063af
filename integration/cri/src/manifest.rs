//! Pods and runtime classes as YAML, read strictly: a field that nothing here acts on is an error,
//! so that what is tried is all that the file says.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use kiln_integration::binary;
use serde::Deserialize;

/// `kind: Pod`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Manifest {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub spec: PodSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Metadata {
    pub name: String,
    pub labels: HashMap<String, String>,
    pub annotations: HashMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct PodSpec {
    pub runtime_class_name: String,
    pub restart_policy: String,
    pub host_network: bool,
    pub share_process_namespace: bool,
    pub host_users: Option<bool>,
    pub termination_grace_period_seconds: Option<i64>,
    pub security_context: SecurityContext,
    pub containers: Vec<ContainerSpec>,
    pub volumes: Vec<Volume>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct ContainerSpec {
    pub name: String,
    pub image: String,
    pub image_pull_policy: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    pub env: Vec<EnvVar>,
    pub stdin: bool,
    pub tty: bool,
    pub volume_mounts: Vec<VolumeMount>,
    pub resources: Resources,
    pub security_context: SecurityContext,
    pub liveness_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EnvVar {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Volume {
    pub name: String,
    pub empty_dir: EmptyDir,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EmptyDir {}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Resources {
    pub requests: BTreeMap<String, String>,
    pub limits: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct SecurityContext {
    pub privileged: bool,
    pub run_as_user: Option<i64>,
    pub read_only_root_filesystem: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub capabilities: Capabilities,
    pub seccomp_profile: Option<SeccompProfile>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SeccompProfile {
    pub r#type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Probe {
    pub exec: Option<ExecAction>,
    pub http_get: Option<HttpGet>,
    pub period_seconds: Option<u64>,
    pub timeout_seconds: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ExecAction {
    pub command: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HttpGet {
    pub path: String,
    pub port: u16,
}

/// `kind: RuntimeClass`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RuntimeClass {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub handler: String,
}

impl Manifest {
    /// Reads `deploy/NAME.yaml`.
    ///
    /// # Panics
    /// If it is not there, is not a pod, or says something that the tests would not try.
    #[track_caller]
    pub fn load(name: &str) -> Self {
        let manifest: Manifest = read(name);
        assert_eq!((&*manifest.api_version, &*manifest.kind), ("v1", "Pod"), "{name}");
        manifest
    }

    /// A container of it.
    #[track_caller]
    pub fn container(&self, name: &str) -> &ContainerSpec {
        let mut all = self.spec.containers.iter();
        all.find(|container| container.name == name)
            .unwrap_or_else(|| panic!("no container {name} in {self:?}"))
    }

    /// The first container, to change it.
    pub fn first(&mut self) -> &mut ContainerSpec {
        &mut self.spec.containers[0]
    }
}

impl RuntimeClass {
    /// Reads `deploy/NAME.yaml`.
    #[track_caller]
    pub fn load(name: &str) -> Self {
        let class: RuntimeClass = read(name);
        assert_eq!(
            (&*class.api_version, &*class.kind),
            ("node.k8s.io/v1", "RuntimeClass"),
            "{name}"
        );
        class
    }
}

#[track_caller]
fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let path = folder().join(format!("{name}.yaml"));
    let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    serde_yaml_ng::from_str(&text).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// `deploy/`.
pub fn folder() -> PathBuf {
    binary::workspace().join("deploy")
}

/// A quantity of Kubernetes' in thousandths: `250m` is 250, `64Mi` 67108864000.
///
/// # Panics
/// If it is none of the forms that the files here use.
#[track_caller]
pub fn milli(quantity: &str) -> i64 {
    let split = quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(split);
    let number: i64 = number.parse().unwrap_or_else(|_| panic!("quantity {quantity:?}"));
    match unit {
        "m" => number,
        "" => number * 1000,
        "Ki" => (number * 1000) << 10,
        "Mi" => (number * 1000) << 20,
        "Gi" => (number * 1000) << 30,
        _ => panic!("unit of {quantity:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        assert_eq!(milli("250m"), 250);
        assert_eq!(milli("2"), 2000);
        assert_eq!(milli("64Mi"), 67_108_864_000);
    }

    #[test]
    fn what_is_not_tried_is_refused() {
        let pod = "{apiVersion: v1, kind: Pod, metadata: {}, spec: {hostPID: true}}";
        let error = serde_yaml_ng::from_str::<Manifest>(pod).unwrap_err().to_string();
        assert!(error.contains("hostPID"), "{error}");
    }
}
