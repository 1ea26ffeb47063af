//! What `kiln image pack` makes, with the programs that take it: containerd, Podman, Docker. And how
//! kiln's shim finds a module in containerd (`kiln_image::containerd`).

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_image::Error;
use kiln_image::containerd::{Found, Module};
use kiln_integration::containerd::{Containerd, Shared, Shim};
use kiln_integration::docker::Docker;
use kiln_integration::image::Image;
use kiln_integration::podman::Podman;
use kiln_integration::{Cli, examples, for_each_shim, fresh_id, kiln_only, needs_wasm, patience};
use rustix::fs::{SealFlags, fcntl_get_seals};
use sha2::{Digest, Sha256};

const VARIANT: &str = "module.wasm.image/variant=compat";
const WASM: &str = "application/wasm";
const WASM_V0: &str = "application/vnd.wasm.config.v0+json";
const WASM_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";

for_each_shim!(a_compat_image_runs);

/// Packs a module in `folder`; the archive.
fn pack(module: &Path, name: &str, flags: &[&str], folder: &Path) -> PathBuf {
    let archive = folder.join(format!("{}.tar", fresh_id()));
    let cli = Cli::new(["image", "pack", "-t", name, "-o"]).arg(&archive).arg(module);
    cli.args(flags).output().ok();
    archive
}

fn hello() -> PathBuf {
    examples::find("hello.wasm").unwrap()
}

/// A containerd that has this image, imported as an operator does: with no flags.
fn with_image(archive: impl Fn(&Path) -> PathBuf) -> Shared {
    let containerd = Containerd::shared(false);
    let image = Image { name: String::new(), archive: archive(containerd.home()) };
    containerd.import(&image);
    containerd
}

/// A container made of the image, in which nothing runs.
fn container(containerd: &Containerd, flags: &[&str], image: &str) -> String {
    let id = fresh_id();
    let cli = containerd.ctr_cli(&["container", "create"]).args(flags);
    cli.arg(image).arg(&id).output().ok();
    id
}

fn connect(containerd: &Containerd) -> kiln_image::containerd::Containerd {
    let (socket, limit) = (containerd.socket(), patience(20));
    kiln_image::containerd::Containerd::connect(&socket, &containerd.namespace, limit).unwrap()
}

fn module_of(containerd: &Containerd, container: &str) -> Result<Option<Module>, Error> {
    let (socket, limit) = (containerd.socket(), patience(20));
    let namespace = &containerd.namespace;
    kiln_image::containerd::module_of(&socket, namespace, container, None, limit)
}

fn contents(module: Module) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(module.file).read_to_end(&mut bytes).unwrap();
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn a_compat_image_runs(shim: Shim) {
    kiln_only!("it makes no images, and runs no wasm");
    needs_wasm!();
    let name = "localhost/kiln-test/compat:1";
    let containerd = with_image(|home| pack(&hello(), name, &[], home));
    let flags = ["--rm", "--annotation", VARIANT];
    let run = containerd.run_cli(shim, &flags, name, &[&fresh_id()]);
    run.output().ok().prints("hello from wasm\n");
    let id = container(&containerd, &[], name);
    assert!(module_of(&containerd, &id).unwrap().is_none(), "it is no artifact");
}

#[test]
fn an_artifact_runs_in_kilns_shim() {
    kiln_only!("it makes no images, and runs no wasm");
    needs_wasm!();
    if let Some(reason) = Shim::Kiln.missing() {
        kiln_integration::skip!("{reason}");
    }
    let name = "localhost/kiln-test/run:1";
    let flags = ["--format", "artifact", "--env", "DEMO_FILE=/demo.txt", "--", "the image's"];
    let demo = examples::find("wasi-demo.wasm").unwrap();
    let containerd = with_image(|home| pack(&demo, name, &flags, home));
    let run_with = |flags: &[&str], command: &[&str]| {
        let id = fresh_id();
        let command = [&[&*id], command].concat();
        let flags = [&["--rm"], flags].concat();
        containerd.run_cli(Shim::Kiln, &flags, name, &command).output().ok()
    };
    let run = |command: &[&str]| run_with(&["--annotation", VARIANT], command);
    let file = "file /demo.txt: written and read back";
    run(&[]).shows("argument 0: /wasi-demo.wasm\nargument 1: the image's\nenv").shows(file);
    run(&["/wasi-demo.wasm", "ours"]).shows("argument 1: ours\nenv").shows(file);
    // Nobody says that it is wasm. The streams stay open until that is found out: else whoever
    // reads them finds their end, and nothing of what the module says.
    for _ in 0..10 {
        run_with(&[], &[]).shows("argument 1: the image's\nenv").shows(file);
    }
}

#[test]
fn an_artifact_is_imported_and_its_module_found() {
    kiln_only!("it makes no images");
    needs_wasm!();
    let name = "localhost/kiln-test/artifact:1";
    let containerd = with_image(|home| pack(&hello(), name, &["--format", "artifact"], home));
    let id = container(&containerd, &[], name);
    let module = module_of(&containerd, &id).unwrap().unwrap();
    let expected = fs::read(hello()).unwrap();
    let Found { digest, size_bytes, media_type, name, .. } = &module.found;
    assert_eq!(digest.to_string(), sha256(&expected));
    assert_eq!((*size_bytes, media_type.as_str()), (expected.len() as u64, WASM_LAYER));
    assert_eq!(name.as_deref(), Some("hello.wasm"));
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    assert!(fcntl_get_seals(module.file.as_fd()).unwrap().contains(seals));
    assert_eq!(contents(module), expected);
}

/// containerd 1.6 imports an artifact alone, but does not unpack it, see docs/images.md.
#[test]
fn an_artifact_alone_is_found_too() {
    kiln_only!("it makes no images");
    needs_wasm!();
    let containerd = Containerd::shared(false);
    let name = "localhost/kiln-test/alone:1";
    let flags = ["--format", "artifact", "--no-index"];
    let archive = pack(&hello(), name, &flags, containerd.home());
    containerd.ctr(&["image", "import", "--no-unpack", archive.to_str().unwrap()]).ok();
    let mut connection = connect(&containerd);
    let found = connection.find_in(name, Some("/hello.wasm")).unwrap().unwrap();
    assert_eq!(contents(connection.read(found).unwrap()), fs::read(hello()).unwrap());
}

/// As wkg and the CNCF's artifacts, wasm-to-oci, and runwasi's oci-tar-builder have them; the last
/// one with a file beside the modules.
#[test]
fn artifacts_of_others_are_found() {
    let containerd = Containerd::shared(false);
    let component = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
    let (config, tar) =
        ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar");
    let (one, two) = (&b"\0asm\x01\0\0\0"[..], &b"\0asm\x01\0\0\0\0\x01\0"[..]);
    for (config, layers, entrypoint, expected) in [
        (WASM_V0, vec![(WASM, "", one)], None, Some(one)),
        (WASM_V0, vec![(WASM, "a.wasm", one), (WASM, "b.wasm", two)], Some("/b.wasm"), Some(two)),
        ("application/vnd.wasm.config.v1+json", vec![(WASM_LAYER, "", two)], Some("/a"), Some(two)),
        (config, vec![(tar, "data", b"tar"), (component, "b.wasm", two)], None, Some(two)),
        (config, vec![(tar, "a.wasm", b"tar")], Some("/a.wasm"), None),
    ] {
        let name = format!("localhost/kiln-test/{}:1", fresh_id());
        let image = Image::artifact(&name, config, &layers, containerd.home());
        let archive = image.archive.to_str().unwrap();
        containerd.ctr(&["image", "import", "--no-unpack", archive]).ok();
        let mut connection = connect(&containerd);
        let found = connection.find_in(&name, entrypoint).unwrap();
        let module = found.map(|found| contents(connection.read(found).unwrap()));
        assert_eq!(module.as_deref(), expected, "{config} {layers:?}");
    }
}

/// Larger than any message, and than any window that HTTP/2 begins with.
#[test]
fn a_large_module_is_read_whole() {
    kiln_only!("it makes no images");
    let containerd = Containerd::shared(false);
    let path = containerd.home().join("large.wasm");
    // A custom section with a name of no letters: 40 MiB, of which no two parts are the same.
    let mut module = b"\0asm\x01\0\0\0\0\x80\x80\x80\x14\0".to_vec();
    let numbers = (0u32..(40 << 20) / 4).flat_map(|number| number.to_le_bytes());
    module.extend(numbers.take((40 << 20) - 1));
    fs::write(&path, &module).unwrap();
    let name = "localhost/kiln-test/large:1";
    let archive = pack(&path, name, &["--format", "artifact"], containerd.home());
    containerd.import(&Image { name: name.to_owned(), archive });
    let mut connection = connect(&containerd);
    for _ in 0..2 {
        let found = connection.find_in(name, None).unwrap().unwrap();
        assert!(contents(connection.read(found).unwrap()) == module);
    }
}

#[test]
fn who_has_no_module_is_told_apart_from_who_is_not_there() {
    let containerd = Containerd::shared(false);
    let id = container(&containerd, &["--rootfs"], "/");
    assert!(module_of(&containerd, &id).unwrap().is_none(), "it has no image");
    assert!(connect(&containerd).find_in("localhost/none:1", None).unwrap().is_none());
    let error = module_of(&containerd, "none").unwrap_err();
    assert!(matches!(error, Error::Refused { status: 5, .. }), "{error}");
    assert!(error.to_string().contains("Containers/Get: container \"none\""), "{error}");
    let nowhere = containerd.home().join("none.sock");
    let limit = Duration::from_secs(1);
    let error = kiln_image::containerd::module_of(&nowhere, "k", "c", None, limit).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

/// What lies in the store is checked each time, whoever has changed it.
#[test]
fn a_module_that_was_changed_is_refused() {
    // Of its own: the store is damaged.
    let containerd = Containerd::start(false);
    let module = [&b"\0asm\x01\0\0\0\0\x06\x01x"[..], b"good"].concat();
    let layers = [(WASM, "a.wasm", &module[..])];
    let name = "localhost/kiln-test/changed:1";
    let image = Image::artifact(name, WASM_V0, &layers, containerd.home());
    let archive = image.archive.to_str().unwrap();
    containerd.ctr(&["image", "import", "--no-unpack", archive]).ok();
    let blobs = containerd.home().join("d/io.containerd.content.v1.content/blobs/sha256");
    let blob = blobs.join(sha256(&module));
    let refused = |bytes: &[u8], why: &str| {
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, bytes).unwrap();
        let mut connection = connect(&containerd);
        let found = connection.find_in(name, None).unwrap().unwrap();
        let error = connection.read(found).unwrap_err().to_string();
        let expected = format!("image {name:?}: blob sha256:{}: {why}", sha256(&module));
        assert_eq!(error, expected);
    };
    refused(&[&module[..12], b"evil"].concat(), "its bytes have another digest");
    refused(&module[..15], "15 bytes instead of 16");
    refused(b"", "0 bytes instead of 16");
}

#[test]
fn podman_loads_and_runs_a_compat_image() {
    kiln_only!("it makes no images, and runs no wasm");
    needs_wasm!();
    let podman = Podman::shared();
    let archive = pack(&hello(), "kiln-test", &[], podman.home());
    let load = podman.cli(&["load", "--input"]).arg(archive).output().ok();
    load.shows("docker.io/library/kiln-test:latest");
    // The annotation is the image's own.
    podman.run_cli(&["--rm"], &["kiln-test"]).output().ok().prints("hello from wasm\n");
}

#[test]
fn docker_loads_a_compat_image() {
    kiln_only!("it makes no images");
    needs_wasm!();
    let docker = Docker::shared();
    let flags = ["--label", "by=kiln", "--", "20000"];
    let archive = pack(&hello(), "kiln-test:2", &flags, docker.home());
    docker.cli(&["load", "--input"]).arg(archive).output().ok().shows("kiln-test:2");
    let format = "{{.Os}} {{.Config.Entrypoint}} {{.Config.Cmd}} {{.Config.Labels.by}}";
    let inspect = docker.cli(&["image", "inspect", "--format", format, "kiln-test:2"]);
    inspect.output().ok().prints("linux [/hello.wasm] [20000] kiln\n");
}
