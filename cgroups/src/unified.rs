//! `linux.resources.unified`: any file of the v2 cgroup, by name.

use std::collections::{BTreeMap, HashMap};

use crate::cgroup::Cgroup;
use crate::changes::Changes;
use crate::error::{Error, Hint};

const FIELD: &str = "linux.resources.unified";

/// Files with the prefix `cgroup` belong to no controller: every v2 cgroup has
/// them. A value of several lines is written line by line, because the kernel
/// takes one request at a time.
pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    files: &'a HashMap<String, String>,
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    // In a fixed order, so that an error is always the same one.
    for (file, value) in files.iter().collect::<BTreeMap<_, _>>() {
        let field = format!("{FIELD}.{file}");
        let controller = controller(&field, file)?;
        let target = match cgroup.core_target().filter(|_| controller == "cgroup") {
            Some(target) => target,
            None => cgroup.target(controller, &field)?,
        };
        if !target.is_v2() {
            return Err(Error::NoController {
                field,
                controller: controller.to_owned(),
                hint: Hint::new(
                    "an invalid configuration: it is mounted as cgroup v1 here, and unified is for v2",
                ),
            });
        }
        for line in value.lines().filter(|line| !line.is_empty()) {
            changes.add(target, field.clone(), file, line);
        }
    }
    Ok(())
}

fn controller<'a>(field: &str, file: &'a str) -> Result<&'a str, Error> {
    let invalid = |reason: &'static str| Error::invalid(field, file, reason);
    if file.contains(['/', '\0']) {
        return Err(invalid("must be a file name, without slashes"));
    }
    match file.split_once('.') {
        Some((controller, rest)) if !controller.is_empty() && !rest.is_empty() => Ok(controller),
        _ => Err(invalid("must be a file name such as memory.high")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    fn apply(cgroup: &Cgroup, files: &HashMap<String, String>) -> Result<(), Error> {
        let mut changes = Changes::default();
        plan(cgroup, files, &mut changes)?;
        changes.apply()
    }

    fn one(file: &str, value: &str) -> HashMap<String, String> {
        HashMap::from([(file.to_owned(), value.to_owned())])
    }

    #[test]
    fn files_are_written() {
        let fake = Fake::new(true, &["memory"], &["memory.high", "cgroup.max.depth"]);
        apply(&fake.cgroup, &one("memory.high", "1000\n")).unwrap();
        apply(&fake.cgroup, &one("cgroup.max.depth", "3")).unwrap();
        assert_eq!(fake.read("memory.high"), "1000");
        assert_eq!(fake.read("cgroup.max.depth"), "3");
    }

    #[test]
    fn names_are_checked_and_controllers_must_be_there() {
        let fake = Fake::new(true, &["memory"], &[]);
        let error = |file: &str| apply(&fake.cgroup, &one(file, "1")).unwrap_err().to_string();
        for bad in ["", ".", "..", "a/b.c", "../memory.high", "memory", ".x", "memory."] {
            assert!(error(bad).contains("must be a file name"), "{bad}");
        }
        assert!(error("cpu.weight").contains("unified.cpu.weight: no cpu controller"));
        assert!(error("memory.high").contains("memory.high"));
        let v1 = Fake::new(false, &["memory"], &["memory.high"]);
        let error = apply(&v1.cgroup, &one("memory.high", "1")).unwrap_err().to_string();
        assert!(error.contains("cgroup v1"), "{error}");
    }
}
