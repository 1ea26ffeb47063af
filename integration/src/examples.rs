//! The modules and programs that `examples/build` makes, and whether wasm
//! containers can be run here at all.

use std::path::PathBuf;

use crate::binary;

/// The built example of this name in `$EXAMPLES` or `target/examples`; nothing
/// if it is not there.
pub fn find(name: &str) -> Option<PathBuf> {
    let folder = match std::env::var_os("EXAMPLES") {
        Some(folder) => PathBuf::from(folder),
        None => binary::workspace().join("target/examples"),
    };
    let path = folder.join(name);
    path.is_file().then_some(path)
}

/// Where kiln's engine lies: beside the binary, or installed.
pub fn engine() -> Option<PathBuf> {
    let beside = binary::path().parent().map(|dir| dir.join("kiln-engine"));
    let places = [beside, Some("/usr/local/lib/kiln".into()), Some("/usr/lib/kiln".into())];
    places.into_iter().flatten().find(|place| place.join("kiln-wasmedge").is_file())
}

/// Why wasm containers cannot be tested here; nothing if they can.
pub fn no_wasm() -> Option<String> {
    if !binary::is_kiln() {
        return Some(format!("{:?} runs no wasm", binary::runtime()));
    }
    if engine().is_none() {
        return Some(format!("no kiln-engine for {}", binary::path().display()));
    }
    match find("hello.wasm") {
        Some(_) => None,
        None => Some("no hello.wasm: run examples/build".to_owned()),
    }
}

/// Skips the calling test where wasm containers cannot be run.
#[macro_export]
macro_rules! needs_wasm {
    () => {
        if let Some(reason) = $crate::examples::no_wasm() {
            $crate::skip!("{reason}");
        }
    };
}
