//! The engine folder: what starts kiln-wasmedge, see `scripts/build`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::compile;

/// The folder from which this executable was started.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder that holds `program`, this process's first argument. /proc/self/exe would not
    /// do: it is the dynamic linker, and may be a copy of it on a mount that has no path.
    ///
    /// `None` if it was started in another way: then nothing can be compiled.
    pub fn of(program: &Path) -> Option<Self> {
        let folder = program.parent().filter(|folder| folder.is_absolute())?;
        Some(Folder(folder.to_owned()))
    }

    /// The command that compiles modules with the real libLLVM, without its modules.
    pub fn compiler(&self) -> Vec<OsString> {
        let path = |name: &str| self.0.join(name).into_os_string();
        let mut libraries = path("compile");
        libraries.push(":");
        libraries.push(path("run"));
        let (loader, program) = (path("ld.so"), path("kiln-wasmedge"));
        vec![loader, "--library-path".into(), libraries, program, compile::COMMAND.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_first_argument_tells() {
        assert!(Folder::of(Path::new("kiln-wasmedge")).is_none());
        assert!(Folder::of(Path::new("engine/kiln-wasmedge")).is_none());
        let command = Folder::of(Path::new("/lib/kiln/kiln-wasmedge")).unwrap().compiler();
        let line = command.join(std::ffi::OsStr::new(" "));
        assert_eq!(
            line,
            "/lib/kiln/ld.so --library-path /lib/kiln/compile:/lib/kiln/run \
             /lib/kiln/kiln-wasmedge aot-compile"
        );
    }
}
