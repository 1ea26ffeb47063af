//! config.json: reading it, and all checks that open nothing on the host.

#![no_main]

use kiln_runtime::{lenient, plan};
use kiln_wasm::{annotations, detect};
use oci_spec::runtime::Spec;

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    let Ok(mut spec) = lenient::from_slice::<Spec>(json) else { return };
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        // It would be opened.
        namespace.set_path(None);
    }
    if let Err(error) = plan::check(&spec) {
        assert!(!error.to_string().is_empty());
    }
    let _ = detect::may_be_wasm(&spec);
    let _ = annotations::trusted_aot(&spec);
});
