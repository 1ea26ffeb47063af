//! The engine folder: the engine's executable with all that it needs, its dynamic linker included,
//! see `scripts/build`. It is executed through that linker, so it runs whatever libraries the
//! machine has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::Error;

/// The folder's name beside kiln's executable.
const NAME: &str = "kiln-engine";
/// Where it is installed.
const INSTALLED: [&str; 2] = ["/usr/local/lib/kiln", "/usr/lib/kiln"];
/// The engine's executable in it.
const PROGRAM: &str = "kiln-wasmedge";

/// Which libraries the engine is executed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libraries {
    /// Those for running: libLLVM is a stand-in.
    Run,
    /// The real libLLVM, for compiling ahead of time.
    Compile,
}

/// An engine folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// Looks beside the executable `own`, then where it is installed.
    ///
    /// # Errors
    /// [`Error::NoEngine`]
    pub fn find(own: &Path) -> Result<Self, Error> {
        let mut places: Vec<PathBuf> = own.parent().map(|dir| dir.join(NAME)).into_iter().collect();
        places.extend(INSTALLED.map(PathBuf::from));
        match places.iter().position(|place| place.join(PROGRAM).is_file()) {
            Some(found) => Ok(Self(places.swap_remove(found))),
            None => Err(Error::NoEngine { looked: places, install: INSTALLED[0] }),
        }
    }

    /// The folder that holds `program`, the engine's first argument. /proc/self/exe would not do:
    /// it is the dynamic linker, and may be a copy of it on a mount that has no path.
    ///
    /// None if it was started in another way: then nothing can be compiled.
    pub fn of(program: &Path) -> Option<Self> {
        let folder = program.parent().filter(|folder| folder.is_absolute())?;
        Some(Self(folder.to_owned()))
    }

    /// The dynamic linker, which is what is executed.
    pub fn linker(&self) -> PathBuf {
        self.0.join("ld.so")
    }

    /// The executable that serves many functions: without an engine, and so without a linker.
    pub fn gateway(&self) -> PathBuf {
        self.0.join("kiln-gateway")
    }

    /// The whole command that executes the engine with `args`; the first word is [`Self::linker`].
    pub fn command(
        &self,
        libraries: Libraries,
        args: impl IntoIterator<Item = OsString>,
    ) -> Vec<OsString> {
        let path = |name: &str| self.0.join(name).into_os_string();
        let mut search = OsString::new();
        if libraries == Libraries::Compile {
            search.push(path("compile"));
            search.push(":");
        }
        search.push(path("run"));
        let linker = self.linker().into_os_string();
        let mut command = vec![linker, "--library-path".into(), search, path(PROGRAM)];
        command.extend(args);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_first_argument_tells() {
        assert!(Folder::of(Path::new("kiln-wasmedge")).is_none());
        assert!(Folder::of(Path::new("engine/kiln-wasmedge")).is_none());
        let folder = Folder::of(Path::new("/lib/kiln/kiln-wasmedge")).unwrap();
        let line = |libraries, args: &[&str]| {
            let command = folder.command(libraries, args.iter().map(OsString::from));
            command.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(
            line(Libraries::Compile, &["aot-compile"]),
            "/lib/kiln/ld.so --library-path /lib/kiln/compile:/lib/kiln/run \
             /lib/kiln/kiln-wasmedge aot-compile"
        );
        assert_eq!(
            line(Libraries::Run, &[]),
            "/lib/kiln/ld.so --library-path /lib/kiln/run /lib/kiln/kiln-wasmedge"
        );
    }

    #[test]
    fn the_folder_beside_the_executable_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("kiln");
        let beside = dir.path().join(NAME);
        std::fs::create_dir(&beside).unwrap();
        std::fs::write(beside.join(PROGRAM), "").unwrap();
        assert_eq!(Folder::find(&own).unwrap(), Folder(beside));
    }
}
