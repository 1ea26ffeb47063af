//! Reading `/proc` from the host's side, without a dependency.

use std::fs;
use std::path::PathBuf;

/// One line of `mountinfo` (proc(5)).
#[derive(Clone, Debug)]
pub struct Mount {
    /// The part of the file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Options of this mount: `rw,nosuid`.
    pub options: Vec<String>,
    /// Propagation: `shared:1`, `master:2`.
    pub propagation: Vec<String>,
    /// The file system's type.
    pub kind: String,
    /// Options of the file system as a whole.
    pub super_options: Vec<String>,
}

/// The mounts that process `pid` ("self" for this one) sees.
pub fn mounts(pid: &str) -> Vec<Mount> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    parse_mountinfo(&text)
}

/// Parses the text of a `mountinfo` file.
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let commas = |text: &str| text.split(',').map(str::to_owned).collect();
    Some(Mount {
        root: left.get(3)?.into(),
        point: left.get(4)?.into(),
        options: commas(left.get(5)?),
        propagation: left.iter().skip(6).map(|&word| word.into()).collect(),
        kind: (*right.first()?).into(),
        super_options: commas(right.get(2)?),
    })
}

/// A field of `/proc/PID/status`, trimmed.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Whether there is such a process that has not ended; a zombie has.
pub fn alive(pid: i32) -> bool {
    status_field(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// Whether the process has given its memory back, and with that will never run its own code again.
/// The first of a pid namespace may take a while then: it waits for all others.
pub fn is_exiting(pid: i32) -> bool {
    status_field(pid, "VmSize").is_none()
}

/// All process ids on the machine.
pub fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// How long a process has worked, in its own code and in the kernel (proc(5), `/proc/PID/stat`).
pub fn cpu_time(pid: i32) -> std::time::Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field, a name, may have anything in it.
    let after_name = &text[text.rfind(')').unwrap() + 2..];
    let ticks = after_name.split(' ').skip(11).take(2).map(|text| text.parse::<u64>().unwrap());
    let per_second = rustix::param::clock_ticks_per_second();
    std::time::Duration::from_millis(ticks.sum::<u64>() * 1000 / per_second)
}

/// What names a namespace: `net:[4026531840]`.
pub fn namespace(pid: i32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    link.to_string_lossy().into_owned()
}

/// The same of this program.
pub fn own_namespace(kind: &str) -> String {
    namespace(std::process::id().cast_signed(), kind)
}

/// The children of a process, of whatever thread.
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = |list: String| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    lists.flat_map(|list| -> Vec<i32> { pids(list) }).collect()
}
