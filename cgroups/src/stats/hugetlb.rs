//! Huge pages, by their size.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::is_zero;
use crate::cgroup::Cgroup;
use crate::dir;
use crate::error::Error;
use crate::target::Target;

/// Where the kernel has a folder for each size.
const SIZES: &str = "/sys/kernel/mm/hugepages";

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hugetlb {
    /// In use; on v1 reserved, if the kernel counts that (Linux 5.7).
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most that there ever was; v1 only.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was in the way.
    pub failcnt: u64,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<BTreeMap<String, Hugetlb>, Error> {
    let Some(target) = cgroup.target_if_any("hugetlb") else { return Ok(BTreeMap::new()) };
    let names = dir::open_mount(Path::new(SIZES)).and_then(dir::children).unwrap_or_default();
    let sizes = names.iter().filter_map(|name| size(name.to_str()?));
    let mut all = BTreeMap::new();
    for size in sizes {
        let of_size = if target.is_v2() { of_v2(target, &size) } else { of_v1(target, &size) };
        if let Some(of_size) = of_size? {
            all.insert(size, of_size);
        }
    }
    Ok(all)
}

/// `hugepages-2048kB` is called `2MB` in file names.
fn size(folder: &str) -> Option<String> {
    let kib: u64 = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        _ if kib.is_multiple_of(1 << 20) => format!("{}GB", kib >> 20),
        _ if kib.is_multiple_of(1 << 10) => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    })
}

fn of_v1(target: Target<'_>, size: &str) -> Result<Option<Hugetlb>, Error> {
    for prefix in [format!("hugetlb.{size}.rsvd"), format!("hugetlb.{size}")] {
        let number = |end: &str| target.number(&format!("{prefix}.{end}"));
        if let Some(usage) = number("usage_in_bytes")? {
            let max = number("max_usage_in_bytes")?.unwrap_or(0);
            return Ok(Some(Hugetlb { usage, max, failcnt: number("failcnt")?.unwrap_or(0) }));
        }
    }
    Ok(None)
}

fn of_v2(target: Target<'_>, size: &str) -> Result<Option<Hugetlb>, Error> {
    let Some(usage) = target.number(&format!("hugetlb.{size}.current"))? else { return Ok(None) };
    let mut failcnt = 0;
    if let Some(text) = target.text(&format!("hugetlb.{size}.events"))? {
        for pair in text.pairs() {
            if let ("max", count) = pair? {
                failcnt = count;
            }
        }
    }
    Ok(Some(Hugetlb { usage, max: 0, failcnt }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn sizes_are_called_as_in_file_names() {
        for (folder, name) in [
            ("hugepages-64kB", "64KB"),
            ("hugepages-2048kB", "2MB"),
            ("hugepages-1048576kB", "1GB"),
        ] {
            assert_eq!(size(folder).as_deref(), Some(name));
        }
        assert_eq!(size("hugepages-xkB"), None);
    }

    #[test]
    fn both_versions() {
        let fake = Fake::new(false, &["hugetlb"], &[]);
        let target = fake.cgroup.target_if_any("hugetlb").unwrap();
        assert_eq!(of_v1(target, "2MB").unwrap(), None);
        for (file, text) in [("usage_in_bytes", "5"), ("max_usage_in_bytes", "6"), ("failcnt", "7")]
        {
            fake.write(&format!("hugetlb.2MB.{file}"), text);
        }
        let expected = Hugetlb { usage: 5, max: 6, failcnt: 7 };
        assert_eq!(of_v1(target, "2MB").unwrap(), Some(expected));
        fake.write("hugetlb.2MB.rsvd.usage_in_bytes", "8");
        assert_eq!(of_v1(target, "2MB").unwrap().unwrap().usage, 8);
        let fake = Fake::new(true, &["hugetlb"], &[]);
        let target = fake.cgroup.target_if_any("hugetlb").unwrap();
        fake.write("hugetlb.2MB.current", "4096");
        fake.write("hugetlb.2MB.events", "max 3\n");
        let expected = Hugetlb { usage: 4096, max: 0, failcnt: 3 };
        assert_eq!(of_v2(target, "2MB").unwrap(), Some(expected));
    }
}
