//! The command line, a word a line.

#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let words = bytes.split(|&byte| byte == b'\n').map(OsStr::from_bytes);
    kiln::fuzzing::words(
        [OsStr::new("kiln")].into_iter().chain(words).map(OsString::from).collect(),
    );
});
