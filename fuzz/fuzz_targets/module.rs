//! A wasm module's sections, up to its imports. The first byte says whether native code in it is
//! trusted.

#![no_main]

use std::path::Path;

use kiln_wasm::module::{Module, START};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&trust, bytes)) = bytes.split_first() else { return };
    let trust = trust & 1 == 1;
    let Ok(module) = Module::from_bytes(Path::new("/m.wasm"), bytes.to_vec(), trust) else {
        return;
    };
    let _ = (module.digest(), module.native_code(), module.check_exports(START));
    let _ = module.check_imports(|import| import.module.len() % 2 == 0);
});
