//! Packing a module: an ordinary image for every runtime that knows `module.wasm.image/variant`,
//! or an artifact that is the module itself. The same input makes the same bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use kiln_wasm::annotations::VARIANT;
use kiln_wasm::key::Digest;
use kiln_wasm::{BadModule, header};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::document::{
    CONFIG, Descriptor, INDEX, Index, LAYER, MANIFEST, Manifest, Map, Platform, TITLE, WASM_CONFIG,
    WASM_LAYER,
};
use crate::save::save;
use crate::{Error, Name};

/// What containerd reads the full name from.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// What others read it from.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// All dates in an image: none would be the time of packing.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What is made of a module.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// A Linux image with the module as its only file.
    Compat,
    /// An artifact whose layer is the module.
    Artifact {
        /// In an index, beside an image for this machine that has nothing in it but how to run
        /// it: that is what every version of containerd can import, unpack and run. Without,
        /// the artifact is all there is, as in a registry; containerd unpacks it from 1.6.25 and
        /// 1.7.7 on (its pull request 9142).
        index: bool,
    },
}

/// How a module is run, and what is said of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Its arguments, where the container is given no others.
    pub args: Vec<String>,
    /// Its environment: `NAME=VALUE`.
    pub env: Vec<String>,
    /// Its working directory, absolute; `/` without.
    pub workdir: Option<String>,
    /// Whom it runs as: `UID[:GID]`; root without.
    pub user: Option<String>,
    /// Labels of the image.
    pub labels: Map,
    /// Annotations of the manifest.
    pub annotations: Map,
}

/// A packed module, in memory.
#[derive(Debug)]
pub struct Image {
    blobs: Vec<Blob>,
    /// The files around the blobs.
    files: Vec<(&'static str, Vec<u8>)>,
    digest: String,
}

#[derive(Debug)]
struct Blob {
    digest: Digest,
    bytes: Vec<u8>,
}

/// Packs the module that `path` names: it is called as its file is, at the root of the container.
///
/// # Errors
/// - [`Error::Read`]: the file could not be read.
/// - [`Error::Module`]: it is not a module, or larger than kiln runs.
/// - [`Error::Setting`]: a setting cannot be had in an image.
pub fn pack(path: &Path, name: &Name, format: Format, settings: &Settings) -> Result<Image, Error> {
    let file_name = checked_file_name(path)?;
    check(settings)?;
    let module = read(path)?;
    let mut image = Image { blobs: Vec::new(), files: Vec::new(), digest: String::new() };
    let config = run_config(&file_name, format, settings);
    let target = match format {
        Format::Compat => {
            let layer = layer(&file_name, &module)?;
            drop(module);
            image.add_compat(name, layer, config, settings)?
        }
        Format::Artifact { index: false } => {
            image.add_artifact(module, &file_name, &config, settings)?
        }
        Format::Artifact { index: true } => {
            let artifact = image.add_artifact(module, &file_name, &config, settings)?;
            image.add_index(artifact, config)?
        }
    };
    image.add_layout(target, name)?;
    Ok(image)
}

impl Image {
    /// The digest of what is imported: the manifest's, or the index's.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Writes it as a tar archive.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(out);
        for (name, bytes) in &self.files {
            append(&mut archive, name, 0o644, bytes)?;
        }
        for Blob { digest, bytes } in &self.blobs {
            append(&mut archive, &blob_path(digest), 0o644, bytes)?;
        }
        archive.into_inner()?.flush()
    }

    /// Writes it to a file that is there whole or not at all.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        save(path, |out| self.write(out))
            .map_err(|source| Error::Write { path: path.to_owned(), source })
    }

    fn add_compat(
        &mut self,
        name: &Name,
        layer: Vec<u8>,
        config: Value,
        settings: &Settings,
    ) -> Result<Descriptor, Error> {
        let layer = self.add(LAYER, layer);
        let config = self.add_json(CONFIG, &host_config(config, &[&layer.digest]))?;
        // Docker's own format beside OCI's: versions before 25 know no other.
        let docker = json!([{
            "Config": path_of(&config),
            "RepoTags": [name.to_string()],
            "Layers": [path_of(&layer)],
        }]);
        self.files.push(("manifest.json", text(&docker)?));
        let mut annotations = settings.annotations.clone();
        annotations.entry(VARIANT.to_owned()).or_insert_with(|| "compat".to_owned());
        self.add_json(MANIFEST, &manifest(config, vec![layer], annotations))
    }

    /// As wasm-to-oci pushes it, but with a config that has something in it: the CRI runs an
    /// artifact by it.
    fn add_artifact(
        &mut self,
        module: Vec<u8>,
        file_name: &str,
        config: &Value,
        settings: &Settings,
    ) -> Result<Descriptor, Error> {
        let mut layer = self.add(WASM_LAYER, module);
        layer.annotations = Some(Map::from([(TITLE.to_owned(), file_name.to_owned())]));
        let platform = Platform { architecture: "wasm".to_owned(), os: "wasip1".to_owned() };
        let config = image_config(&platform, config.clone(), &[]);
        let config = self.add_json(WASM_CONFIG, &config)?;
        self.add_json(MANIFEST, &manifest(config, vec![layer], settings.annotations.clone()))
    }

    /// The artifact's descriptor names no platform: where it does, containerd throws away what is
    /// not for the machine that it imports to.
    fn add_index(&mut self, artifact: Descriptor, config: Value) -> Result<Descriptor, Error> {
        let config = self.add_json(CONFIG, &host_config(config, &[]))?;
        let mut host = self.add_json(MANIFEST, &manifest(config, Vec::new(), Map::new()))?;
        host.platform = Some(Platform::host());
        self.add_json(INDEX, &index(vec![host, artifact]))
    }

    /// What names the image: OCI's image layout.
    fn add_layout(&mut self, mut target: Descriptor, name: &Name) -> Result<(), Error> {
        self.digest.clone_from(&target.digest);
        target.annotations = Some(Map::from([
            (IMAGE_NAME.to_owned(), name.to_string()),
            (REF_NAME.to_owned(), name.tag().to_owned()),
        ]));
        self.files.push(("index.json", text(&index(vec![target]))?));
        self.files.push(("oci-layout", text(&json!({ "imageLayoutVersion": "1.0.0" }))?));
        Ok(())
    }

    fn add_json(
        &mut self,
        media_type: &str,
        document: &impl Serialize,
    ) -> Result<Descriptor, Error> {
        Ok(self.add(media_type, text(document)?))
    }

    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let digest = Digest::from(<[u8; 32]>::from(Sha256::digest(&bytes)));
        let size = bytes.len() as u64;
        self.blobs.push(Blob { digest, bytes });
        Descriptor {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{digest}"),
            size,
            annotations: None,
            platform: None,
        }
    }
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>, annotations: Map) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        config,
        layers: Some(layers),
        annotations: Some(annotations).filter(|map| !map.is_empty()),
    }
}

fn index(manifests: Vec<Descriptor>) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(INDEX.to_owned()),
        manifests: Some(manifests),
        annotations: None,
    }
}

/// The part of an image's config that says how to run it.
fn run_config(file_name: &str, format: Format, settings: &Settings) -> Value {
    let Settings { args, env, workdir, user, labels, .. } = settings;
    let mut labels = labels.clone();
    if format == Format::Compat {
        // Docker's format has no annotations.
        labels.entry(VARIANT.to_owned()).or_insert_with(|| "compat".to_owned());
    }
    let mut config = json!({
        "Entrypoint": [format!("/{file_name}")],
        "WorkingDir": workdir.as_deref().unwrap_or("/"),
    });
    for (name, value, given) in [
        ("Cmd", json!(args), !args.is_empty()),
        ("Env", json!(env), !env.is_empty()),
        ("User", json!(user), user.is_some()),
        ("Labels", json!(labels), !labels.is_empty()),
    ] {
        if given {
            config[name] = value;
        }
    }
    config
}

fn host_config(config: Value, layers: &[&str]) -> Value {
    image_config(&Platform::host(), config, layers)
}

fn image_config(Platform { architecture, os }: &Platform, config: Value, layers: &[&str]) -> Value {
    let history: Vec<_> = layers
        .iter()
        .map(|_| json!({ "created": EPOCH, "created_by": "kiln image pack" }))
        .collect();
    json!({
        "architecture": architecture,
        "config": config,
        "created": EPOCH,
        "history": history,
        "os": os,
        "rootfs": { "type": "layers", "diff_ids": layers },
    })
}

/// The only layer of a compat image: one file, of root's, that everybody may run.
fn layer(file_name: &str, module: &[u8]) -> Result<Vec<u8>, Error> {
    let mut archive = tar::Builder::new(Vec::with_capacity(module.len() + 4096));
    append(&mut archive, file_name, 0o755, module)
        .and_then(|()| archive.into_inner())
        .map_err(Error::Archive)
}

/// Appends a file of root's from the beginning of time.
fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, bytes)
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{digest}")
}

fn path_of(descriptor: &Descriptor) -> String {
    format!("blobs/{}", descriptor.digest.replacen(':', "/", 1))
}

fn text(document: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document).map_err(|error| Error::Archive(error.into()))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let bad = |why| Error::Module { path: path.to_owned(), why };
    let limit = header::MAX_BYTES;
    let within = |size| match size > limit {
        true => Err(bad(BadModule::TooLarge { size, limit })),
        false => Ok(size),
    };
    let file = File::open(path).map_err(failed)?;
    let size = within(file.metadata().map_err(failed)?.len())?;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // Again, because the file may grow, or not know its size.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    within(bytes.len() as u64)?;
    match header::check(&bytes) {
        Ok(()) => Ok(bytes),
        Err(BadModule::NotWasm(_)) if path.extension().is_some_and(|suffix| suffix == "wat") => {
            Err(Error::Text { path: path.to_owned() })
        }
        Err(why) => Err(bad(why)),
    }
}

fn checked_file_name(path: &Path) -> Result<String, Error> {
    let name = path.file_name().and_then(|name| name.to_str());
    // In a tar archive it would be another file's name.
    let name = name.filter(|name| !name.chars().any(char::is_control));
    name.map(str::to_owned).ok_or_else(|| Error::FileName { path: path.to_owned() })
}

/// What the formats cannot hold, or no runtime would start.
fn check(settings: &Settings) -> Result<(), Error> {
    let Settings { args, env, workdir, user, labels, annotations } = settings;
    let pairs =
        |map: &Map| map.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect();
    let texts: [(&'static str, Vec<String>); 6] = [
        ("argument", args.clone()),
        ("environment", env.clone()),
        ("working directory", workdir.iter().cloned().collect()),
        ("user", user.iter().cloned().collect()),
        ("label", pairs(labels)),
        ("annotation", pairs(annotations)),
    ];
    let bad = |what, value: &str, why| Error::Setting { what, value: value.to_owned(), why };
    for (what, values) in &texts {
        if let Some(value) = values.iter().find(|value| value.contains('\0')) {
            return Err(bad(what, value, "has a null byte"));
        }
    }
    if let Some(entry) = env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(bad("environment", entry, "not NAME=VALUE"));
    }
    if let Some(dir) = workdir.as_ref().filter(|dir| !dir.starts_with('/')) {
        return Err(bad("working directory", dir, "not an absolute path"));
    }
    let number = |text: &str| text.parse::<u32>().is_ok();
    let is_user =
        |user: &str| user.split_once(':').map_or(number(user), |(u, g)| number(u) && number(g));
    // There is no /etc/passwd to look a name up in.
    if let Some(user) = user.as_ref().filter(|user| !is_user(user)) {
        return Err(bad("user", user, "not UID or UID:GID"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
