//! regex-lite under the name `regex`, for two dependencies that use little of it.
//!
//! oci-spec checks the form of one field (`process.execCPUAffinity`) with a regular expression.
//! regex with its automata and Unicode tables was a tenth of kiln's executable for that. bindgen,
//! in the build of kiln-wasmedge alone, chooses names of WasmEdge's header, which are ASCII.
//!
//! The same authors make both; regex-lite has the same syntax without Unicode classes, and
//! everything but [`RegexSet`].

pub use regex_lite::{Error, Regex};

/// Several expressions that are matched with one text, for bindgen: one after the other.
#[derive(Clone, Debug)]
pub struct RegexSet(Vec<Regex>);

impl RegexSet {
    /// Compiles them all.
    ///
    /// # Errors
    /// Of the first that is no expression.
    pub fn new<T: AsRef<str>>(expressions: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        let compiled = expressions.into_iter().map(|one| Regex::new(one.as_ref()));
        compiled.collect::<Result<_, _>>().map(RegexSet)
    }

    /// Whether any matches.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.0.iter().any(|one| one.is_match(text))
    }

    /// Which match.
    #[must_use]
    pub fn matches(&self, text: &str) -> SetMatches {
        let matching = self.0.iter().enumerate().filter(|(_, one)| one.is_match(text));
        SetMatches(matching.map(|(index, _)| index).collect())
    }
}

/// The expressions of a [`RegexSet`] that match.
#[derive(Clone, Debug)]
pub struct SetMatches(Vec<usize>);

impl SetMatches {
    /// Whether there is one.
    #[must_use]
    pub fn matched_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Their numbers in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_tells_which_match() {
        let set = RegexSet::new(["^(WasmEdge_.*)$", "^(a|b)$", "^(.*Create)$"]).unwrap();
        let matches = set.matches("WasmEdge_VMCreate");
        assert!(matches.matched_any() && set.is_match("b"));
        assert_eq!(matches.iter().collect::<Vec<_>>(), [0, 2]);
        assert!(!set.is_match("c") && !set.matches("c").matched_any());
        assert!(RegexSet::new(["("]).is_err());
    }
}
