//! `kiln image pack`, as far as nobody else is needed for it; tests/containerd_image.rs has the rest.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use kiln_integration::{Cli, kiln_only};

/// A module that does nothing.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// A folder with `app.wasm` in it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("app.wasm"), MODULE).unwrap();
    folder
}

fn pack(folder: &Path, words: &[&str]) -> Cli {
    Cli::new(["image", "pack"]).args(words).dir(folder)
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().file_name().into()).collect();
    names.sort();
    names
}

#[test]
fn the_same_module_makes_the_same_archive() {
    kiln_only!("it makes no images");
    let folder = folder();
    for format in [
        &["--format", "compat"][..],
        &["--format", "artifact"],
        &["--format=artifact", "--no-index"],
    ] {
        let words = |output| {
            let words = ["app.wasm", "-t", "team/app:1", "-l", "b=2", "-l", "a=1", "-o", output];
            [&words[..], format].concat()
        };
        let said = pack(folder.path(), &words("one.tar")).output().ok().stdout;
        assert!(said.starts_with("docker.io/team/app:1 sha256:") && said.len() == 93, "{said:?}");
        // Another time, place and mask.
        let mask = ["sh", "-c", "umask 077; exec \"$0\" \"$@\""];
        pack(folder.path(), &words("two.tar")).under(&mask).output().ok().prints(&said);
        let to_stdout = ["sh", "-c", "exec \"$0\" \"$@\" >three.tar"];
        pack(folder.path(), &words("-")).under(&to_stdout).output().ok();
        let [one, two, three] = ["one.tar", "two.tar", "three.tar"]
            .map(|name| fs::read(folder.path().join(name)).unwrap());
        assert!(one == two && one == three, "{format:?}");
        assert!(one.windows(64).any(|bytes| said.as_bytes()[28..].starts_with(bytes)));
    }
}

#[test]
fn what_cannot_be_packed_leaves_nothing() {
    kiln_only!("it makes no images");
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("elf.wasm"), "\x7fELF").unwrap();
    fs::write(at("app.wat"), "(module)").unwrap();
    fs::write(at("old.tar"), "old").unwrap();
    let before = names(folder.path());
    let refused = |words: &[&str], error: &[&str]| {
        pack(folder.path(), &[words, &["-o", "old.tar"]].concat()).output().fails(error);
        pack(folder.path(), &[words, &["-o", "new.tar"]].concat()).output().fails(error);
    };
    refused(&["elf.wasm", "-t", "app"], &["module elf.wasm: ", "an ELF file"]);
    refused(&["app.wat", "-t", "app"], &["module app.wat: ", "wat2wasm"]);
    refused(&["none.wasm", "-t", "app"], &["read none.wasm: no such file"]);
    refused(&["app.wasm", "-t", "App"], &["image name \"App\": "]);
    refused(&["app.wasm", "-t", "app", "-e", "A"], &["environment \"A\": not NAME=VALUE"]);
    refused(&["app.wasm", "-t", "app", "-l", "A"], &["--label", "not NAME=VALUE"]);
    refused(&["app.wasm", "-t", "app", "--no-index"], &["--no-index is for --format artifact"]);
    pack(folder.path(), &["app.wasm", "-t", "app", "-o", "none/new.tar"])
        .output()
        .fails(&["write none/new.tar: no such file"]);
    pack(folder.path(), &["app.wasm", "-t", "app", "-o", "/dev/full"])
        .output()
        .fails(&["write /dev/full: no space left"]);
    let to_full = ["sh", "-c", "exec \"$0\" \"$@\" >/dev/full"];
    pack(folder.path(), &["app.wasm", "-t", "app", "-o", "-"])
        .under(&to_full)
        .output()
        .fails(&["write to stdout: no space left"]);
    assert_eq!(names(folder.path()), before);
    assert_eq!(fs::read_to_string(at("old.tar")).unwrap(), "old");
}
