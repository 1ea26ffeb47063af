//! linux.seccomp: the condensed filter decides as libseccomp's. Two numbers for calls come behind a
//! NUL byte.

#![no_main]

use kiln_runtime::seccomp;
use oci_spec::runtime::LinuxSeccomp;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let json = parts.next().unwrap_or_default();
    let Ok(section) = serde_json::from_slice::<LinuxSeccomp>(json) else { return };
    // libseccomp takes seconds for thousands of rules; time is not what is looked at.
    let names = section.syscalls().iter().flatten().map(|rule| rule.names().len()).sum::<usize>();
    if names > 600 {
        return;
    }
    let (words, _) = parts.next().unwrap_or_default().as_chunks::<8>();
    let mut words = words.iter().map(|&word| u64::from_le_bytes(word));
    let mut next = || words.next().unwrap_or(1);
    seccomp::fuzzing::check(&section, [next(), next()]);
    let _ = seccomp::refuse_unknown(&section);
});
