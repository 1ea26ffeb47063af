//! The config that `kiln spec` prints.
//!
//! runc's, from which tools and people start: `runc spec` of 1.2, with kiln's name for the host.
//! It starts from oci-spec's default, which was made from the same.

use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType,
    LinuxResources, Mount, Spec,
};
use serde::Serialize as _;

use crate::features::OCI_VERSION_MAX;

/// A shell on a terminal, as root with few capabilities, in namespaces of its own but for the
/// user's. Makes one statfs(2): where the host has cgroup v2 alone, there is a cgroup namespace,
/// too.
///
/// Ambient capabilities are left out: without inheritable ones, which runc has dropped from its
/// template, they have no effect; runc has dropped them, too, since.
pub fn linux() -> Spec {
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION_MAX.to_owned());
    spec.set_hostname(Some("kiln".to_owned()));
    spec.set_annotations(None);
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
        let granted = process.capabilities().as_ref().map(granted);
        process.set_capabilities(granted);
    }
    if let Some(linux) = spec.linux_mut() {
        let mut deny = LinuxDeviceCgroup::default();
        deny.set_allow(false).set_access(Some("rwm".to_owned()));
        deny.set_typ(None);
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(vec![deny]));
        linux.set_resources(Some(resources));
        if let Some(namespaces) = linux.namespaces_mut()
            && !unified()
        {
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Cgroup);
        }
    }
    spec
}

/// Those of `defaults` that the process and what it executes get.
fn granted(defaults: &LinuxCapabilities) -> LinuxCapabilities {
    let mut granted = LinuxCapabilities::default();
    granted
        .set_bounding(defaults.bounding().clone())
        .set_effective(defaults.effective().clone())
        .set_permitted(defaults.permitted().clone())
        .set_inheritable(None)
        .set_ambient(None);
    granted
}

/// Whether cgroup v2 stands alone at /sys/fs/cgroup.
fn unified() -> bool {
    rustix::fs::statfs("/sys/fs/cgroup")
        .is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(libc::CGROUP2_SUPER_MAGIC as u64))
}

/// Changes `spec` for a user without privileges, effective ids `uid` and `gid`, as `runc spec
/// --rootless` does: a user namespace in which the user is root, the host's network, no cgroup
/// limits, and no mount that such a user may not make.
pub fn rootless(spec: &mut Spec, uid: u32, gid: u32) {
    if let Some(linux) = spec.linux_mut() {
        // One id each, to root.
        let model = Linux::rootless(uid, gid);
        linux.set_uid_mappings(model.uid_mappings().clone());
        linux.set_gid_mappings(model.gid_mappings().clone());
        linux.set_resources(None);
        if let Some(namespaces) = linux.namespaces_mut() {
            let mut user = LinuxNamespace::default();
            user.set_typ(LinuxNamespaceType::User);
            namespaces.retain(|namespace| {
                !matches!(namespace.typ(), LinuxNamespaceType::Network | LinuxNamespaceType::User)
            });
            namespaces.push(user);
        }
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.destination().as_os_str() == "/sys" {
            *mount = bound_sys();
        } else if let Some(options) = mount.options_mut() {
            // Ids that the user namespace does not have.
            options.retain(|option| !option.starts_with("uid=") && !option.starts_with("gid="));
        }
    }
}

/// sysfs cannot be mounted without a network namespace of one's own.
fn bound_sys() -> Mount {
    let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
    let mut mount = Mount::default();
    mount
        .set_destination("/sys".into())
        .set_typ(Some("none".to_owned()))
        .set_source(Some("/sys".into()))
        .set_options(Some(options.map(str::to_owned).to_vec()));
    mount
}

/// `spec` as a config.json: indented with tabs, as runc does.
///
/// The capabilities, which oci-spec keeps without an order, are sorted, so that the same config
/// is the same text each time.
///
/// # Errors
/// A path that is not UTF-8.
pub fn text(spec: &Spec) -> serde_json::Result<String> {
    let mut bytes = Vec::with_capacity(4096);
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    spec.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, tabs))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    for list in lines.chunk_by_mut(|a, b| is_capability(a) && is_capability(b)) {
        list.sort_unstable_by_key(|line| line.trim_end_matches(','));
    }
    Ok(with_commas(&lines))
}

fn is_capability(line: &str) -> bool {
    line.trim_start().starts_with("\"CAP_")
}

/// The lines, with the commas after capabilities where they belong again.
fn with_commas(lines: &[&str]) -> String {
    let mut text = String::with_capacity(4096);
    for (at, line) in lines.iter().enumerate() {
        if is_capability(line) {
            text.push_str(line.trim_end_matches(','));
            let more = lines.get(at + 1).is_some_and(|next| is_capability(next));
            text.push_str(if more { "," } else { "" });
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What Debian 12's `runc spec` prints, with what this differs in on purpose.
    fn runc(text: &str) -> Value {
        let mut spec: Value = serde_json::from_str(text).unwrap();
        spec["ociVersion"] = json!(OCI_VERSION_MAX);
        spec["hostname"] = json!("kiln");
        let capabilities = spec["process"]["capabilities"].as_object_mut().unwrap();
        capabilities.remove("ambient").unwrap();
        spec
    }

    /// The config without what depends on the host's cgroups.
    fn json(spec: &Spec) -> Value {
        let mut spec: Value = serde_json::from_str(&text(spec).unwrap()).unwrap();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        spec
    }

    #[test]
    fn is_what_runc_prints() {
        let text = include_str!("../../integration/fixtures/spec-runc-1.1.json");
        assert_eq!(json(&linux()), runc(text));
    }

    #[test]
    fn rootless_is_what_runc_prints() {
        let text = include_str!("../../integration/fixtures/spec-runc-1.1-rootless.json");
        let mut expected = runc(text);
        expected["linux"]["uidMappings"][0]["hostID"] = json!(1000);
        expected["linux"]["gidMappings"][0]["hostID"] = json!(100);
        let mut spec = linux();
        rootless(&mut spec, 1000, 100);
        assert_eq!(json(&spec), expected);
    }

    #[test]
    fn the_text_is_the_config_and_the_same_each_time() {
        let spec = linux();
        let first = text(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&first).unwrap(), spec);
        assert!(first.starts_with("{\n\t\"ociVersion\": \"1.") && first.ends_with("}\n"));
        for _ in 0..8 {
            assert_eq!(text(&linux()).unwrap(), first);
        }
    }

    #[test]
    fn a_cgroup_namespace_goes_with_cgroup_v2_alone() {
        let spec = linux();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
        let has = namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::Cgroup);
        let types = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let v2 = types.lines().any(|line| {
            let mut words = line.split(' ').skip(1);
            words.next() == Some("/sys/fs/cgroup") && words.next() == Some("cgroup2")
        });
        assert_eq!(has, v2);
    }
}
