//! How a module begins, and how large one may be: all that is looked at where no engine is.

use crate::detect::MAGIC;
use crate::error::BadModule;

/// The largest module that is read, in bytes. The largest that are known (language runtimes
/// with their libraries) have a tenth of it.
pub const MAX_BYTES: u64 = 256 << 20;

pub(crate) const HEADER_LEN: usize = 8;

/// Checks that `bytes` begin as a core module does: with the magic, the version in two bytes and
/// the layer in two (0 for a core module, 1 for a component), see component-model,
/// design/mvp/Binary.md#component-definitions.
///
/// # Errors
/// [`BadModule::Empty`], `Truncated`, `NotWasm`, `Component` or `Version`.
pub fn check(bytes: &[u8]) -> Result<(), BadModule> {
    if bytes.is_empty() {
        return Err(BadModule::Empty);
    }
    let common = bytes.len().min(MAGIC.len());
    if bytes[..common] != MAGIC[..common] {
        return Err(BadModule::NotWasm(what_it_is(bytes)));
    }
    let Some(&[_, _, _, _, version_low, version_high, layer_low, layer_high]) =
        bytes.first_chunk::<HEADER_LEN>()
    else {
        return Err(BadModule::Truncated(bytes.len()));
    };
    let version = u16::from_le_bytes([version_low, version_high]);
    match (version, u16::from_le_bytes([layer_low, layer_high])) {
        (1, 0) => Ok(()),
        (_, 1) => Err(BadModule::Component),
        (version, layer) => {
            let word = u32::from(layer) << 16 | u32::from(version);
            Err(BadModule::Version(word))
        }
    }
}

pub(crate) fn what_it_is(bytes: &[u8]) -> String {
    if bytes.starts_with(b"\x7fELF") {
        return "an ELF file (a Linux program or library)".to_owned();
    }
    if bytes.starts_with(b"#!") {
        return "a script".to_owned();
    }
    let text = bytes.trim_ascii_start();
    if text.starts_with(b"(") || text.starts_with(b";;") {
        return "text (the text format is recognized by the suffix .wat)".to_owned();
    }
    let start: Vec<String> = bytes.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("a file that begins with the bytes {}", start.join(" "))
}
