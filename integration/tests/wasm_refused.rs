//! What is refused at `create`: modules that cannot be run, and files that the
//! engine must not be given.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, binary, examples, needs_wasm, refused, skip};

fn hello() -> Vec<u8> {
    fs::read(examples::find("hello.wasm").unwrap()).unwrap()
}

#[test]
fn a_module_that_is_missing() {
    needs_wasm!();
    let bundle = Bundle::wasm("hello", &[]).args(&["/no-such.wasm"]);
    refused(bundle, &["/no-such.wasm", "no such file or directory"]);
}

#[test]
fn an_empty_file() {
    needs_wasm!();
    refused(Bundle::module("empty.wasm", b""), &["/empty.wasm", "empty"]);
}

#[test]
fn a_module_that_ends_too_early() {
    needs_wasm!();
    let whole = hello();
    for length in [1, 4, 7] {
        refused(Bundle::module("short.wasm", &whole[..length]), &["/short.wasm"]);
    }
    for length in [9, 100, whole.len() / 2, whole.len() - 1] {
        refused(Bundle::module("cut.wasm", &whole[..length]), &["/cut.wasm"]);
    }
}

#[test]
fn a_module_of_nothing_but_a_header() {
    needs_wasm!();
    refused(Bundle::module("bare.wasm", b"\0asm\x01\0\0\0"), &["/bare.wasm", "_start"]);
}

#[test]
fn a_file_that_is_not_wasm() {
    needs_wasm!();
    refused(Bundle::module("text.wasm", b"#!/bin/sh\necho no\n"), &["/text.wasm", "not a"]);
    refused(Bundle::module("zeros.wasm", &[0; 1000]), &["/zeros.wasm", "not a"]);
}

#[test]
fn a_component() {
    needs_wasm!();
    let component = b"\0asm\x0d\0\x01\0";
    refused(Bundle::module("component.wasm", component), &["/component.wasm", "component"]);
}

#[test]
fn an_import_that_nothing_provides() {
    needs_wasm!();
    let text = br#"(module (import "env" "no_such" (func)) (func (export "_start")))"#;
    refused(Bundle::module("import.wat", text), &["/import.wat", "env", "no_such"]);
}

#[test]
fn text_that_is_wrong() {
    needs_wasm!();
    refused(Bundle::module("wrong.wat", b"(module (func $unfinished"), &["/wrong.wat"]);
}

#[test]
fn a_module_that_is_not_valid() {
    needs_wasm!();
    let text = br#"(module (func (export "_start") (result i32)))"#;
    refused(Bundle::module("invalid.wat", text), &["/invalid.wat"]);
}

#[test]
fn a_folder_and_a_device() {
    needs_wasm!();
    let bundle = Bundle::wasm("hello", &[]).args(&["/folder.wasm"]);
    fs::create_dir(bundle.rootfs().join("folder.wasm")).unwrap();
    refused(bundle, &["/folder.wasm"]);
}

/// WasmEdge would dlopen it, and so run it as root of the host.
#[test]
fn an_elf_file_named_as_a_module() {
    needs_wasm!();
    let program = fs::read("/bin/busybox").unwrap();
    refused(Bundle::module("evil.wasm", &program), &["/evil.wasm", "not a"]);
    let Some(library) = find_library() else { skip!("no shared library to try with") };
    let library = fs::read(library).unwrap();
    refused(Bundle::module("evil.wasm", &library), &["/evil.wasm", "not a"]);
    refused(Bundle::module("evil.so", &library), &["/evil.so", "not a"]);
}

fn find_library() -> Option<&'static str> {
    ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap_or(false))
}

/// What an image says is machine code is not run: this would not even load.
#[test]
fn native_code_of_an_image_is_ignored() {
    needs_wasm!();
    let mut module = hello();
    let content = [b"\x08wasmedge".as_slice(), &[0xCC; 64]].concat();
    module.push(0);
    module.push(u8::try_from(content.len()).unwrap());
    module.extend(content);
    let c = Bundle::module("native.wasm", &module).container();
    c.run().ok().prints("hello from wasm\n");
}

#[test]
fn an_unknown_word_about_trust_is_an_error() {
    needs_wasm!();
    let bundle = Bundle::wasm("hello", &[]);
    refused(
        bundle.annotation("module.wasm.image/trusted-aot", "yes"),
        &["module.wasm.image/trusted-aot", "yes"],
    );
}

#[test]
fn without_the_engine_the_error_says_where_it_was_looked_for() {
    needs_wasm!();
    let bundle = Bundle::wasm("hello", &[]);
    let alone = bundle.scratch().join("kiln");
    fs::copy(binary::path(), &alone).unwrap();
    if ["/usr/local/lib/kiln", "/usr/lib/kiln"].iter().any(|path| fs::exists(path).unwrap()) {
        skip!("kiln's engine is installed on this machine");
    }
    let c = bundle.container();
    let beside = c.bundle.scratch().join("kiln-engine");
    let parts = ["WasmEdge", beside.to_str().unwrap(), "/usr/local/lib/kiln", "scripts/setup"];
    c.create_cli(&[]).binary(&alone).output().fails(&parts);
    c.assert_nothing_left();
    // And a Linux container needs none of it.
    let c = Bundle::sh("echo linux").container();
    c.run_cli(&[]).binary(&alone).output().ok().prints("linux\n");
}
