//! Images for containerd and Podman, made from a folder: there is no registry here.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Bundle, Cli, examples};

/// An archive in the OCI image layout: `ctr image import` and `podman load` take it.
#[derive(Debug)]
pub struct Image {
    /// What it is called: `localhost/kiln-test/busybox:1`.
    pub name: String,
    /// The archive.
    pub archive: PathBuf,
}

impl Image {
    /// An image of one layer, which has the contents of `rootfs`, in `folder`. `config` is the
    /// image's `config` object: `{"Entrypoint": ["/hello.wasm"]}`.
    pub fn of_folder(name: &str, rootfs: &Path, config: &Value, folder: &Path) -> Self {
        Image::of_folders(name, &[rootfs], config, folder)
    }

    /// The same with a layer for each of the folders, the lowest first.
    pub fn of_folders(name: &str, rootfs: &[&Path], config: &Value, folder: &Path) -> Self {
        let layout = tempfile::Builder::new().prefix("image").tempdir_in(folder).unwrap();
        let layers = rootfs.iter().map(|rootfs| tar(rootfs, &layout.path().join("layer")));
        let layers: Vec<_> = layers.collect();
        let digest = |layer: &Vec<u8>| format!("sha256:{}", sha256(layer));
        let history = json!({ "created_by": "kiln-integration" });
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(digest).collect::<Vec<_>>() },
            // Buildah counts the layers here.
            "history": vec![history; layers.len()],
        });
        let config =
            blob(layout.path(), "application/vnd.oci.image.config.v1+json", &json(&config));
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<_> = layers.iter().map(|layer| blob(layout.path(), kind, layer)).collect();
        fs::remove_file(layout.path().join("layer")).unwrap();
        finish(name, layout.path(), &config, &json!(layers))
    }

    /// An artifact: its config's media type, and its layers' with their titles and bytes.
    pub fn artifact(
        name: &str,
        config: &str,
        layers: &[(&str, &str, &[u8])],
        folder: &Path,
    ) -> Self {
        let layout = tempfile::Builder::new().prefix("image").tempdir_in(folder).unwrap();
        let config = blob(layout.path(), config, b"{}");
        let layer = |(media_type, title, bytes): &(&str, &str, &[u8])| {
            let mut layer = blob(layout.path(), media_type, bytes);
            layer["annotations"] = json!({ "org.opencontainers.image.title": title });
            layer
        };
        let layers: Vec<Value> = layers.iter().map(layer).collect();
        finish(name, layout.path(), &config, &json!(layers))
    }

    /// busybox with its applets, as the bundles of the tests have it.
    pub fn busybox(name: &str, folder: &Path) -> Self {
        let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "WorkingDir": "/" });
        Image::of_folder(name, &Bundle::new().rootfs(), &config, folder)
    }

    /// What `kiln image pack` makes of an example module.
    ///
    /// # Panics
    /// If the example is not built.
    pub fn packed(name: &str, example: &str, folder: &Path) -> Self {
        let module = examples::find(example).unwrap_or_else(|| panic!("{example} is not built"));
        let archive = folder.join(format!("packed-{example}.tar"));
        let pack = Cli::new(["image", "pack"]).arg(module).args(&["-t", name, "-o"]).arg(&archive);
        pack.output().ok();
        Image { name: name.to_owned(), archive }
    }

    /// An image `FROM scratch` with this example, which is its entrypoint: a program, or a module
    /// (`hello.wasm`).
    ///
    /// # Panics
    /// If the example is not built.
    pub fn of_example(name: &str, example: &str, folder: &Path) -> Self {
        let program = examples::find(example).unwrap_or_else(|| panic!("{example} is not built"));
        let rootfs = tempfile::tempdir_in(folder).unwrap();
        fs::copy(program, rootfs.path().join(example)).unwrap();
        let config = json!({ "Entrypoint": [format!("/{example}")], "WorkingDir": "/" });
        Image::of_folder(name, rootfs.path(), &config, folder)
    }
}

/// Writes what there is around the blobs of a layout, and packs it.
fn finish(name: &str, layout: &Path, config: &Value, layers: &Value) -> Image {
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
    let mut manifest = blob(layout, kind, &json(&manifest));
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    manifest["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), json(&index)).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = layout.with_extension("tar");
    tar(layout, &archive);
    Image { name: name.to_owned(), archive }
}

/// Packs a folder's contents, as root's and of one time, and gives the archive's bytes.
fn tar(folder: &Path, archive: &Path) -> Vec<u8> {
    let flags = ["--create", "--sort=name", "--owner=0", "--group=0", "--mtime=@0", "--file"];
    let command =
        Cli::new(flags).binary("tar").arg(archive).arg("--directory").arg(folder).arg(".");
    command.output().ok();
    fs::read(archive).unwrap()
}

/// Writes a blob of the layout and gives its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = sha256(bytes);
    let folder = layout.join("blobs/sha256");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(&digest), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
}

fn json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
