//! Modules made from text and by hand.

use std::fs;
use std::os::fd::AsFd;

use tempfile::TempDir;

use super::*;

const HEADER: &[u8] = b"\0asm\x01\0\0\0";

fn parse(bytes: &[u8], trust_aot: bool) -> Result<Module, Error> {
    Module::from_bytes(Path::new("/m"), bytes.to_vec(), trust_aot)
}

fn text(source: &str) -> Module {
    parse(&wat::parse_str(source).unwrap(), false).unwrap()
}

fn error(bytes: &[u8]) -> String {
    parse(bytes, false).unwrap_err().to_string()
}

/// Reads a file of that name and content as an entrypoint.
fn read(name: &str, content: &[u8]) -> Result<Module, Error> {
    read_known(name, content, None)
}

fn read_known(name: &str, content: &[u8], digest: Option<Digest>) -> Result<Module, Error> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    let file = fs::File::open(path).unwrap().into();
    let path = Path::new("/").join(name);
    Module::read_known(Entrypoint { file, path }, digest, false)
}

fn custom(name: &str, data: &[u8]) -> Vec<u8> {
    let len = u8::try_from(name.len()).unwrap();
    let body = [&[len], name.as_bytes(), data].concat();
    [&[0, u8::try_from(body.len()).unwrap()], &body[..]].concat()
}

#[test]
fn a_module_is_taken_as_it_is() {
    let module = parse(HEADER, false).unwrap();
    assert_eq!((module.bytes(), module.native_code()), (HEADER, NativeCode::None));
    assert_eq!(module.digest(), Digest::of(HEADER));
    let kept = [HEADER, &custom("name", b"\0\0"), &custom("wasmedge2", b"x")].concat();
    assert_eq!(parse(&kept, false).unwrap().bytes(), kept);
}

#[test]
fn a_digest_that_is_known_is_that_of_the_file_alone() {
    let known = Digest::from([7; 32]);
    let digest = |name, content: &[u8]| read_known(name, content, Some(known)).unwrap().digest();
    assert_eq!(digest("m", HEADER), known);
    assert_eq!(digest("m.wat", b"(module)"), Digest::of(HEADER));
    let native = [HEADER, &custom("wasmedge", b"code")].concat();
    assert_eq!(digest("m", &native), Digest::of(HEADER));
}

#[test]
fn what_is_no_module_is_named() {
    assert_eq!(error(b""), "module /m: empty file");
    for len in 1..8 {
        assert_eq!(
            error(&HEADER[..len]),
            format!("module /m: truncated after {len} bytes, within its header")
        );
    }
    for (bytes, what) in [
        (&b"\x7fELF\x02\x01\x01"[..], "an ELF file (a Linux program or library)"),
        (b"#!/bin/sh\n", "a script"),
        (b" (module)", "text (the text format is recognized by the suffix .wat)"),
        (b"PK\x03\x04zip", "a file that begins with the bytes 50 4b 03 04"),
        (b"\0as\0", "a file that begins with the bytes 00 61 73 00"),
    ] {
        let expected = format!("module /m: not a WebAssembly module but {what}");
        assert_eq!(error(bytes), expected);
    }
    assert_eq!(
        error(b"\0asm\x0d\0\x01\0\0"),
        "module /m: a WebAssembly component; only core modules are supported"
    );
    assert_eq!(
        error(b"\0asm\x02\0\0\0"),
        "module /m: WebAssembly binary version 2; only 1 is supported"
    );
    assert_eq!(
        error(b"\0asm\x01\0\x02\0"),
        "module /m: WebAssembly binary version 131073; only 1 is supported"
    );
}

#[test]
fn truncated_and_malformed_sections() {
    let whole = wat::parse_str("(module (import \"a\" \"b\" (func)) (func) (memory 1))").unwrap();
    parse(&whole, false).unwrap();
    let cut = error(&whole[..whole.len() - 1]);
    assert!(cut.starts_with("module /m: malformed at byte "), "{cut}");
    assert!(cut.contains("unexpected end"), "{cut}");
    let unknown = error(&[HEADER, &[99, 0]].concat());
    assert!(unknown.contains("unknown section 99"), "{unknown}");
    let name = error(&[HEADER, &[0, 3, 2, 0xff, 0xfe]].concat());
    assert!(name.contains("malformed UTF-8"), "{name}");
    let size = error(&[HEADER, &[0, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat());
    assert!(size.contains("malformed at byte"), "{size}");
}

#[test]
fn native_code_is_removed_wherever_it_is() {
    let inner = wat::parse_str("(module (func (export \"_start\")))").unwrap();
    let aot = custom("wasmedge", b"\x7fELF native");
    // Its length written in more bytes than necessary, which engines accept.
    let long = [&[0, 0x8a, 0x80, 0x00, 8], &b"wasmedge\x01"[..]].concat();
    let keep = custom("producers", b"");
    let with = [&inner[..8], &aot, &inner[8..], &keep, &long, &aot].concat();
    let module = parse(&with, false).unwrap();
    assert_eq!(module.native_code(), NativeCode::Removed);
    assert_eq!(module.bytes(), [&inner[..], &keep].concat());
    module.check_exports(START).unwrap();
    let trusted = parse(&with, true).unwrap();
    assert_eq!(trusted.native_code(), NativeCode::Trusted);
    assert_eq!(trusted.bytes(), with);
    assert_eq!(parse(&inner, true).unwrap().native_code(), NativeCode::None);
}

#[test]
fn imports_are_listed_and_checked() {
    let module = text(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func (param i32)))
            (import "env" "memory" (memory 1))
            (import "env" "g" (global i32))
            (import "env" "t" (table 1 funcref))
            (import "host" "call" (func)))"#,
    );
    let list: Vec<String> = module.imports().iter().map(ToString::to_string).collect();
    assert_eq!(
        list,
        [
            "the function wasi_snapshot_preview1.fd_write",
            "the memory env.memory",
            "the global env.g",
            "the table env.t",
            "the function host.call",
        ]
    );
    module.check_imports(|_| true).unwrap();
    let only = |wanted: &'static str| move |import: &Import| import.module == wanted;
    assert_eq!(
        module.check_imports(only("env")).unwrap_err().to_string(),
        "module /m: imports the function wasi_snapshot_preview1.fd_write, \
         the function host.call, which nothing provides"
    );
    let error = module.check_imports(|_| false).unwrap_err().to_string();
    assert!(error.contains("the global env.g, 2 more, which nothing provides"), "{error}");
}

#[test]
fn programs_have_an_entry_point() {
    text("(module (func (export \"_start\")))").check_exports(START).unwrap();
    for library in [
        "(module)",
        "(module (func (export \"start\")))",
        "(module (memory (export \"_start\") 1))",
    ] {
        assert_eq!(
            text(library).check_exports(START).unwrap_err().to_string(),
            "module /m: exports no function _start, so it is a library and not a program"
        );
    }
}

#[test]
fn text_is_converted_by_its_name() {
    let source = b"(module (func (export \"_start\")))";
    let module = read("a.wat", source).unwrap();
    assert!(module.bytes().starts_with(HEADER));
    module.check_exports(START).unwrap();
    assert_eq!(module.path(), Path::new("/a.wat"));
    read("b.WAT", source).unwrap();
    read("binary.wat", HEADER).unwrap();
    let error = |name, content: &[u8]| read(name, content).unwrap_err().to_string();
    assert!(error("a.wasm", source).contains("recognized by the suffix .wat"));
    assert_eq!(error("e.wat", b""), "module /e.wat: empty file");
    assert!(error("e.wat", b"\x7fELF\0").contains("an ELF file"));
    assert_eq!(
        error("u.wat", b"(module) ;; \xff"),
        "module /u.wat: WebAssembly text: not UTF-8 at byte 12"
    );
    let syntax = error("s.wat", b"(module\n  (fun))");
    assert!(syntax.starts_with("module /s.wat: WebAssembly text: "));
    assert!(syntax.ends_with(" at 2:4") && !syntax.contains('\n'), "{syntax}");
    let component = error("c.wat", b"(component)");
    assert!(component.contains("component"), "{component}");
}

#[test]
fn huge_files_are_not_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("huge");
    let file = fs::File::create(&path).unwrap();
    file.set_len(MAX_BYTES + 1).unwrap();
    let file = fs::File::open(&path).unwrap().into();
    let entrypoint = Entrypoint { file, path: "/huge".into() };
    assert_eq!(
        Module::read(entrypoint, false).unwrap_err().to_string(),
        "module /huge: 268435457 bytes are more than the limit of 268435456"
    );
    let text = vec![b' '; usize::try_from(MAX_TEXT_BYTES).unwrap() + 1];
    let error = read("large.wat", &text).unwrap_err().to_string();
    assert!(error.ends_with("are more than the limit of 16777216"), "{error}");
}

#[test]
fn files_that_do_not_know_their_size_are_bounded() {
    // One that claims to be empty.
    let file = fs::File::open("/proc/self/status").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    let error = read_bounded(&file, Path::new("/s"), 10).unwrap_err();
    assert!(error.to_string().contains("11 bytes are more"), "{error}");
}

#[test]
fn from_rootfs_to_module() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("app"), HEADER).unwrap();
    let mut spec = oci_spec::runtime::Spec::default();
    let mut process = spec.process().clone().unwrap();
    process.set_args(Some(vec!["/app".to_owned()]));
    spec.set_process(Some(process));
    let rootfs = fs::File::open(dir.path()).unwrap();
    let located = crate::locate::locate(&spec, rootfs.as_fd()).unwrap();
    let crate::locate::Located::Found(entrypoint) = located else { panic!("deferred") };
    // Looking at its start does not move the file's position.
    assert!(entrypoint.starts_with_magic().unwrap());
    assert_eq!(Module::read(entrypoint, false).unwrap().bytes(), HEADER);
}
