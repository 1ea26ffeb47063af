//! The JSON documents of images, as far as they are written or read here: OCI image-spec 1.1.
//!
//! Not those of `oci-spec`, whose annotations are hash maps: an image must be the same each time
//! it is packed, for its digest is its name. What others wrote is read leniently where it does not
//! matter (a `null`, a field that nobody here needs) and not at all where it does (digests).

use std::collections::BTreeMap;

use kiln_wasm::key::Digest;
use serde::{Deserialize, Serialize};

/// An OCI manifest's media type.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index's.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image's config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer that is a tar archive, not compressed.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A docker registry's manifest and list of manifests, which mean the same as OCI's.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// See [`DOCKER_MANIFEST`].
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A layer that is a module, as wasm-to-oci pushes it.
pub const WASM_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// The config that goes with it.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v1+json";
/// All types of layers that are modules: wasm-to-oci's, the CNCF's (with the config
/// `application/vnd.wasm.config.v0+json`, as wkg pushes them), runwasi's.
pub const WASM_LAYERS: [&str; 3] = [
    WASM_LAYER,
    "application/wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// The annotation of a layer that names its file.
pub const TITLE: &str = "org.opencontainers.image.title";

/// Texts by name, in the order of the names.
pub type Map = BTreeMap<String, String>;

/// A reference to a blob.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits; others exist, see [`Descriptor::sha256`].
    pub digest: String,
    /// The blob's size in bytes.
    pub size: u64,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Map>,
    /// In an index: which machines the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// The digest, if it is a well-formed SHA-256 one.
    pub fn sha256(&self) -> Option<Digest> {
        Digest::parse(self.digest.strip_prefix("sha256:")?)
    }

    /// Whether it is a module's.
    pub fn is_wasm(&self) -> bool {
        WASM_LAYERS.contains(&self.media_type.as_str())
    }

    /// The file name that its annotations give it.
    pub fn title(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(TITLE).map(String::as_str)
    }
}

/// A kind of machine, in Go's words: `linux` and `amd64`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Platform {
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { architecture: architecture.to_owned(), os: "linux".to_owned() }
    }

    /// Whether it is WebAssembly's, by any of the names that are in use: `wasi/wasm`,
    /// `wasip1/wasm`, `wasip2/wasm`, `js/wasm`.
    pub fn is_wasm(&self) -> bool {
        self.architecture.starts_with("wasm")
    }
}

/// What an image or artifact consists of.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST`]; may be missing.
    #[serde(default)]
    pub media_type: Option<String>,
    /// How to run it.
    pub config: Descriptor,
    /// What is in it. Some write `null` for none.
    #[serde(default)]
    pub layers: Option<Vec<Descriptor>>,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Map>,
}

/// Manifests for several platforms, or all of an archive's images.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`INDEX`]; may be missing.
    #[serde(default)]
    pub media_type: Option<String>,
    /// The manifests.
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Map>,
}
