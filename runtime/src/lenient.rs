//! Configs that oci-spec's types refuse and the spec does not.
//!
//! Two scheduler flags have other names there than in the spec. A process may be without `user`: its
//! ids are 0 then, as for runc and crun. And capabilities may be unknown:
//!
//! A config may have been written for a newer kernel. The spec lets a runtime go without with a
//! warning (config.md#process: "any value which cannot be mapped to a relevant kernel interface,
//! or cannot be granted otherwise, MUST be logged as a warning"); oci-spec's types refuse the whole
//! config. Kernels that are newer than the oldest of ours have all that oci-spec knows.

use oci_spec::runtime::Capability;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a config or a process from its JSON; without the capabilities that are not known, of
/// which it warns.
///
/// # Errors
/// What else is wrong.
pub fn from_slice<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    let error = match serde_json::from_slice(json) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else { return Err(error) };
    let mut unknown = Vec::new();
    for pointer in ["/process/capabilities", "/capabilities"] {
        let sets = value.pointer_mut(pointer).and_then(Value::as_object_mut);
        for set in sets.into_iter().flatten().filter_map(|(_, set)| set.as_array_mut()) {
            set.retain(|name| is_known(name) || !name.is_string() || note(&mut unknown, name));
        }
    }
    let respelled = respell_flags(&mut value);
    if !complete_user(&mut value) && !respelled && unknown.is_empty() {
        return Err(error);
    }
    // As text again: what reads the types from a Value would be another 300 KiB of executable.
    let read = serde_json::from_slice(&serde_json::to_vec(&value)?)?;
    if unknown.is_empty() {
        return Ok(read);
    }
    unknown.sort_unstable();
    unknown.dedup();
    log::warn!("ignoring unknown or unavailable capabilities: {}", unknown.join(" "));
    Ok(read)
}

/// Gives the flags of process.scheduler the names that oci-spec 0.10 has for them; whether there
/// are any.
fn respell_flags(value: &mut Value) -> bool {
    const NAMES: [(&str, &str); 2] = [
        ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
        ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
    ];
    let mut any = false;
    for pointer in ["/process/scheduler/flags", "/scheduler/flags"] {
        for flag in value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some((_, theirs)) = NAMES.iter().find(|(name, _)| flag == name) {
                *flag = Value::from(*theirs);
                any = true;
            }
        }
    }
    any
}

/// Gives a process the ids that it leaves out; whether it left any out.
fn complete_user(value: &mut Value) -> bool {
    let process = match value.get("ociVersion") {
        Some(_) => value.get_mut("process"),
        None => Some(value),
    };
    let Some(process) = process.and_then(Value::as_object_mut) else { return false };
    let user = process.entry("user").or_insert_with(|| Value::Object(Default::default()));
    let Some(user) = user.as_object_mut() else { return false };
    let before = user.len();
    for id in ["uid", "gid"] {
        user.entry(id).or_insert_with(|| Value::from(0));
    }
    user.len() > before
}

fn is_known(name: &Value) -> bool {
    serde_json::from_value::<Capability>(name.clone()).is_ok()
}

/// Notes the name and says that it is not to be kept.
fn note(unknown: &mut Vec<String>, name: &Value) -> bool {
    unknown.extend(name.as_str().map(str::to_owned));
    false
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Process, Spec};

    use super::*;

    #[test]
    fn only_capabilities_are_left_out() {
        let process = r#"{"cwd":"/","user":{"uid":0,"gid":0},"capabilities":
            {"bounding":["CAP_KILL","CAP_BANANA"],"ambient":["CAP_NEW"]}}"#;
        let read: Process = from_slice(process.as_bytes()).unwrap();
        let sets = read.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert!(sets.ambient().as_ref().unwrap().is_empty());
        let spec = format!(r#"{{"ociVersion":"1.0.0","process":{process}}}"#);
        assert!(from_slice::<Spec>(spec.as_bytes()).unwrap().process().is_some());
    }

    #[test]
    fn flags_have_the_specs_names() {
        let process = r#"{"cwd":"/","user":{"uid":0,"gid":0},"scheduler":{"policy":"SCHED_OTHER",
            "flags":["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_RECLAIM"]}}"#;
        let read: Process = from_slice(process.as_bytes()).unwrap();
        assert_eq!(read.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 3);
    }

    #[test]
    fn ids_that_are_left_out_are_0() {
        for user in ["", r#","user":{}"#, r#","user":{"gid":7}"#] {
            let process = format!(r#"{{"cwd":"/"{user}}}"#);
            let read: Process = from_slice(process.as_bytes()).unwrap();
            assert_eq!(read.user().uid(), 0);
            assert_eq!(read.user().gid(), if user.contains('7') { 7 } else { 0 });
            let spec = format!(r#"{{"ociVersion":"1.0.0","process":{process}}}"#);
            assert!(from_slice::<Spec>(spec.as_bytes()).unwrap().process().is_some());
        }
        assert!(from_slice::<Process>(br#"{"cwd":"/","user":{"uid":"a","gid":0}}"#).is_err());
        assert!(from_slice::<Process>(br#"{"cwd":"/","user":null}"#).is_err());
        assert!(from_slice::<Process>(br#"{"ociVersion":"1.0.0","cwd":"/"}"#).is_err());
    }

    #[test]
    fn what_else_is_wrong_is_an_error() {
        let number = r#"{"ociVersion":"1.0.0","process":{"cwd":"/","user":{"uid":0,"gid":0},
            "capabilities":{"bounding":[7]}}}"#;
        assert!(from_slice::<Spec>(number.as_bytes()).is_err());
        let mixed = r#"{"ociVersion":1,"process":{"capabilities":{"bounding":["CAP_X"]}}}"#;
        assert!(from_slice::<Spec>(mixed.as_bytes()).is_err());
        assert!(from_slice::<Spec>(b"{").is_err());
    }
}
