//! The formats of cgroupfs: one value, `key value` lines, words of `key=value`.

use std::fmt::Display;
use std::str::FromStr;

use rustix::io::Errno;

use crate::error::Error;
use crate::target::Target;

/// Lines longer than this are cut in error messages.
const SHOWN: usize = 80;

impl<'a> Target<'a> {
    /// The text of a file; none if this kernel does not have it, or has it switched off.
    pub(super) fn text(&self, file: &str) -> Result<Option<Text<'a>>, Error> {
        match self.read(file) {
            Ok(text) => Ok(Some(Text { target: *self, file: file.to_owned(), text })),
            Err(Error::Read { errno: Errno::NOENT | Errno::OPNOTSUPP, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number in a file; `max` is the largest there is, a missing file none.
    pub(super) fn number(&self, file: &str) -> Result<Option<u64>, Error> {
        self.text(file)?.map(|text| text.number(&text.text)).transpose()
    }
}

/// A file's text, and where it is from.
pub(super) struct Text<'a> {
    target: Target<'a>,
    file: String,
    text: String,
}

impl Text<'_> {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.trim().is_empty())
    }

    /// `KEY NUMBER` in each line.
    pub fn pairs(&self) -> impl Iterator<Item = Result<(&str, u64), Error>> {
        self.lines().map(|line| match line.split_once(' ') {
            Some((key, value)) => Ok((key, self.number(value)?)),
            None => Err(self.malformed(line)),
        })
    }

    /// A number, or `max`.
    pub fn number(&self, word: &str) -> Result<u64, Error> {
        match word.trim() {
            "max" => Ok(u64::MAX),
            word => self.parse(word),
        }
    }

    pub fn parse<T: FromStr>(&self, word: &str) -> Result<T, Error> {
        word.parse().map_err(|_| self.malformed(word))
    }

    /// `8:16` of a device.
    pub fn device(&self, word: &str) -> Result<(u64, u64), Error> {
        let (major, minor) = word.split_once(':').ok_or_else(|| self.malformed(word))?;
        Ok((self.parse(major)?, self.parse(minor)?))
    }

    pub fn malformed(&self, text: impl Display) -> Error {
        let text = text.to_string().chars().take(SHOWN).collect();
        Error::Malformed { path: self.target.path(&self.file), text }
    }
}
