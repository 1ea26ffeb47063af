//! What the fuzz targets (fuzz/) call; not part of the crate otherwise.

use std::ffi::OsString;

use oci_spec::runtime::LinuxResources;

/// The words of a command line, made into what clap takes, and taken.
///
/// # Panics
/// What is in clap's form is changed again.
pub fn words(words: Vec<OsString>) {
    let normalized = crate::words::normalize(words.clone());
    let _ = crate::words::global(&normalized, "--log");
    assert_eq!(crate::words::normalize(normalized.clone()), normalized, "{words:?}");
    let _ = <crate::Cli as clap::Parser>::try_parse_from(&normalized);
}

/// `update --resources`.
pub fn resources(json: &[u8]) -> Option<LinuxResources> {
    crate::update::parse(&mut { json }).ok()
}

/// `update --memory`.
pub fn bytes(text: &str) -> Option<i64> {
    crate::update::bytes(text).ok()
}
