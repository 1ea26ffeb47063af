//! What a compiled program is found by in the cache.

use libseccomp::ScmpVersion;
use sha2::{Digest as _, Sha256};

use super::plan::Plan;

/// The length of a checksum in bytes.
pub(super) const CHECKSUM: usize = 32;

/// Changes with the code that decides what a plan compiles to, so that no build uses what
/// another has compiled differently.
const COMPILER: u64 = {
    let hash = fnv(0xcbf2_9ce4_8422_2325, include_bytes!("compile.rs"));
    let hash = fnv(hash, include_bytes!("condense.rs"));
    let hash = fnv(hash, include_bytes!("enosys.rs"));
    fnv(hash, include_bytes!("plan.rs"))
};

/// 64-bit FNV-1a.
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// What a program is found by: all that it was made from.
#[derive(Debug)]
pub(super) struct Key(pub(super) [u8; 32]);

impl Key {
    /// The key of what `plan` compiles to on this machine with this libseccomp.
    pub(super) fn of(plan: &Plan<'_>) -> Self {
        let mut hash = Sha256::new();
        hash.update(COMPILER.to_le_bytes());
        hash.update(std::env::consts::ARCH);
        // A constant of the library: it is all of libseccomp that a hit touches.
        let version = ScmpVersion::current().map(|version| version.to_string());
        hash.update([0]);
        hash.update(version.unwrap_or_default());
        hash.update([0]);
        hash.update(plan.canonical());
        Self(hash.finalize().into())
    }

    /// What its entry is called: the key in hexadecimal.
    pub(super) fn file_name(&self) -> String {
        let hex = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
        self.0.iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect()
    }

    /// Of its entry's content. Covers the key, so that an entry under a wrong name is not one
    /// either.
    pub(super) fn checksum(&self, program: &[u8]) -> [u8; CHECKSUM] {
        Sha256::new().chain_update(self.0).chain_update(program).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_key_in_hexadecimal() {
        let mut key = Key([0; 32]);
        key.0[0] = 0x0f;
        key.0[31] = 0xa5;
        let name = key.file_name();
        assert!(name.starts_with("0f00") && name.ends_with("00a5") && name.len() == 64, "{name}");
    }

    #[test]
    fn the_hash_of_the_sources_is_fnv_1a() {
        assert_eq!(fnv(0xcbf2_9ce4_8422_2325, b"foobar"), 0x8594_4171_f739_67e8);
    }
}
