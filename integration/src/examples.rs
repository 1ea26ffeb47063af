//! The modules and programs that `examples/build` makes, where they were built.

use std::path::PathBuf;

use crate::binary;

/// The built example of this name in `target/examples`; nothing if it is not
/// there.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = binary::workspace().join("target/examples").join(name);
    path.is_file().then_some(path)
}
