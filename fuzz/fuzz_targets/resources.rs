//! `update --resources` on cgroups of both versions that are ordinary directories, and sizes with
//! units.

#![no_main]

use kiln_cgroups::fuzzing::{Fake, fakes, limits};

thread_local! {
    static FAKES: [Fake; 2] = fakes();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(size) = kiln::fuzzing::bytes(text)
    {
        assert!(size >= -1);
    }
    let Some(resources) = kiln::fuzzing::resources(bytes) else { return };
    FAKES.with(|fakes| limits(&resources, fakes));
});
