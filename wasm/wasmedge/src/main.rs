//! `kiln-wasmedge`: kiln's command line with WasmEdge linked in.
//!
//! `kiln` executes it for wasm containers, out of the engine folder that `scripts/build` makes:
//!
//! ```text
//! DIR/ld.so --library-path DIR/run DIR/kiln-wasmedge ARGUMENTS OF KILN
//! DIR/ld.so --library-path DIR/compile:DIR/run DIR/kiln-wasmedge aot-compile [MODULE...]
//! ```
//!
//! DIR is absolute: [`folder`] takes it from the first argument. The second form, with the real
//! libLLVM, is the one that may compile.

mod aot;
mod compile;
mod engine;
mod folder;
mod load;
mod preopens;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next();
    if args.next().is_some_and(|command| command == compile::COMMAND) {
        return compile::main(args);
    }
    kiln::main_with(Some(Box::new(engine::WasmEdge::new(program))))
}
