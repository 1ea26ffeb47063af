//! What a compiled module is good for: one module, one engine, one kind of processor.

use std::fmt;

/// The SHA-256 digest of a module's bytes, displayed in lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Digest([u8; 32]);

impl From<[u8; 32]> for Digest {
    /// A digest that somebody else has computed.
    fn from(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }
}

impl Digest {
    /// The digest that is displayed as `text`, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() {
            return None;
        }
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Some(Digest(bytes))
    }
}

/// Upper-case digits are none: a digest is spelled in one way, as its file in the cache is.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The name of a compiled module in the cache.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key(String);

/// A key's file is called `DIGEST-ENGINE-PROCESSOR` and this.
pub(crate) const SUFFIX: &str = ".aot";

impl Key {
    /// The cache's file name for this key.
    pub(crate) fn file_name(&self) -> String {
        format!("{}{SUFFIX}", self.0)
    }

    /// The name of the file that is locked while this key is compiled.
    pub(crate) fn lock_name(&self) -> String {
        format!("{}.lock", self.0)
    }
}

/// The parts of a key that a file name shows: digest, engine, processor.
pub(crate) fn parse(file_name: &str) -> Option<(&str, &str, &str)> {
    let (digest, rest) = file_name.strip_suffix(SUFFIX)?.split_once('-')?;
    let (engine, processor) = rest.rsplit_once('-')?;
    let is_hex = |text: &str, len| {
        text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let known = is_hex(digest, 64) && is_hex(processor, 16) && !engine.is_empty();
    known.then_some((digest, engine, processor))
}

#[cfg(feature = "engine")]
mod making {
    use sha2::Digest as _;

    use super::{Digest, Key};

    impl Digest {
        /// The digest of a module.
        pub fn of(bytes: &[u8]) -> Self {
            Digest(sha2::Sha256::digest(bytes).into())
        }
    }

    impl Key {
        /// The key of what `engine` (its name and version, as in `wasmedge-0.14.1`) makes of a
        /// module on a processor that has exactly `cpu_features` (see [`cpu_features`]).
        ///
        /// Of `engine`, characters other than letters, digits, `.`, `_`, `+` and `-` become `_`.
        pub fn new(digest: &Digest, engine: &str, cpu_features: &str) -> Self {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
            let engine: String = engine.chars().map(|c| if plain(c) { c } else { '_' }).collect();
            let processor = Digest::of(cpu_features.as_bytes()).to_string();
            Key(format!("{digest}-{engine}-{}", &processor[..16]))
        }
    }

    /// The architecture and the instruction set extensions of this processor that a compiler
    /// may make use of, such as `x86_64 aes avx avx2`: code compiled here runs on every
    /// processor that has the same. Asks the processor, not /proc/cpuinfo, which takes
    /// milliseconds on a large machine.
    pub fn cpu_features() -> String {
        let mut features = vec![std::env::consts::ARCH];
        macro_rules! detect {
            ($detected:ident: $($name:tt)*) => {
                $(if std::arch::$detected!($name) { features.push($name); })*
            };
        }
        #[cfg(target_arch = "x86_64")]
        detect!(is_x86_feature_detected:
            "adx" "aes" "avx" "avx2" "avx512bf16" "avx512bitalg" "avx512bw" "avx512cd"
            "avx512dq" "avx512f" "avx512fp16" "avx512ifma" "avx512vbmi" "avx512vbmi2"
            "avx512vl" "avx512vnni" "avx512vp2intersect" "avx512vpopcntdq" "avxifma"
            "avxneconvert" "avxvnni" "avxvnniint16" "avxvnniint8" "bmi1" "bmi2" "cmpxchg16b"
            "f16c" "fma" "fxsr" "gfni" "lzcnt" "movbe" "pclmulqdq" "popcnt" "rdrand" "rdseed"
            "sha" "sha512" "sm3" "sm4" "sse3" "sse4.1" "sse4.2" "sse4a" "ssse3" "tbm" "vaes"
            "vpclmulqdq" "xsave" "xsavec" "xsaveopt" "xsaves");
        #[cfg(target_arch = "aarch64")]
        detect!(is_aarch64_feature_detected:
            "aes" "bf16" "bti" "crc" "dit" "dotprod" "dpb" "dpb2" "f32mm" "f64mm" "fcma" "fhm"
            "flagm" "fp16" "frintts" "i8mm" "jsconv" "lse" "lse2" "mte" "paca" "pacg" "pmull"
            "rand" "rcpc" "rcpc2" "rdm" "sb" "sha2" "sha3" "sm4" "ssbs" "sve" "sve2"
            "sve2-aes" "sve2-bitperm" "sve2-sha3" "sve2-sm4" "tme");
        features.join(" ")
    }
}

#[cfg(feature = "engine")]
pub use making::cpu_features;

#[cfg(test)]
impl Key {
    /// A key for tests, with a digest of `digit`s.
    pub(crate) fn sample(digit: char) -> Self {
        let digest = digit.to_string().repeat(64);
        Key(format!("{digest}-wasmedge-0.14.1-0123456789abcdef"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_tell_what_they_hold() {
        let name = Key::sample('a').file_name();
        let digest = "a".repeat(64);
        assert_eq!(parse(&name), Some((digest.as_str(), "wasmedge-0.14.1", "0123456789abcdef")));
        let lock = name.replace(".aot", ".lock");
        for other in ["", ".aot", "a-b-c.aot", &lock, &name[1..]] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_digest_is_read_as_it_is_displayed() {
        let text = format!("{}0f", "a9".repeat(31));
        assert_eq!(Digest::parse(&text).unwrap().to_string(), text);
        for other in ["", &text[1..], &text[2..], &text.to_uppercase(), &text.replace('a', "é")] {
            assert_eq!(Digest::parse(other), None, "{other}");
        }
    }

    #[cfg(feature = "engine")]
    #[test]
    fn keys_differ_with_each_part() {
        let digest = Digest::of(b"abc");
        assert_eq!(
            digest.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let engine = "wasmedge-0.14.1";
        let key = Key::new(&digest, engine, "x86_64 avx");
        assert_eq!(key, Key::new(&digest, engine, "x86_64 avx"));
        assert_ne!(key, Key::new(&digest, engine, "x86_64 avx avx2"));
        assert_ne!(key, Key::new(&digest, "wasmedge-0.14.2", "x86_64 avx"));
        assert_ne!(key, Key::new(&Digest::of(b"abd"), engine, "x86_64 avx"));
        let odd = Key::new(&digest, "../wasm edge", "").file_name();
        assert_eq!(parse(&odd).unwrap().1, ".._wasm_edge");
    }

    #[cfg(feature = "engine")]
    #[test]
    fn the_processor_is_described() {
        let features = cpu_features();
        assert!(features.starts_with(std::env::consts::ARCH));
        #[cfg(target_arch = "x86_64")]
        {
            let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
            assert_eq!(features.contains(" avx2"), cpuinfo.contains(" avx2 "));
        }
        assert_eq!(features, cpu_features());
    }
}
