//! Which WebAssembly proposals a module needs beyond WebAssembly 2.0.
//!
//! Engines run every proposal they know behind a switch, and code that is switched off cannot
//! be attacked. Nearly all modules need none of them; asking costs a validation of the module,
//! so ask only once the engine has refused it.

use wasmparser::{Validator, WasmFeatures};

use crate::error::BadModule;

/// A finished proposal (phase 4 or 5 of the WebAssembly process) that 2.0 does not include.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Proposal {
    /// Tail calls.
    TailCall,
    /// Arithmetic in constant expressions.
    ExtendedConst,
    /// More than one memory.
    MultiMemory,
    /// Shared memories and atomic instructions.
    Threads,
    /// Vector instructions whose results depend on the processor.
    RelaxedSimd,
    /// Typed function references.
    FunctionReferences,
    /// Structures and arrays with garbage collection.
    GarbageCollection,
    /// Exceptions, in their final form (`exnref`).
    ExceptionHandling,
    /// Memories and tables with 64-bit addresses.
    Memory64,
}

const ALL: [(Proposal, WasmFeatures); 9] = [
    (Proposal::TailCall, WasmFeatures::TAIL_CALL),
    (Proposal::ExtendedConst, WasmFeatures::EXTENDED_CONST),
    (Proposal::MultiMemory, WasmFeatures::MULTI_MEMORY),
    (Proposal::Threads, WasmFeatures::THREADS),
    (Proposal::RelaxedSimd, WasmFeatures::RELAXED_SIMD),
    (Proposal::FunctionReferences, WasmFeatures::FUNCTION_REFERENCES),
    (Proposal::GarbageCollection, WasmFeatures::GC),
    (Proposal::ExceptionHandling, WasmFeatures::EXCEPTIONS),
    (Proposal::Memory64, WasmFeatures::MEMORY64),
];

/// WebAssembly 2.0.
const BASE: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::GC_TYPES);

/// The proposals without which a core module is not valid; empty if WebAssembly 2.0 is enough.
///
/// # Errors
/// [`BadModule::Malformed`]: it is not valid even with all of them.
pub fn needed(module: &[u8]) -> Result<Vec<Proposal>, BadModule> {
    let valid = |features| {
        let result = Validator::new_with_features(features).validate_all(module);
        result.map(drop)
    };
    if valid(BASE).is_ok() {
        return Ok(Vec::new());
    }
    let all = ALL.iter().fold(BASE, |all, (_, flag)| all | *flag);
    valid(all)?;
    let needed = ALL.iter().filter(|(_, flag)| valid(all - *flag).is_err());
    Ok(needed.map(|(proposal, _)| *proposal).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Proposal>, String> {
        needed(&wat::parse_str(text).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn most_modules_need_none() {
        assert_eq!(of("(module)").unwrap(), []);
        let text = "(module (memory 1) (func (result i32 v128)
            (memory.copy (i32.const 0) (i32.const 1) (i32.const 2))
            (i32.extend8_s (i32.const 3)) (v128.const i64x2 0 0)))";
        assert_eq!(of(text).unwrap(), []);
    }

    #[test]
    fn each_is_recognized() {
        for (text, proposal) in [
            ("(module (func $f (return_call $f)))", Proposal::TailCall),
            (
                "(module (global i32 (i32.add (i32.const 1) (i32.const 2))))",
                Proposal::ExtendedConst,
            ),
            ("(module (memory 1) (memory 1))", Proposal::MultiMemory),
            ("(module (memory 1 1 shared))", Proposal::Threads),
            (
                "(module (func (param v128) (result v128) (i8x16.relaxed_swizzle
                 (local.get 0) (local.get 0))))",
                Proposal::RelaxedSimd,
            ),
            (
                "(module (type $t (func)) (func (param (ref $t)) (call_ref $t (local.get 0))))",
                Proposal::FunctionReferences,
            ),
            ("(module (tag $t) (func (throw $t)))", Proposal::ExceptionHandling),
            ("(module (memory i64 1))", Proposal::Memory64),
        ] {
            assert_eq!(of(text).unwrap(), [proposal], "{text}");
        }
        let gc = of("(module (type (struct (field i32))))").unwrap();
        assert!(gc.contains(&Proposal::GarbageCollection), "{gc:?}");
    }

    #[test]
    fn several_at_once() {
        let text = "(module (memory 1 1 shared) (func $f (return_call $f)))";
        assert_eq!(of(text).unwrap(), [Proposal::TailCall, Proposal::Threads]);
    }

    #[test]
    fn invalid_and_unfinished() {
        let error = of("(module (func (result i32)))").unwrap_err();
        assert!(error.contains("type mismatch"), "{error}");
        let error = of("(module (memory 1 (pagesize 1)))").unwrap_err();
        assert!(error.contains("custom page sizes"), "{error}");
    }
}
