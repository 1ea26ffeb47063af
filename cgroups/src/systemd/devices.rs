//! Device rules as properties of a unit: DevicePolicy and DeviceAllow, systemd.resource-control(5).
//!
//! systemd has a filter of its own beside the one that [`crate::devices`] sets, and puts it back
//! when it is reloaded, so the two must agree.

use super::manager::Property;
use super::value::Value;
use crate::device_rules::{Access, Exception, Kind, Policy};

/// `groups` is /proc/devices.
pub(crate) fn properties(policy: &Policy, groups: &str) -> Vec<Property> {
    // All but some devices is what systemd cannot say; our own filter says it.
    let (word, rules) = match policy.allow {
        true => ("auto", Vec::new()),
        false => {
            let rules = policy.exceptions.iter().filter_map(|rule| entry(rule, groups));
            ("strict", rules.collect())
        }
    };
    vec![
        ("DevicePolicy".to_owned(), Value::Text(word.to_owned())),
        ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), rules)),
    ]
}

fn entry(rule: &Exception, groups: &str) -> Option<Value> {
    let kind = match rule.kind {
        Kind::Char => "char",
        Kind::Block => "block",
    };
    let path = match (rule.major, rule.minor) {
        (None, None) => format!("{kind}-*"),
        // It takes such a path at its word since 240; before, the node must be there, which it is
        // wherever udev is.
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{}", group(groups, rule.kind, major)?),
        (None, Some(minor)) => {
            log::warn!("systemd is not told of {kind} devices *:{minor}: it has no words for them");
            return None;
        }
    };
    let letters = [(Access::READ, 'r'), (Access::WRITE, 'w'), (Access::MKNOD, 'm')];
    let access = letters.iter().filter(|(bit, _)| rule.access.0 & bit != 0);
    let access: String = access.map(|(_, letter)| letter).collect();
    Some(Value::Struct(vec![Value::Text(path), Value::Text(access)]))
}

/// The name of a driver. One that is not there has no devices either.
fn group(groups: &str, kind: Kind, major: u32) -> Option<&str> {
    let heading = match kind {
        Kind::Char => "Character devices:",
        Kind::Block => "Block devices:",
    };
    let lines = groups.lines().skip_while(|line| *line != heading).skip(1);
    let mut lines = lines.take_while(|line| !line.is_empty());
    lines.find_map(|line| {
        let (number, name) = line.trim_start().split_once(' ')?;
        (number.parse() == Ok(major)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "\
Character devices:
  1 mem
136 pts
226 drm

Block devices:
  1 ramdisk
  8 sd
";

    fn rules(json: &str) -> Vec<(String, String)> {
        let policy = Policy::new(&serde_json::from_str::<Vec<_>>(json).unwrap()).unwrap();
        let mut found = properties(&policy, GROUPS);
        let Some((_, Value::Array(_, list))) = found.pop() else { panic!() };
        let Some((_, Value::Text(word))) = found.pop() else { panic!() };
        let mut rules = vec![("policy".to_owned(), word)];
        for entry in list {
            let Value::Struct(pair) = entry else { panic!() };
            let [Value::Text(path), Value::Text(access)] = pair.as_slice() else { panic!() };
            rules.push((path.clone(), access.clone()));
        }
        rules
    }

    fn has(rules: &[(String, String)], path: &str, access: &str) -> bool {
        rules.contains(&(path.to_owned(), access.to_owned()))
    }

    #[test]
    fn the_default_devices_are_named_as_systemd_does() {
        let found = rules("[]");
        assert!(has(&found, "policy", "strict"));
        assert!(has(&found, "char-*", "m") && has(&found, "block-*", "m"));
        assert!(has(&found, "/dev/char/1:3", "rwm") && has(&found, "char-pts", "rwm"));
    }

    #[test]
    fn groups_are_looked_up_by_kind() {
        let found = rules(
            r#"[{"allow": true, "type": "b", "major": 8, "access": "r"},
                {"allow": true, "type": "c", "major": 8, "access": "r"},
                {"allow": true, "type": "b", "major": 1, "access": "rw"}]"#,
        );
        assert!(has(&found, "block-sd", "r") && has(&found, "block-ramdisk", "rw"));
        assert!(!found.iter().any(|(path, _)| path == "char-sd"));
    }

    #[test]
    fn all_allowed_is_auto() {
        assert_eq!(rules(r#"[{"allow": true, "access": "rwm"}]"#).len(), 1);
        let but_one = r#"[{"allow": true, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "rwm"}]"#;
        assert_eq!(rules(but_one), [("policy".to_owned(), "auto".to_owned())]);
    }
}
