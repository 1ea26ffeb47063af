//! The functions of an executable.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Their names by address; one address may have several.
#[derive(Debug)]
pub struct Symbols(BTreeMap<u64, Vec<String>>);

impl Symbols {
    /// As nm(1) prints them.
    pub fn of(executable: &Path) -> Self {
        let output = Command::new("nm").arg("--defined-only").arg(executable).output().unwrap();
        assert!(output.status.success(), "nm: {}", String::from_utf8_lossy(&output.stderr));
        let mut symbols: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            if let [address, "t" | "T" | "w" | "W", name] = words[..] {
                let address = u64::from_str_radix(address, 16).unwrap();
                symbols.entry(address).or_default().push(name.to_owned());
            }
        }
        assert!(!symbols.is_empty(), "{} has no symbols", executable.display());
        Self(symbols)
    }

    /// Where the function begins that has this instruction.
    pub fn function(&self, instruction: u64) -> Option<u64> {
        self.0.range(..=instruction).next_back().map(|(&begin, _)| begin)
    }

    /// The names of the function that begins there.
    pub fn names(&self, begin: u64) -> &[String] {
        self.0.get(&begin).map_or(&[], Vec::as_slice)
    }
}
