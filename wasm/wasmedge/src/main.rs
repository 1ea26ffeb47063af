//! `kiln-wasmedge`: kiln's command line with WasmEdge linked in.
//!
//! `kiln` executes it for wasm containers, out of the engine folder that `scripts/build` makes:
//!
//! ```text
//! DIR/ld.so --library-path DIR/run DIR/kiln-wasmedge ARGUMENTS OF KILN
//! DIR/ld.so --library-path DIR/compile:DIR/run DIR/kiln-wasmedge aot-compile [MODULE...]
//! DIR/ld.so --library-path DIR/run DIR/kiln-wasmedge warm
//! ```
//!
//! DIR is absolute: [`kiln_wasm::folder`] takes it from the first argument. The second form, with the real
//! libLLVM, is the one that may compile; the third is containerd's shim's, see [`warm`].

mod aot;
mod compile;
mod engine;
mod function;
mod load;
mod preopens;
mod serve;
mod shelf;
mod sys;
mod termination;
mod warm;

use std::process::ExitCode;

use kiln::Parts;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next();
    match args.next() {
        Some(command) if command == compile::COMMAND => return compile::main(args),
        Some(command) if command == warm::COMMAND => return warm::main(program),
        _ => {}
    }
    let parts = Parts {
        engine: Some(Box::new(engine::WasmEdge::new(program.clone()))),
        serve: Some(Box::new(|command| serve::main(&command, program))),
    };
    kiln::main_with(parts)
}
