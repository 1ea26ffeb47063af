//! `linux.resources.hugepageLimits`.

use oci_spec::runtime::LinuxHugepageLimit;

use crate::cgroup::Cgroup;
use crate::changes::{Changes, Missing};
use crate::error::Error;

const FIELD: &str = "linux.resources.hugepageLimits";

/// Limits the pages in use and, where the kernel can (Linux 5.7), also those
/// reserved: without that, a process over its limit dies of SIGBUS at the
/// first touch instead of being refused by mmap(2).
pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    limits: &[LinuxHugepageLimit],
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    for limit in limits {
        let size = page_size(limit.page_size())?;
        let target = cgroup.target("hugetlb", FIELD)?;
        let (end, value) = match limit.limit() {
            ..0 if target.is_v2() => ("max", "max".to_owned()),
            bytes if target.is_v2() => ("max", bytes.to_string()),
            bytes => ("limit_in_bytes", bytes.to_string()),
        };
        let reserved = format!("hugetlb.{size}.rsvd.{end}");
        changes.add(target, FIELD, format!("hugetlb.{size}.{end}"), value.clone());
        changes.add_if_there(target, FIELD, reserved, value, Missing::Ignore);
    }
    Ok(())
}

/// `2MB`, `1GB`: becomes part of a file name.
fn page_size(text: &str) -> Result<&str, Error> {
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| text.strip_suffix(unit));
    let digits =
        |number: &str| !number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit());
    match number {
        Some(number) if !number.is_empty() && digits(number) => Ok(text),
        _ => {
            let reason = "must be a number and KB, MB or GB, such as 2MB";
            Err(Error::invalid(format!("{FIELD}.pageSize"), text, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    fn apply(cgroup: &Cgroup, limits: &[LinuxHugepageLimit]) -> Result<(), Error> {
        let mut changes = Changes::default();
        plan(cgroup, limits, &mut changes)?;
        changes.apply()
    }

    fn limits(json: &str) -> Vec<LinuxHugepageLimit> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn both_versions_with_and_without_reservations() {
        let fake = Fake::new(false, &["hugetlb"], &["hugetlb.2MB.limit_in_bytes"]);
        apply(&fake.cgroup, &limits(r#"[{"pageSize": "2MB", "limit": 4194304}]"#)).unwrap();
        assert_eq!(fake.read("hugetlb.2MB.limit_in_bytes"), "4194304");
        let fake = Fake::new(true, &["hugetlb"], &["hugetlb.1GB.max", "hugetlb.1GB.rsvd.max"]);
        apply(&fake.cgroup, &limits(r#"[{"pageSize": "1GB", "limit": -1}]"#)).unwrap();
        assert_eq!(fake.read("hugetlb.1GB.max"), "max");
        assert_eq!(fake.read("hugetlb.1GB.rsvd.max"), "max");
    }

    #[test]
    fn page_sizes_are_checked() {
        for good in ["2MB", "64KB", "1GB"] {
            assert_eq!(page_size(good).unwrap(), good);
        }
        for bad in ["", "MB", "0MB", "2", "2TB", "-2MB", "+2MB", "../2MB", "2/MB"] {
            assert!(page_size(bad).is_err(), "{bad}");
        }
    }
}
