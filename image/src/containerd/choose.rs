//! Which blob of an image is the module, if any is. What an image says is not trusted.

use kiln_wasm::key::Digest;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::document::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, INDEX, Index, MANIFEST, Manifest, Platform,
};

/// The largest manifest or index that is read, in bytes, as in registries and containerd.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// How many manifests of an index, and layers of a manifest, are looked at.
const MAX_ENTRIES: usize = 128;

/// Where documents are.
pub(crate) trait Documents {
    /// The document, whole and verified, or `None` if it is not there: of other platforms there
    /// is only the name.
    ///
    /// # Errors
    /// If it is there, but larger than [`MAX_DOCUMENT`], or cannot be read.
    fn document(&mut self, digest: Digest, size: u64) -> Result<Option<Vec<u8>>, Error>;
}

/// The layer that is the module of the image whose manifest or index is `target`. Of several, the
/// one that is called as the entrypoint's file, else the first.
///
/// An index is for several platforms. If it has an ordinary image for this one, that is what
/// containerd has unpacked, and the container is none of ours. Else it may have an artifact.
///
/// # Errors
/// [`Error::Document`], [`Error::NotPulled`], or those of `documents`.
pub(crate) fn choose(
    documents: &mut impl Documents,
    image: &str,
    target: &Descriptor,
    entrypoint: Option<&str>,
) -> Result<Option<Descriptor>, Error> {
    let reader = &mut Reader { documents, image };
    if is_manifest(target) {
        return Ok(match reader.manifest(target)? {
            Some(Found::Wasm(layers)) => Some(pick(layers, entrypoint)),
            _ => None,
        });
    }
    if !matches!(target.media_type.as_str(), INDEX | DOCKER_LIST) {
        return Ok(None);
    }
    let (mut chosen, mut empty, mut missing) = (None, false, None);
    for descriptor in reader.index(target)? {
        match reader.manifest(&descriptor)? {
            Some(Found::Wasm(layers)) => chosen = chosen.or(Some(layers)),
            Some(Found::Ordinary) => return Ok(None),
            Some(Found::Empty) => empty = true,
            None => missing = Some(descriptor),
        }
    }
    match (chosen, missing) {
        (Some(layers), _) => Ok(Some(pick(layers, entrypoint))),
        (None, Some(Descriptor { digest, .. })) if empty => {
            Err(Error::NotPulled { image: image.to_owned(), digest: shortened(&digest) })
        }
        (None, _) => Ok(None),
    }
}

/// What a manifest has.
enum Found {
    /// These modules, at least one.
    Wasm((Descriptor, Vec<Descriptor>)),
    /// Layers, but no modules.
    Ordinary,
    /// No layers: the half of what `kiln image pack` makes that is there to be unpacked.
    Empty,
}

struct Reader<'a, D> {
    documents: &'a mut D,
    image: &'a str,
}

impl<D: Documents> Reader<'_, D> {
    fn manifest(&mut self, descriptor: &Descriptor) -> Result<Option<Found>, Error> {
        let Some(manifest) = self.read::<Manifest>("manifest", descriptor)? else {
            return Ok(None);
        };
        let layers = manifest.layers.unwrap_or_default();
        let empty = layers.is_empty();
        let mut modules = layers.into_iter().take(MAX_ENTRIES).filter(Descriptor::is_wasm);
        Ok(Some(match modules.next() {
            Some(first) => Found::Wasm((first, modules.collect())),
            None if empty => Found::Empty,
            None => Found::Ordinary,
        }))
    }

    /// The manifests of an index that may be for this machine, or wasm.
    fn index(&mut self, descriptor: &Descriptor) -> Result<Vec<Descriptor>, Error> {
        let host = Platform::host();
        let index = self.read::<Index>("index", descriptor)?;
        let manifests = index.and_then(|index| index.manifests).unwrap_or_default();
        let ours = |descriptor: &Descriptor| {
            let platform = descriptor.platform.as_ref();
            is_manifest(descriptor) && platform.is_none_or(|p| *p == host || p.is_wasm())
        };
        Ok(manifests.into_iter().take(MAX_ENTRIES).filter(ours).collect())
    }

    fn read<T: DeserializeOwned>(
        &mut self,
        what: &'static str,
        descriptor: &Descriptor,
    ) -> Result<Option<T>, Error> {
        let malformed = |why: String| Error::Document {
            image: self.image.to_owned(),
            what,
            digest: shortened(&descriptor.digest),
            why,
        };
        let Some(digest) = descriptor.sha256() else {
            return Err(malformed("not a SHA-256 digest".to_owned()));
        };
        if descriptor.size > MAX_DOCUMENT {
            let size = descriptor.size;
            return Err(malformed(format!("{size} bytes are more than {MAX_DOCUMENT}")));
        }
        let Some(bytes) = self.documents.document(digest, descriptor.size)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| malformed(error.to_string()))
    }
}

fn is_manifest(descriptor: &Descriptor) -> bool {
    matches!(descriptor.media_type.as_str(), MANIFEST | DOCKER_MANIFEST)
}

fn pick((first, others): (Descriptor, Vec<Descriptor>), entrypoint: Option<&str>) -> Descriptor {
    let name = entrypoint.and_then(|path| path.rsplit('/').next());
    let is_named = |layer: &Descriptor| name.is_some() && layer.title() == name;
    if is_named(&first) {
        return first;
    }
    others.into_iter().find(is_named).unwrap_or(first)
}

/// A digest as it can be shown, whatever it is.
pub(crate) fn shortened(digest: &str) -> String {
    digest.chars().take(80).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::document::{LAYER, WASM_LAYER};

    /// Documents by digest.
    #[derive(Default)]
    struct Store(HashMap<String, Vec<u8>>);

    impl Documents for Store {
        fn document(&mut self, digest: Digest, size: u64) -> Result<Option<Vec<u8>>, Error> {
            let found = self.0.get(&digest.to_string()).cloned();
            assert!(found.as_ref().is_none_or(|bytes| bytes.len() as u64 == size));
            Ok(found)
        }
    }

    impl Store {
        fn put(&mut self, media_type: &str, document: &Value) -> Value {
            let bytes = serde_json::to_vec(document).unwrap();
            let digest = Digest::from(<[u8; 32]>::from(Sha256::digest(&bytes))).to_string();
            let size = bytes.len();
            self.0.insert(digest.clone(), bytes);
            json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
        }

        fn manifest(&mut self, layers: &Value) -> Value {
            let config = layer("application/vnd.wasm.config.v0+json", None);
            let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
            self.put(MANIFEST, &manifest)
        }

        fn index(&mut self, manifests: &Value) -> Value {
            self.put(INDEX, &json!({ "schemaVersion": 2, "manifests": manifests }))
        }

        /// The title of what is chosen, or its media type.
        fn choose(&mut self, target: &Value, entrypoint: Option<&str>) -> Option<String> {
            let target: Descriptor = serde_json::from_value(target.clone()).unwrap();
            let layer = choose(self, "test", &target, entrypoint).unwrap()?;
            Some(layer.title().unwrap_or(&layer.media_type).to_owned())
        }

        fn error(&mut self, target: &Value) -> String {
            let target: Descriptor = serde_json::from_value(target.clone()).unwrap();
            choose(self, "test", &target, None).unwrap_err().to_string()
        }
    }

    fn layer(media_type: &str, title: Option<&str>) -> Value {
        let digest = format!("sha256:{}", "a".repeat(64));
        let mut layer = json!({ "mediaType": media_type, "digest": digest, "size": 8 });
        if let Some(title) = title {
            layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        }
        layer
    }

    fn on(mut descriptor: Value, os: &str, architecture: &str) -> Value {
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    }

    fn on_host(descriptor: Value) -> Value {
        let host = Platform::host();
        on(descriptor, &host.os, &host.architecture)
    }

    #[test]
    fn an_artifact_has_its_module() {
        let mut store = Store::default();
        for media_type in crate::document::WASM_LAYERS {
            let target = store.manifest(&json!([layer(media_type, None)]));
            assert_eq!(store.choose(&target, Some("/app.wasm")).unwrap(), media_type);
        }
        // With the files beside it, as runwasi has them.
        let target = store.manifest(&json!([layer(LAYER, None), layer(WASM_LAYER, None)]));
        assert_eq!(store.choose(&target, None).unwrap(), WASM_LAYER);
    }

    #[test]
    fn of_several_modules_the_entrypoint_names_one() {
        let mut store = Store::default();
        let layers = ["a.wasm", "b.wasm", "b.wasm"].map(|name| layer(WASM_LAYER, Some(name)));
        let target = store.manifest(&json!(layers));
        for (entrypoint, name) in [
            (Some("/b.wasm"), "b.wasm"),
            (Some("bin/b.wasm"), "b.wasm"),
            (Some("b.wasm"), "b.wasm"),
            (Some("/c.wasm"), "a.wasm"),
            (Some(""), "a.wasm"),
            (None, "a.wasm"),
        ] {
            assert_eq!(store.choose(&target, entrypoint).unwrap(), name, "{entrypoint:?}");
        }
    }

    #[test]
    fn other_images_have_none() {
        let mut store = Store::default();
        let ordinary = store.manifest(&json!([layer(LAYER, Some("app.wasm"))]));
        assert_eq!(store.choose(&ordinary, None), None);
        for layers in [json!([]), json!(null)] {
            let empty = store.manifest(&layers);
            assert_eq!(store.choose(&empty, None), None);
        }
        let mut other = ordinary.clone();
        other["mediaType"] = json!("application/octet-stream");
        assert_eq!(store.choose(&other, None), None);
        let missing = json!({ "mediaType": MANIFEST, "size": 2,
            "digest": format!("sha256:{}", "0".repeat(64)) });
        assert_eq!(store.choose(&missing, None), None);
    }

    #[test]
    fn an_index_has_an_artifact_unless_it_has_an_image_for_this_machine() {
        let mut store = Store::default();
        let wasm = store.manifest(&json!([layer(WASM_LAYER, None)]));
        let ordinary = store.manifest(&json!([layer(LAYER, None)]));
        let empty = store.manifest(&json!([]));
        for (manifests, found) in [
            (json!([on_host(empty.clone()), wasm]), true),
            (json!([on_host(empty), on(wasm.clone(), "wasip1", "wasm")]), true),
            (
                json!([on(ordinary.clone(), "linux", "s390x"), on(wasm.clone(), "wasi", "wasm")]),
                true,
            ),
            (json!([on_host(wasm.clone())]), true),
            (json!([on(wasm.clone(), "wasi", "wasm"), on_host(ordinary.clone())]), false),
            (json!([wasm, ordinary]), false),
            (json!([on(wasm.clone(), "linux", "s390x")]), false),
            (json!([on(ordinary.clone(), "wasi", "wasm")]), false),
            (json!([]), false),
            (json!(null), false),
        ] {
            let index = store.index(&manifests);
            assert_eq!(store.choose(&index, None).is_some(), found, "{manifests}");
            let nested = store.index(&json!([index]));
            assert_eq!(store.choose(&nested, None), None);
        }
    }

    /// containerd pulls one manifest of an index, up to version 1.7.
    #[test]
    fn an_artifact_that_was_not_pulled_is_told() {
        let mut store = Store::default();
        let wasm = store.manifest(&json!([layer(WASM_LAYER, None)]));
        let empty = store.manifest(&json!([]));
        let index = store.index(&json!([on_host(empty), wasm]));
        store.0.remove(wasm["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap());
        let error = store.error(&index);
        assert!(error.contains("its artifact sha256:") && error.contains("--no-index"), "{error}");
        // Of other images for several platforms, most of it never is.
        let index = store.index(&json!([wasm]));
        assert_eq!(store.choose(&index, None), None);
    }

    #[test]
    fn what_is_malformed_is_named() {
        let mut store = Store::default();
        let text = store.put(MANIFEST, &json!("text"));
        assert!(store.error(&text).contains("manifest sha256:"), "{}", store.error(&text));
        let index = store.put(INDEX, &json!({ "schemaVersion": 2, "manifests": [{}] }));
        assert!(store.error(&index).contains("index sha256:"));
        let mut large = text.clone();
        large["size"] = json!(MAX_DOCUMENT + 1);
        assert!(store.error(&large).contains("4194305 bytes are more than 4194304"));
        let mut odd = text;
        for digest in ["", "sha256:", "sha512:00", "sha256:../../../etc", &"\n".repeat(1000)] {
            odd["digest"] = json!(digest);
            let error = store.error(&odd);
            assert!(error.contains("not a SHA-256 digest") && error.len() < 200, "{error}");
        }
    }
}
