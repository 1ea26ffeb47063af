//! The features document: what this kiln recognises, for `kiln features`.
//!
//! It says what is implemented, whatever the host has: runtime-spec v1.3, features.md and
//! features-linux.md. oci-spec has types for it, but they write `null` for what they leave out and
//! the annotations in a new order each time; those here are for writing alone.

use std::collections::BTreeMap;

use oci_spec::runtime::Arch;
use serde::Serialize;

use crate::{memory_policy, seccomp};

/// Any 1.x is accepted; this is the latest whose properties have been looked at.
pub const OCI_VERSION_MAX: &str = "1.3.0";

/// In the order of their numbers, as runc has them.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The document; serialise it as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: [&'static str; 6],
    mount_options: Vec<String>,
    linux: Linux,
    annotations: BTreeMap<&'static str, String>,
    potentially_unsafe_config_annotations: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: [&'static str; 8],
    capabilities: Vec<&'static str>,
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Switch,
    selinux: Switch,
    intel_rdt: IntelRdt,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Switch,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Switch {
    enabled: bool,
}

const YES: Switch = Switch { enabled: true };

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: [&'static str; 9],
    operators: [&'static str; 7],
    archs: Vec<Arch>,
    known_flags: [&'static str; 4],
    supported_flags: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct MemoryPolicy {
    modes: [&'static str; 7],
    flags: [&'static str; 3],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct MountExtensions {
    idmap: Switch,
}

/// The features of this kiln, whose parser of mounts knows `mount_options`
/// (`crate::mounts::option_names`). `unsafe_annotations` change what runs, or with what trust:
/// whoever takes configs from others should look at them.
pub fn features(mount_options: &[&str], unsafe_annotations: &[&str]) -> Features {
    let sorted = |words: &[&str]| {
        let mut words: Vec<String> = words.iter().map(ToString::to_string).collect();
        words.sort_unstable();
        words
    };
    let mount_options = sorted(mount_options);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let mut annotations = BTreeMap::from([("run.oci.kiln.version", version)]);
    // Whether or not the host has CRIU: features-linux.md, and runc.
    annotations.insert("org.opencontainers.runc.checkpoint.enabled", "true".to_owned());
    if let Some(libseccomp) = seccomp::library_version() {
        annotations.insert("io.github.seccomp.libseccomp.version", libseccomp);
    }
    Features {
        oci_version_min: "1.0.0",
        oci_version_max: OCI_VERSION_MAX,
        hooks: [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ],
        mount_options,
        linux: linux(),
        annotations,
        potentially_unsafe_config_annotations: sorted(unsafe_annotations),
    }
}

impl Features {
    /// What can be built into a runtime and is in this one, in crun's words (`crun --version`).
    pub fn tags(&self) -> Vec<&'static str> {
        let linux = &self.linux;
        let tags = [
            ("SYSTEMD", linux.cgroup.systemd),
            ("SELINUX", linux.selinux.enabled),
            ("APPARMOR", linux.apparmor.enabled),
            ("CAP", !linux.capabilities.is_empty()),
            ("SECCOMP", linux.seccomp.enabled),
            // The device rules of cgroup v2.
            ("EBPF", linux.cgroup.v2),
        ];
        tags.into_iter().filter_map(|(tag, there)| there.then_some(tag)).collect()
    }
}

fn linux() -> Linux {
    Linux {
        namespaces: ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
        capabilities: CAPABILITIES.to_vec(),
        cgroup: Cgroup { v1: true, v2: true, systemd: true, systemd_user: true, rdma: true },
        seccomp: Seccomp {
            enabled: true,
            actions: [
                "SCMP_ACT_ALLOW",
                "SCMP_ACT_ERRNO",
                "SCMP_ACT_KILL",
                "SCMP_ACT_KILL_PROCESS",
                "SCMP_ACT_KILL_THREAD",
                "SCMP_ACT_LOG",
                "SCMP_ACT_NOTIFY",
                "SCMP_ACT_TRACE",
                "SCMP_ACT_TRAP",
            ],
            operators: [
                "SCMP_CMP_EQ",
                "SCMP_CMP_GE",
                "SCMP_CMP_GT",
                "SCMP_CMP_LE",
                "SCMP_CMP_LT",
                "SCMP_CMP_MASKED_EQ",
                "SCMP_CMP_NE",
            ],
            archs: seccomp::architectures(),
            known_flags: seccomp::FLAGS,
            supported_flags: seccomp::supported_flags(),
        },
        apparmor: YES,
        selinux: YES,
        intel_rdt: IntelRdt { enabled: true, schemata: true, monitoring: true },
        memory_policy: MemoryPolicy { modes: memory_policy::MODES, flags: memory_policy::FLAGS },
        mount_extensions: MountExtensions { idmap: Switch { enabled: true } },
        net_devices: YES,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use oci_spec::runtime::{
        Capability, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    };
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        serde_json::to_value(features(&["ro", "bind"], &["run.oci.handler"])).unwrap()
    }

    fn parsed<T: serde::de::DeserializeOwned>(pointer: &str) -> Vec<T> {
        let list = document().pointer(pointer).unwrap().clone();
        serde_json::from_value(list).unwrap_or_else(|error| panic!("{pointer}: {error}"))
    }

    #[test]
    fn is_a_features_document_to_oci_spec() {
        let document = document();
        assert!(!document.to_string().contains("null"));
        let read: oci_spec::runtime::Features = serde_json::from_value(document).unwrap();
        assert_eq!(read.oci_version_min(), "1.0.0");
        assert_eq!(read.mount_options().as_deref().unwrap(), ["bind", "ro"]);
        let linux = read.linux().as_ref().unwrap();
        assert_eq!(linux.cgroup().as_ref().unwrap().systemd(), &Some(true));
        assert_eq!(linux.intel_rdt().as_ref().unwrap().enabled(), &Some(true));
        let idmap = linux.mount_extensions().as_ref().unwrap().idmap().as_ref();
        assert_eq!(idmap.unwrap().enabled(), &Some(true));
        let annotations = read.annotations().as_ref().unwrap();
        assert!(annotations["io.github.seccomp.libseccomp.version"].starts_with("2."));
        assert_eq!(annotations["org.opencontainers.runc.checkpoint.enabled"], "true");
    }

    #[test]
    fn every_name_is_one_that_a_config_may_hold() {
        assert_eq!(parsed::<LinuxNamespaceType>("/linux/namespaces").len(), 8);
        parsed::<LinuxSeccompOperator>("/linux/seccomp/operators");
        parsed::<LinuxSeccompFilterFlag>("/linux/seccomp/knownFlags");
        let capabilities = parsed::<Capability>("/linux/capabilities");
        assert_eq!(capabilities.iter().collect::<HashSet<_>>().len(), 41);
    }

    #[test]
    fn every_seccomp_name_is_taken_by_the_compiler() {
        let seccomp = &document()["linux"]["seccomp"];
        for action in seccomp["actions"].as_array().unwrap() {
            let section: LinuxSeccomp = serde_json::from_value(json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
                "flags": seccomp["knownFlags"],
                "syscalls": [{"names": ["getpid"], "action": action}],
            }))
            .unwrap();
            assert!(seccomp::filter(&section, None).is_ok(), "{action}");
        }
        let archs = parsed::<Arch>("/linux/seccomp/archs");
        assert!(archs.contains(&Arch::ScmpArchX86_64));
        for arch in archs {
            let section: LinuxSeccomp = serde_json::from_value(json!({
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch],
                "syscalls": [{"names": ["getpid"], "action": "SCMP_ACT_ERRNO"}],
            }))
            .unwrap();
            // libseccomp makes no filter for both orders of bytes; then the field is named.
            let error = seccomp::filter(&section, None).err().map(|error| error.to_string());
            let named = |error: &String| error.starts_with("linux.seccomp.architectures[0]: SCMP");
            assert!(error.as_ref().is_none_or(named), "{arch}: {error:?}");
            assert!(error.is_none() || !arch.to_string().contains("X86"), "{arch}: {error:?}");
        }
    }
}
