//! The bundle: a directory with a config.json.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::error::{Error, Step};
use crate::lenient;

/// A config.json is a few KiB; nothing that large is one.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle with its config, as the user wrote it: parsed, not yet checked.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute, without symlinks.
    pub path: PathBuf,
    /// The config.
    pub spec: Spec,
    /// Its text, which the state keeps.
    pub json: Vec<u8>,
}

impl Bundle {
    /// Reads `config.json` in the directory `path`.
    ///
    /// # Errors
    /// The directory or the file is missing, too large, or is not a config.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::load_with(path, None)
    }

    /// The same with another file as the config, relative to the working directory.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn load_with(path: &Path, config: Option<&Path>) -> Result<Self, Error> {
        let path = path.canonicalize().step(|| format!("open bundle {}", path.display()))?;
        let config = config.map_or_else(|| path.join("config.json"), Path::to_owned);
        let file = std::fs::File::open(&config).step(|| format!("open {}", config.display()))?;
        let size = file.metadata().step(|| format!("stat {}", config.display()))?.len();
        if size > MAX_CONFIG {
            return Err(Error::file(&config, format!("is larger than {MAX_CONFIG} bytes")));
        }
        let mut json = Vec::with_capacity(size as usize + 1);
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_CONFIG), &mut json)
            .step(|| format!("read {}", config.display()))?;
        let spec = lenient::from_slice(&json).map_err(|error| Error::file(&config, error))?;
        Ok(Self { path, spec, json })
    }

    /// Whether the container's process is to have a terminal.
    pub fn has_terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false)
    }

    /// The root directory on the host: `root.path`, relative to the bundle.
    ///
    /// # Errors
    /// The config has no root.
    pub fn rootfs(&self) -> Result<PathBuf, Error> {
        let root = self.spec.root().as_ref().ok_or_else(|| Error::config("root", "is needed"))?;
        Ok(self.path.join(root.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let problem = || Bundle::load(dir.path()).unwrap_err().to_string();
        assert!(problem().contains("config.json: no such file"));
        std::fs::write(dir.path().join("config.json"), r#"{"ociVersion": 1}"#).unwrap();
        assert!(problem().contains("config.json: invalid type: integer `1`"));
        std::fs::write(dir.path().join("config.json"), r#"{"ociVersion":"1.0.2"}"#).unwrap();
        let bundle = Bundle::load(dir.path()).unwrap();
        assert!(bundle.rootfs().unwrap_err().to_string().starts_with("root: is needed"));
    }
}
