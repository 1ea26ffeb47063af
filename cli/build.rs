//! Makes the kernel start `kiln` at `kiln_entry` (src/entry.rs) instead of libc's `_start`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,--entry=kiln_entry");
    }
}
