//! Several writes to a container's cgroups as one change: in an order that the kernel accepts, and
//! with the way back if one of them fails.

use std::borrow::Cow;

use rustix::io::Errno;

use crate::dir;
use crate::error::Error;
use crate::target::{Target, refused_with};

/// What is to be written, in the order in which it is tried first.
///
/// Values depend on each other (no burst above the quota, no memory above memory and swap, no
/// weight for an idle group), and which must go first depends on the values that are there. So
/// one that is refused as invalid is tried again after the others, for as long as that gets one
/// further: no need to know what is there, and nothing to read.
#[derive(Debug, Default)]
pub(crate) struct Changes<'a>(Vec<Change<'a>>);

#[derive(Debug)]
struct Change<'a> {
    target: Target<'a>,
    field: Cow<'static, str>,
    file: Cow<'a, str>,
    value: String,
    missing: Missing,
}

/// What to do if the kernel does not have the file, or what it stood for.
#[derive(Clone, Debug)]
pub(crate) enum Missing {
    /// Fail.
    Fail,
    /// There is nothing to limit or to lift.
    Ignore,
    /// Go on with a warning: the field is obsolete.
    Warn,
    /// Write this value to this file instead.
    Instead(&'static str, String),
}

impl<'a> Changes<'a> {
    /// Adds a write that must succeed.
    pub fn add(
        &mut self,
        target: Target<'a>,
        field: impl Into<Cow<'static, str>>,
        file: impl Into<Cow<'a, str>>,
        value: impl Into<String>,
    ) {
        self.add_if_there(target, field, file, value, Missing::Fail);
    }

    /// Adds a write to a file that not every kernel has.
    pub fn add_if_there(
        &mut self,
        target: Target<'a>,
        field: impl Into<Cow<'static, str>>,
        file: impl Into<Cow<'a, str>>,
        value: impl Into<String>,
        missing: Missing,
    ) {
        let (field, file, value) = (field.into(), file.into(), value.into());
        self.0.push(Change { target, field, file, value, missing });
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The first that fails for good; what was written before stays.
    pub fn apply(self) -> Result<(), Error> {
        write_all(&self.0, Change::write)
    }

    /// Writes all of it, or nothing: what was there before is written back on failure.
    ///
    /// # Errors
    /// The first that fails for good. What then could not be written back is logged.
    pub fn apply_or_restore(self) -> Result<(), Error> {
        if self.0.len() < 2 {
            return self.apply();
        }
        let mut earlier = Vec::with_capacity(self.0.len());
        let written = write_all(&self.0, |change| {
            earlier.push(change.replace()?);
            Ok(())
        });
        let Err(failure) = written else { return Ok(()) };
        earlier.reverse();
        let earlier: Vec<_> = earlier.into_iter().flatten().collect();
        if let Err(error) = write_all(&earlier, Change::write) {
            log::warn!("limits that were set already stay, setting them back failed: {error}");
        }
        Err(failure)
    }
}

/// Writes each; see [`Changes`] for the order.
fn write_all<'c, 'a>(
    changes: &'c [Change<'a>],
    mut write: impl FnMut(&'c Change<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut left: Vec<_> = changes.iter().collect();
    loop {
        let mut later: Vec<&Change<'a>> = Vec::new();
        let mut refusal = None;
        let before = left.len();
        for change in left {
            // The last of several values for a file must stay the last.
            if later.iter().any(|other| other.is_for_the_file_of(change)) {
                later.push(change);
                continue;
            }
            match write(change) {
                Err(error) if refused_with(&error, Errno::INVAL) => {
                    refusal.get_or_insert(error);
                    later.push(change);
                }
                result => result?,
            }
        }
        match refusal {
            None => return Ok(()),
            Some(error) if later.len() == before => return Err(error),
            Some(_) => left = later,
        }
    }
}

impl<'a> Change<'a> {
    fn is_for_the_file_of(&self, other: &Self) -> bool {
        self.file == other.file && self.target.is(&other.target)
    }

    fn write(&self) -> Result<(), Error> {
        match self.target.write(&self.field, &self.file, &self.value) {
            Ok(()) => Ok(()),
            Err(error) => self.otherwise(error)?.map_or(Ok(()), |instead| instead.write()),
        }
    }

    /// As [`Change::write`]; returns the change that undoes it, if there is one.
    fn replace(&self) -> Result<Option<Self>, Error> {
        let written = match self.target.open_both(&self.file) {
            None => self.target.write(&self.field, &self.file, &self.value).map(|()| None),
            Some(file) => {
                let text = dir::read_all(&file).unwrap_or_default();
                let written = self.target.write_to(&file, &self.field, &self.file, &self.value);
                written.map(|()| earlier(&self.file, &self.value, &String::from_utf8_lossy(&text)))
            }
        };
        match written {
            Ok(value) => Ok(value.map(|value| self.with(self.file.clone(), value))),
            Err(error) => self.otherwise(error)?.map_or(Ok(None), |instead| instead.replace()),
        }
    }

    /// What to do after the kernel has refused the write, if not to fail.
    fn otherwise(&self, error: Error) -> Result<Option<Self>, Error> {
        if !refused_with(&error, Errno::NOENT) && !refused_with(&error, Errno::OPNOTSUPP) {
            return Err(error);
        }
        match &self.missing {
            Missing::Fail => return Err(error),
            Missing::Ignore => {}
            Missing::Warn => {
                log::warn!("{} is ignored: this kernel does not have it", self.field);
            }
            Missing::Instead(file, value) => {
                return Ok(Some(self.with(Cow::Borrowed(*file), value.clone())));
            }
        }
        Ok(None)
    }

    fn with(&self, file: Cow<'a, str>, value: String) -> Self {
        Self { target: self.target, field: self.field.clone(), file, value, missing: Missing::Fail }
    }
}

/// What to write to `file` to undo a write of `value`, from the text that was there before.
fn earlier(file: &str, value: &str, text: &str) -> Option<String> {
    // A line per device, of which one was set.
    let key = value.split_once(' ').map_or("", |(key, _)| key);
    if key.contains(':') || matches!(file, "rdma.max" | "net_prio.ifpriomap") {
        let old = text.lines().find(|line| line.split(' ').next() == Some(key));
        return match old {
            Some(line) => Some(line.to_owned()),
            None => unlimited(file).map(|limits| format!("{key} {limits}")),
        };
    }
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    match file {
        "memory.oom_control" => Some(first.rsplit(' ').next().unwrap_or_default().to_owned()),
        // `default 100`, and then the devices that differ.
        _ if first.starts_with("default ") => Some(first.to_owned()),
        // An empty list; a write of nothing would be none.
        _ if first.is_empty() => Some("\n".to_owned()),
        _ => lines.next().is_none().then(|| first.to_owned()),
    }
}

/// What a device without a line has.
fn unlimited(file: &str) -> Option<&'static str> {
    Some(match file {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "io.latency" => "target=0",
        "rdma.max" => "hca_handle=max hca_object=max",
        "io.weight" | "io.bfq.weight" => "default",
        _ if file.starts_with("blkio.") => "0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn what_fails_is_undone() {
        let fake = Fake::new(false, &["memory"], &[]);
        fake.write("memory.oom_control", "oom_kill_disable 0\n");
        fake.write("io.weight", "default 50\n8:0 7\n");
        let target = fake.cgroup.target("memory", "f").unwrap();
        let mut changes = Changes::default();
        changes.add(target, "a", "memory.oom_control", "1");
        changes.add(target, "b", "io.weight", "77");
        changes.add(target, "c", "gone", "1");
        let error = changes.apply_or_restore().unwrap_err().to_string();
        assert!(error.starts_with("c: "), "{error}");
        // An ordinary file keeps all writes: ours at its end, the one back at its beginning.
        assert_eq!(fake.read("memory.oom_control"), "0om_kill_disable 0\n1");
        assert_eq!(fake.read("io.weight"), "default 50\n8:0 7\n77");
    }

    #[test]
    fn a_missing_file_may_be_no_failure() {
        let fake = Fake::new(false, &["memory"], &["there"]);
        let target = fake.cgroup.target("memory", "f").unwrap();
        let mut changes = Changes::default();
        changes.add_if_there(target, "a", "gone", "1", Missing::Ignore);
        changes.add_if_there(target, "b", "gone", "1", Missing::Warn);
        changes.add_if_there(target, "c", "gone", "1", Missing::Instead("there", "2".into()));
        changes.apply_or_restore().unwrap();
        assert_eq!(fake.read("there"), "2");
    }

    #[test]
    fn a_refusal_for_now_is_tried_again_after_the_others() {
        let fake = Fake::new(false, &["memory"], &["a", "b"]);
        let target = fake.cgroup.target("memory", "f").unwrap();
        let mut changes = Changes::default();
        changes.add(target, "a", "a", "1");
        changes.add(target, "a2", "a", "2");
        changes.add(target, "b", "b", "1");
        let mut order = Vec::new();
        let mut refuse = true;
        write_all(&changes.0, |change| {
            order.push(change.field.clone());
            match std::mem::take(&mut refuse) {
                true => Err(target.error("a", "a", "1", Errno::INVAL)),
                false => Ok(()),
            }
        })
        .unwrap();
        assert_eq!(order, ["a", "b", "a", "a2"]);
        let mut calls = 0;
        let refused = write_all(&changes.0, |_| {
            calls += 1;
            Err(target.error("a", "a", "1", Errno::INVAL))
        });
        assert!(refused.is_err());
        assert_eq!(calls, 2);
    }

    #[test]
    fn the_way_back_is_read_from_what_was_there() {
        let cases = [
            ("pids.max", "7", "max\n", Some("max")),
            ("cpu.max", "7000 100", "max 100000\n", Some("max 100000")),
            ("cpuset.cpus", "0", "\n", Some("\n")),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\n", Some("0")),
            (
                "io.max",
                "8:0 rbps=5",
                "8:16 rbps=1\n8:0 rbps=9 wbps=max\n",
                Some("8:0 rbps=9 wbps=max"),
            ),
            ("io.max", "8:0 rbps=5", "", Some("8:0 rbps=max wbps=max riops=max wiops=max")),
            ("blkio.throttle.read_bps_device", "8:0 5", "8:1 6\n", Some("8:0 0")),
            ("io.weight", "5", "default 100\n8:0 50\n", Some("default 100")),
            ("rdma.max", "mlx5_0 hca_handle=2", "", Some("mlx5_0 hca_handle=max hca_object=max")),
            ("odd", "8:0 5", "", None),
            ("odd", "5", "a\nb\n", None),
        ];
        for (file, value, text, expected) in cases {
            assert_eq!(earlier(file, value, text).as_deref(), expected, "{file} {value}");
        }
    }
}
