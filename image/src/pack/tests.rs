//! Archives, read back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

const MODULE: &[u8] = b"\0asm\x01\0\0\0\x00\x05\x04name";

/// The files of an archive by name.
type Files = BTreeMap<String, Vec<u8>>;

struct Packer {
    dir: TempDir,
    settings: Settings,
}

impl Packer {
    fn new() -> Self {
        Packer { dir: TempDir::new().unwrap(), settings: Settings::default() }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn pack(&self, format: Format) -> Image {
        let name = Name::parse("localhost/app:1").unwrap();
        pack(&self.file("app.wasm", MODULE), &name, format, &self.settings).unwrap()
    }

    fn error(&self, path: &Path) -> String {
        let name = Name::parse("app").unwrap();
        pack(path, &name, Format::Compat, &self.settings).unwrap_err().to_string()
    }
}

fn archive(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write(&mut bytes).unwrap();
    bytes
}

fn files(archive: &[u8]) -> Files {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!((entry.header().uid().unwrap(), entry.header().mtime().unwrap()), (0, 0));
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (name, bytes)
    });
    entries.collect()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The blob that a descriptor is of, which it describes rightly.
fn blob<'a>(files: &'a Files, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))];
    let hash = Digest::from(<[u8; 32]>::from(Sha256::digest(bytes)));
    assert_eq!(digest, format!("sha256:{hash}"));
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

/// The document that the archive names.
fn target(files: &Files) -> Value {
    assert_eq!(json(&files["oci-layout"]), json!({ "imageLayoutVersion": "1.0.0" }));
    let index = json(&files["index.json"]);
    let [target] = index["manifests"].as_array().unwrap().as_slice() else {
        panic!("{index}");
    };
    assert_eq!(target["annotations"]["io.containerd.image.name"], "localhost/app:1");
    assert_eq!(target["annotations"]["org.opencontainers.image.ref.name"], "1");
    json(blob(files, target))
}

#[test]
fn a_compat_image_has_the_module_as_its_only_file() {
    let files = files(&archive(&Packer::new().pack(Format::Compat)));
    let manifest = target(&files);
    assert_eq!(manifest["annotations"], json!({ "module.wasm.image/variant": "compat" }));
    let layer = blob(&files, &manifest["layers"][0]);
    assert_eq!(self::files(layer), Files::from([("app.wasm".to_owned(), MODULE.to_vec())]));
    let mut rootfs = tar::Archive::new(layer);
    let module = rootfs.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(module.header().mode().unwrap(), 0o755);
    let config = json(blob(&files, &manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"], json!(["/app.wasm"]));
    assert_eq!(config["rootfs"]["diff_ids"], json!([manifest["layers"][0]["digest"]]));
    assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!(host())));
    let docker = &json(&files["manifest.json"])[0];
    assert_eq!(docker["RepoTags"], json!(["localhost/app:1"]));
    assert_eq!(json(&files[docker["Config"].as_str().unwrap()]), config);
    assert_eq!(files[docker["Layers"][0].as_str().unwrap()], layer);
}

fn host() -> String {
    Platform::host().architecture
}

#[test]
fn an_artifact_is_the_module() {
    let image = Packer::new().pack(Format::Artifact { index: false });
    let files = files(&archive(&image));
    let manifest = target(&files);
    assert_eq!(manifest["config"]["mediaType"], WASM_CONFIG);
    let [layer] = manifest["layers"].as_array().unwrap().as_slice() else { panic!("{manifest}") };
    assert_eq!(layer["mediaType"], WASM_LAYER);
    assert_eq!(layer["annotations"][TITLE], "app.wasm");
    assert_eq!(blob(&files, layer), MODULE);
    let config = json(blob(&files, &manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"], json!(["/app.wasm"]));
    assert_eq!(config["rootfs"]["diff_ids"], json!([]));
    assert_eq!(json(&files["index.json"])["manifests"][0]["digest"], image.digest());
    assert!(!files.contains_key("manifest.json"));
}

#[test]
fn an_index_has_the_same_artifact_and_what_containerd_unpacks() {
    let packer = Packer::new();
    let alone = packer.pack(Format::Artifact { index: false });
    let files = files(&archive(&packer.pack(Format::Artifact { index: true })));
    let index = target(&files);
    let [host, artifact] = index["manifests"].as_array().unwrap().as_slice() else {
        panic!("{index}");
    };
    assert_eq!(
        (&artifact["digest"], &artifact["platform"]),
        (&json!(alone.digest()), &Value::Null)
    );
    assert_eq!(host["platform"], json!(Platform::host()));
    let manifest = json(blob(&files, host));
    assert_eq!(
        (&manifest["layers"], &manifest["config"]["mediaType"]),
        (&json!([]), &json!(CONFIG))
    );
    let config = json(blob(&files, &manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"], json!(["/app.wasm"]));
}

#[test]
fn the_same_module_makes_the_same_archive() {
    let settings = || Settings {
        labels: ["b", "a", "c"].map(|name| (name.to_owned(), "1".to_owned())).into(),
        annotations: ["z", "y"].map(|name| (name.to_owned(), "2".to_owned())).into(),
        ..Settings::default()
    };
    for format in [Format::Compat, Format::Artifact { index: true }] {
        let pack = || Packer { settings: settings(), ..Packer::new() }.pack(format);
        assert_eq!(archive(&pack()), archive(&pack()));
    }
}

#[test]
fn settings_arrive() {
    let mut packer = Packer::new();
    packer.settings = Settings {
        args: vec!["1".to_owned(), String::new()],
        env: vec!["A=b=c".to_owned()],
        workdir: Some("/data".to_owned()),
        user: Some("65532:65532".to_owned()),
        labels: Map::from([("l".to_owned(), "1".to_owned())]),
        annotations: Map::from([(VARIANT.to_owned(), "compat-smart".to_owned())]),
    };
    let files = files(&archive(&packer.pack(Format::Compat)));
    let manifest = target(&files);
    assert_eq!(manifest["annotations"], json!({ VARIANT: "compat-smart" }));
    let expected = json!({
        "Entrypoint": ["/app.wasm"],
        "Cmd": ["1", ""],
        "Env": ["A=b=c"],
        "WorkingDir": "/data",
        "User": "65532:65532",
        "Labels": { "l": "1", VARIANT: "compat" },
    });
    assert_eq!(json(blob(&files, &manifest["config"]))["config"], expected);
}

#[test]
fn what_is_no_module_is_named() {
    let packer = Packer::new();
    let elf = packer.file("elf.wasm", b"\x7fELF");
    let expected = format!("module {}: not a WebAssembly module but an ELF file", elf.display());
    assert!(packer.error(&elf).starts_with(&expected), "{}", packer.error(&elf));
    assert!(packer.error(&packer.file("app.wat", b"(module)")).contains("wat2wasm"));
    assert!(packer.error(&packer.file("c.wasm", b"\0asm\x0d\0\x01\0")).contains("component"));
    assert!(packer.error(&packer.file("e.wasm", b"")).contains("empty file"));
    assert!(packer.error(&packer.file("a\nb.wasm", MODULE)).contains("its file name"));
    let none = packer.dir.path().join("none.wasm");
    assert!(packer.error(&none).starts_with(&format!("read {}: ", none.display())));
    assert!(packer.error(packer.dir.path()).starts_with("read "));
}

#[test]
fn a_module_that_is_too_large_is_not_read() {
    let packer = Packer::new();
    let path = packer.file("large.wasm", MODULE);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(header::MAX_BYTES + 1).unwrap();
    let error = packer.error(&path);
    assert!(error.contains("268435457 bytes are more than the limit of 268435456"), "{error}");
}

#[test]
fn settings_that_no_runtime_would_take_are_refused() {
    let mut packer = Packer::new();
    let path = packer.file("app.wasm", MODULE);
    let text = str::to_owned;
    for (settings, expected) in [
        (Settings { env: vec![text("A")], ..Settings::default() }, "environment \"A\": not NAME"),
        (Settings { env: vec![text("=A")], ..Settings::default() }, "environment \"=A\": not NAME"),
        (
            Settings { args: vec![text("\0")], ..Settings::default() },
            "argument \"\\0\": has a null",
        ),
        (
            Settings { workdir: Some(text("data")), ..Settings::default() },
            "working directory \"data\": not an absolute path",
        ),
        (Settings { user: Some(text("me")), ..Settings::default() }, "user \"me\": not UID"),
        (Settings { user: Some(text("1:")), ..Settings::default() }, "user \"1:\": not UID"),
    ] {
        packer.settings = settings;
        let error = packer.error(&path);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn an_archive_is_saved_whole_or_not_at_all() {
    let packer = Packer::new();
    let image = packer.pack(Format::Compat);
    let at = packer.dir.path().join("image.tar");
    std::fs::write(&at, "old").unwrap();
    image.save(&at).unwrap();
    assert_eq!(std::fs::read(&at).unwrap(), archive(&image));
    let directory = packer.dir.path().join("directory");
    std::fs::create_dir(&directory).unwrap();
    let full = Path::new("/dev/full");
    for path in [directory.as_path(), &directory.join("none/image.tar"), full] {
        let error = image.save(path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("write {}: ", path.display())), "{error}");
    }
    image.save(Path::new("/dev/null")).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(packer.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["app.wasm", "directory", "image.tar"]);
}
