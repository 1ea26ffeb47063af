//! `/proc/PID/mountinfo`, `/proc/PID/cgroup` and linux.cgroupsPath, separated by NUL bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (mountinfo, memberships) = (next(), next());
    let path = String::from_utf8_lossy(next());
    kiln_cgroups::fuzzing::place(mountinfo, memberships, &path);
});
