//! Link arguments that WasmEdge's library needs.

fn main() {
    // A private WasmEdge wants a newer libc than the host's linker can see; it gets it from the
    // engine folder when it is started (scripts/build).
    println!("cargo:rustc-link-arg=-Wl,--allow-shlib-undefined");
}
