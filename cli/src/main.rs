//! `kiln`: the command line without an engine. It links no WebAssembly; a wasm container is
//! handed over to `kiln-wasmedge`.

#[cfg(target_arch = "x86_64")]
mod entry;

fn main() -> std::process::ExitCode {
    kiln::main_with(kiln::Parts::default())
}
