//! Functions that were added while the gateway ran: a file for each, which the next start reads.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Config, Error, Source};
use crate::state::write_atomically;

/// One of them.
#[derive(Clone, Debug)]
pub struct Added {
    text: String,
    /// With one function.
    pub config: Config,
}

impl Added {
    /// Checks a text that is to have one `[[function]]` and nothing else. Paths in it are absolute.
    ///
    /// # Errors
    /// As for [`Config::parse`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let path = Path::new("function");
        let wrong = |key: &str, problem: &str| Error::Key {
            path: path.to_owned(),
            line: 1,
            key: key.to_owned(),
            problem: problem.to_owned(),
        };
        // Nothing is relative to anything: the gateway may be started elsewhere the next time.
        let config = Config::parse(text, path, Path::new(""))?;
        let [function] = config.functions.as_slice() else {
            return Err(wrong("function", "there is not one of it"));
        };
        if config.gateway != Config::parse("", path, Path::new(""))?.gateway {
            return Err(wrong("gateway", "it is for the configuration file"));
        }
        let (Source::Module(source) | Source::Bundle(source)) = &function.source;
        if source.is_relative() {
            return Err(wrong("module or bundle", "is not an absolute path"));
        }
        if function.dirs.iter().any(|dir| dir.host.is_relative()) {
            return Err(wrong("dirs", "is not an absolute path"));
        }
        Ok(Self { text: text.to_owned(), config })
    }

    /// The function's name.
    pub fn name(&self) -> &str {
        self.config.functions.first().map_or("", |function| &function.name)
    }

    /// Writes it down.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn record(&self, dir: &Path) -> io::Result<()> {
        write_atomically(&file(dir, self.name()), self.text.as_bytes())
    }
}

/// Reads all of them. One that is not understood is left out, and stays.
pub fn load(dir: &Path) -> Vec<Added> {
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
        Err(error) => {
            log::warn!("{}: {error}", dir.display());
            Vec::new()
        }
    };
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let added = std::fs::read_to_string(&path).map_err(|error| error.to_string());
        match added.and_then(|text| Added::parse(&text).map_err(|error| error.to_string())) {
            Ok(added) => all.push(added),
            Err(problem) => log::warn!("{}: {problem}", path.display()),
        }
    }
    all
}

/// Removes what was written down of a function.
///
/// # Errors
/// Those of unlink(2).
pub fn forget(dir: &Path, name: &str) -> io::Result<()> {
    match std::fs::remove_file(file(dir, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[[function]]\nname = 'a'\nmodule = '/m/a.wasm'\nroutes = ['/a']\n";
        Added::parse(text).unwrap().record(dir.path()).unwrap();
        std::fs::write(dir.path().join("broken.toml"), "[[function]]").unwrap();
        std::fs::write(dir.path().join("a.new"), "").unwrap();
        let all = load(dir.path());
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].name(), all[0].config.routes.len()), ("a", 1));
        forget(dir.path(), "a").unwrap();
        forget(dir.path(), "a").unwrap();
        assert!(load(dir.path()).is_empty());
    }

    #[test]
    fn one_function_and_absolute() {
        for text in [
            "",
            "[[function]]\nname = 'a'\nmodule = 'a.wasm'\n",
            "[gateway]\nwatch = true\n[[function]]\nname = 'a'\nmodule = '/a.wasm'\n",
            "[[function]]\nname = 'a'\nmodule = '/a.wasm'\n[[function]]\nname='b'\nmodule='/a.wasm'",
        ] {
            assert!(Added::parse(text).is_err(), "{text}");
        }
    }
}
