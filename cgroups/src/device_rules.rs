//! What device access a list of rules comes to.
//!
//! Rules are applied in order; the result is a default and the exceptions to
//! it, the form in which v1's device controller thinks and that the v2 filter
//! is generated from (devices.rst). What that form cannot say is an error
//! here, because the kernel would leave more access than was asked for: it
//! ignores an exception to an exception.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::Error;

const FIELD: &str = "linux.resources.devices";

/// A device that every container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedDevice {
    /// Character or block device.
    pub kind: LinuxDeviceType,
    /// The major number; none stands for all.
    pub major: Option<u32>,
    /// The minor number; none stands for all.
    pub minor: Option<u32>,
    /// Some of `r`, `w` and `m` (mknod).
    pub access: &'static str,
}

/// runc's default rules, which follow those of the configuration: mknod of
/// anything, access to null, random, full, tty, zero, urandom, the ptys, and
/// tun (runc 1.2.0 left that out, 1.2.4 took it in again).
pub const DEFAULT_ALLOWED_DEVICES: [AllowedDevice; 11] = [
    allowed(LinuxDeviceType::C, None, None, "m"),
    allowed(LinuxDeviceType::B, None, None, "m"),
    allowed(LinuxDeviceType::C, Some(1), Some(3), "rwm"),
    allowed(LinuxDeviceType::C, Some(1), Some(8), "rwm"),
    allowed(LinuxDeviceType::C, Some(1), Some(7), "rwm"),
    allowed(LinuxDeviceType::C, Some(5), Some(0), "rwm"),
    allowed(LinuxDeviceType::C, Some(1), Some(5), "rwm"),
    allowed(LinuxDeviceType::C, Some(1), Some(9), "rwm"),
    allowed(LinuxDeviceType::C, Some(136), None, "rwm"),
    allowed(LinuxDeviceType::C, Some(5), Some(2), "rwm"),
    allowed(LinuxDeviceType::C, Some(10), Some(200), "rwm"),
];

const fn allowed(
    kind: LinuxDeviceType,
    major: Option<u32>,
    minor: Option<u32>,
    access: &'static str,
) -> AllowedDevice {
    AllowedDevice { kind, major, minor, access }
}

/// The result of all rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// What goes for devices that no exception covers.
    pub allow: bool,
    /// All of them against the default.
    pub exceptions: Vec<Exception>,
}

/// Access to some devices of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub kind: Kind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

/// What the kernel tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Char,
    Block,
}

/// The bits of BPF_DEVCG_ACC_*, linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access(pub u8);

impl Access {
    pub const MKNOD: u8 = 1;
    pub const READ: u8 = 2;
    pub const WRITE: u8 = 4;
    pub const ALL: Self = Self(7);

    fn bit(letter: u8) -> Option<u8> {
        match letter {
            b'r' => Some(Self::READ),
            b'w' => Some(Self::WRITE),
            b'm' => Some(Self::MKNOD),
            _ => None,
        }
    }
}

impl Policy {
    /// The configuration's rules and then the default ones. Nothing is
    /// allowed before the first rule.
    pub fn new(rules: &[LinuxDeviceCgroup]) -> Result<Self, Error> {
        let mut policy = Self { allow: false, exceptions: Vec::new() };
        for (index, rule) in rules.iter().enumerate() {
            policy
                .apply(rule)
                .map_err(|reason| Error::invalid(format!("{FIELD}[{index}]"), rule, reason))?;
        }
        for device in &DEFAULT_ALLOWED_DEVICES {
            // Where all is allowed but some wide range, a default inside that
            // range cannot be said; then the configuration's word stands.
            let _ = policy.set(true, Exception::from(device));
        }
        Ok(policy)
    }

    fn apply(&mut self, rule: &LinuxDeviceCgroup) -> Result<(), &'static str> {
        let access = access(rule)?;
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let kinds: &[Kind] = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => &[Kind::Char, Kind::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Kind::Char],
            LinuxDeviceType::B => &[Kind::Block],
            LinuxDeviceType::P => return Err("a FIFO is not a device"),
        };
        // Type "a" with numbers is taken at its word. The kernel, and with it
        // runc, would ignore them and open up everything.
        if kinds.len() == 2 && major.is_none() && minor.is_none() && access == Access::ALL {
            self.allow = rule.allow();
            self.exceptions.clear();
            return Ok(());
        }
        let set = |&kind| self.set(rule.allow(), Exception { kind, major, minor, access });
        kinds.iter().try_for_each(set)
    }

    fn set(&mut self, allow: bool, new: Exception) -> Result<(), &'static str> {
        if new.access.0 == 0 {
            return Ok(());
        }
        if allow == self.allow {
            return self.take_back(new);
        }
        self.add(new);
        Ok(())
    }

    fn add(&mut self, new: Exception) {
        let said = |old: &Exception| old.covers(&new) && new.access.0 & !old.access.0 == 0;
        if self.exceptions.iter().any(said) {
            return;
        }
        match self.exceptions.iter_mut().find(|old| old.covers(&new) && new.covers(old)) {
            Some(old) => old.access.0 |= new.access.0,
            None => self.exceptions.push(new),
        }
    }

    /// The default holds again for `new`: exceptions shrink or go.
    fn take_back(&mut self, new: Exception) -> Result<(), &'static str> {
        let partly = |old: &Exception| {
            old.overlaps(&new) && !new.covers(old) && old.access.0 & new.access.0 != 0
        };
        if self.exceptions.iter().any(partly) {
            return Err("is an exception to a wider rule, which the kernel cannot express");
        }
        for old in self.exceptions.iter_mut().filter(|old| new.covers(old)) {
            old.access.0 &= !new.access.0;
        }
        self.exceptions.retain(|old| old.access.0 != 0);
        Ok(())
    }
}

impl Exception {
    fn covers(&self, other: &Self) -> bool {
        let wide = |mine: Option<u32>, other: Option<u32>| mine.is_none() || mine == other;
        self.kind == other.kind && wide(self.major, other.major) && wide(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

impl From<&AllowedDevice> for Exception {
    fn from(device: &AllowedDevice) -> Self {
        let kind = if device.kind == LinuxDeviceType::B { Kind::Block } else { Kind::Char };
        let bits = device.access.bytes().filter_map(Access::bit);
        let access = Access(bits.fold(0, |all, bit| all | bit));
        Self { kind, major: device.major, minor: device.minor, access }
    }
}

/// Absent access: denying nothing in particular denies all, allowing nothing
/// in particular allows nothing; except that allowing type "a" without
/// numbers is "everything" in runc and the kernel alike.
fn access(rule: &LinuxDeviceCgroup) -> Result<Access, &'static str> {
    let text = rule.access().as_deref().unwrap_or_default();
    if text.is_empty() {
        let everything = rule.typ().unwrap_or_default() == LinuxDeviceType::A
            && number(rule.major())?.is_none()
            && number(rule.minor())?.is_none();
        return Ok(if everything || !rule.allow() { Access::ALL } else { Access(0) });
    }
    let add = |all: u8, byte: u8| Access::bit(byte).map(|bit| all | bit);
    text.bytes().try_fold(0, add).map(Access).ok_or("its access must be made of r, w and m")
}

/// -1 stands for all, like absence.
fn number(number: Option<i64>) -> Result<Option<u32>, &'static str> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => {
            number.try_into().map(Some).map_err(|_| "its major or minor number is out of range")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Result<Policy, Error> {
        Policy::new(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap())
    }

    fn defaults() -> Vec<Exception> {
        DEFAULT_ALLOWED_DEVICES.iter().map(Exception::from).collect()
    }

    #[test]
    fn the_default_spec_is_the_default_list() {
        for json in [r#"[{"allow": false, "access": "rwm"}]"#, "[]"] {
            assert_eq!(policy(json).unwrap(), Policy { allow: false, exceptions: defaults() });
        }
    }

    #[test]
    fn allow_all_has_no_exceptions() {
        for json in [
            r#"[{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]"#,
            r#"[{"allow": true, "type": "a", "major": -1, "minor": -1, "access": "mrw"}]"#,
            r#"[{"allow": true, "type": "a"}]"#,
        ] {
            assert_eq!(policy(json).unwrap(), Policy { allow: true, exceptions: vec![] });
        }
    }

    #[test]
    fn rules_merge_and_covered_ones_vanish() {
        let found = policy(
            r#"[{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "w"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
                {"allow": true, "type": "c", "major": 1, "access": "rwm"},
                {"allow": true, "type": "b", "major": 8, "minor": 0}]"#,
        )
        .unwrap();
        assert_eq!(found.exceptions[0].minor, Some(229));
        assert_eq!(found.exceptions[0].access, Access(Access::READ | Access::WRITE));
        assert_eq!(found.exceptions[1].major, Some(1));
        // 1:3, 1:5, 1:7, 1:8 and 1:9 are in "1:*"; the block device has no access.
        assert_eq!(found.exceptions.len(), 2 + defaults().len() - 5);
    }

    #[test]
    fn a_later_deny_takes_back_what_it_covers() {
        let found = policy(
            r#"[{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                {"allow": false, "type": "c", "major": 10, "access": "w"},
                {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "rwm"},
                {"allow": false, "type": "b", "access": "rwm"}]"#,
        )
        .unwrap();
        assert_eq!(found.exceptions[0].access, Access(Access::READ | Access::MKNOD));
        assert_eq!(found.exceptions.len(), 1 + defaults().len());
    }

    #[test]
    fn exceptions_to_exceptions_are_refused() {
        let error = policy(
            r#"[{"allow": true, "type": "c", "access": "rwm"},
                {"allow": false, "type": "c", "major": 1, "minor": 1, "access": "r"}]"#,
        );
        let error = error.unwrap_err().to_string();
        let start = "linux.resources.devices[1]: \"c 1:1 r\": is an exception to a wider rule";
        assert!(error.starts_with(start), "{error}");
    }

    #[test]
    fn with_all_allowed_denied_ones_stay_denied() {
        let found = policy(
            r#"[{"allow": true, "access": "rwm"},
                {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
                {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]"#,
        )
        .unwrap();
        assert!(found.allow);
        // mknod of any device and all of 1:3 are default rules, which come later.
        assert_eq!(found.exceptions.len(), 1);
        assert_eq!(found.exceptions[0].access, Access(Access::READ | Access::WRITE));
    }

    #[test]
    fn type_a_with_numbers_is_both_kinds_and_not_everything() {
        let found = policy(r#"[{"allow": true, "major": 7, "minor": 1, "access": "r"}]"#).unwrap();
        assert!(!found.allow);
        assert_eq!(found.exceptions[0].kind, Kind::Char);
        assert_eq!(found.exceptions[1].kind, Kind::Block);
        assert_eq!(found.exceptions[1].major, Some(7));
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            r#"[{"allow": true, "type": "p", "access": "r"}]"#,
            r#"[{"allow": true, "type": "c", "access": "rx"}]"#,
            r#"[{"allow": true, "type": "c", "major": -2, "access": "r"}]"#,
            r#"[{"allow": true, "type": "c", "major": 4294967296, "access": "r"}]"#,
        ] {
            assert!(policy(json).is_err(), "{json}");
        }
    }
}
