//! What containerd answers to the shim; an image's documents; an image's name.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind {
        b'{' => kiln_image::fuzzing::documents(bytes),
        b':' => kiln_image::fuzzing::name(&String::from_utf8_lossy(bytes)),
        _ => kiln_image::fuzzing::answer(bytes),
    }
});
