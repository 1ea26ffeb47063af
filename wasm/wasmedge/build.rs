//! Link arguments that WasmEdge's library needs, and the order of functions: see cli/build.rs.

fn main() {
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/../../cli/functions.order");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={list}");
    // A private WasmEdge wants a newer libc than the host's linker can see; it gets it from the
    // engine folder when it is started (scripts/build).
    println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={list}");
        println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}
