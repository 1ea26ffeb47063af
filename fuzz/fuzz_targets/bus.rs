//! What systemd's bus sends, bus addresses, and the names of units.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiln_cgroups::fuzzing::bus(bytes));
