//! Where heads begin and end in the bytes of a connection, and whether each is beyond doubt.
//!
//! hyper takes LF for a line's end, `Content-Length` beside `Transfer-Encoding`, and a doubled
//! `Content-Length`. Somebody in front of us may read such a request otherwise: where he sees one,
//! there would be two. So every head is checked before hyper sees a byte of it. Bodies are followed
//! by the same rules (RFC 9112, 6 and 7) and passed on as they come.
//!
//! This part sees bytes and does no input or output.

use memchr::memchr;

use super::{Limits, Refusal};

/// With which HTTP/2 begins (RFC 9113, 3.4). It is no valid HTTP/1 head for us.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A chunk's size and extensions, in bytes. hyper allows 16 KiB of extensions in a body, and we must
/// not pass what it refuses.
const CHUNK_LINE_BYTES: usize = 256;
const EXTENSION_BYTES: usize = 8 << 10;

/// Trailers, in bytes; hyper allows 16 KiB.
const TRAILER_BYTES: usize = 8 << 10;

/// What a head may take.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub head_bytes: usize,
    pub line_bytes: usize,
    pub headers: usize,
    pub body_bytes: u64,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        // They are added to each other.
        let head_bytes = limits.head_bytes.min(1 << 30);
        Bounds {
            head_bytes,
            line_bytes: limits.line_bytes.min(head_bytes),
            headers: limits.headers,
            body_bytes: limits.body_bytes,
        }
    }
}

/// Follows one connection.
#[derive(Debug)]
pub(super) struct Framing {
    bounds: Bounds,
    state: State,
    /// How many heads have been passed.
    heads: u64,
    /// Nothing passes any more; the state is that in which this was decided.
    refused: bool,
}

#[derive(Debug)]
enum State {
    /// Not enough bytes yet to tell the versions apart.
    Start,
    /// HTTP/2 has a framing of its own, which the h2 crate checks.
    Http2,
    Head(Head),
    Length(u64),
    ChunkSize(Chunked),
    ChunkData(Chunked, u64),
    ChunkEnd(Chunked),
    Trailers {
        bytes: usize,
        count: usize,
    },
}

/// A head as far as it has been looked at.
#[derive(Debug, Default)]
struct Head {
    /// Where the line begins that has not ended.
    line: usize,
    /// No LF from `line` to here.
    searched: usize,
    request_line: Option<Http1>,
    headers: usize,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http1 {
    V0,
    V1,
}

/// What the chunks so far have had.
#[derive(Clone, Copy, Debug, Default)]
struct Chunked {
    data: u64,
    extensions: usize,
}

enum Step {
    /// So many bytes are in order; there may be more.
    Pass(usize),
    /// What is there is not whole.
    More,
}

impl Framing {
    pub fn new(bounds: Bounds) -> Self {
        Framing { bounds, state: State::Start, heads: 0, refused: false }
    }

    /// Looks at the bytes that have not been passed yet, from the first of them, and says how many
    /// may be passed on. What is left must be shown again, with more behind it.
    ///
    /// # Errors
    /// What comes behind those bytes is refused, and all that follows.
    pub fn pass(&mut self, bytes: &[u8]) -> (usize, Result<(), Refusal>) {
        let mut passed = 0;
        if self.refused {
            return (0, Ok(()));
        }
        loop {
            match self.step(bytes.get(passed..).unwrap_or_default()) {
                Ok(Step::Pass(count)) => passed += count,
                Ok(Step::More) => return (passed, Ok(())),
                Err(refusal) => {
                    self.refused = true;
                    return (passed, Err(refusal));
                }
            }
        }
    }

    /// How many heads have been passed.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether a body has not ended, or was refused before it had.
    pub fn in_body(&self) -> bool {
        match self.state {
            State::Start | State::Http2 | State::Head(_) => false,
            State::Length(_)
            | State::ChunkSize(_)
            | State::ChunkData(..)
            | State::ChunkEnd(_)
            | State::Trailers { .. } => true,
        }
    }

    /// Whether this is HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.state, State::Http2)
    }

    /// Each arm passes bytes, changes the state, or asks for more: so `pass` comes to an end.
    fn step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        if bytes.is_empty() {
            return Ok(Step::More);
        }
        match &mut self.state {
            State::Start => {
                let seen = bytes.len().min(PREFACE.len());
                if bytes[..seen] != PREFACE[..seen] {
                    self.state = State::Head(Head::default());
                } else if seen < PREFACE.len() {
                    return Ok(Step::More);
                } else {
                    self.state = State::Http2;
                }
                Ok(Step::Pass(0))
            }
            State::Http2 => Ok(Step::Pass(bytes.len())),
            State::Head(head) => match head.look(bytes, &self.bounds)? {
                Step::More => Ok(Step::More),
                Step::Pass(count) => {
                    self.state = head.body(&self.bounds)?;
                    self.heads += 1;
                    Ok(Step::Pass(count))
                }
            },
            State::Length(left) => {
                let count = within(bytes, *left);
                *left -= count as u64;
                if *left == 0 {
                    self.state = State::Head(Head::default());
                }
                Ok(Step::Pass(count))
            }
            State::ChunkSize(chunked) => {
                let Some(line) = whole_line(bytes, CHUNK_LINE_BYTES, Refusal::Chunk)? else {
                    return Ok(Step::More);
                };
                let (size, extensions) = chunk_size(line).ok_or(Refusal::Chunk)?;
                chunked.extensions += extensions;
                if chunked.extensions > EXTENSION_BYTES {
                    return Err(Refusal::Chunk);
                }
                chunked.data = chunked
                    .data
                    .checked_add(size)
                    .filter(|data| *data <= self.bounds.body_bytes)
                    .ok_or(Refusal::LongBody)?;
                let passed = line.len() + 2;
                self.state = match size {
                    0 => State::Trailers { bytes: 0, count: 0 },
                    size => State::ChunkData(*chunked, size),
                };
                Ok(Step::Pass(passed))
            }
            State::ChunkData(chunked, left) => {
                let count = within(bytes, *left);
                *left -= count as u64;
                if *left == 0 {
                    self.state = State::ChunkEnd(*chunked);
                }
                Ok(Step::Pass(count))
            }
            State::ChunkEnd(chunked) => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::ChunkSize(*chunked);
                    Ok(Step::Pass(2))
                }
                [b'\r'] => Ok(Step::More),
                _ => Err(Refusal::Chunk),
            },
            State::Trailers { bytes: sum, count } => {
                let Some(line) = whole_line(bytes, TRAILER_BYTES - *sum, Refusal::LongHead)? else {
                    return Ok(Step::More);
                };
                let passed = line.len() + 2;
                if line.is_empty() {
                    self.state = State::Head(Head::default());
                    return Ok(Step::Pass(passed));
                }
                field(line)?;
                *sum += passed;
                *count += 1;
                // hyper's bound is 100 unless it is told another one.
                if *count > self.bounds.headers.min(100) {
                    return Err(Refusal::LongHead);
                }
                Ok(Step::Pass(passed))
            }
        }
    }
}

impl Head {
    /// Looks at the lines that have come since the last time. Only what is within the bounds counts,
    /// so that the result does not depend on how much has come at once.
    fn look(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Step, Refusal> {
        let head = &bytes[..bytes.len().min(bounds.head_bytes)];
        loop {
            let in_request_line = self.request_line.is_none();
            let mut end = head.len();
            if in_request_line {
                end = end.min(self.line + bounds.line_bytes + 2);
                // Not HTTP at all, TLS for example: there may be no LF to wait for.
                if let Some(&first) = head.get(self.line)
                    && !is_token(first)
                    && !matches!(first, b'\r' | b'\n')
                {
                    return Err(Refusal::RequestLine);
                }
            }
            let unseen = head.get(self.searched..end).unwrap_or_default();
            let Some(at) = memchr(b'\n', unseen) else {
                self.searched = end.max(self.searched);
                if in_request_line && end - self.line >= bounds.line_bytes + 2 {
                    return Err(Refusal::LongUri);
                }
                if bytes.len() >= bounds.head_bytes {
                    return Err(Refusal::LongHead);
                }
                return Ok(Step::More);
            };
            let end = self.searched + at;
            let line = head[self.line..end].strip_suffix(b"\r").ok_or(Refusal::BareLf)?;
            (self.line, self.searched) = (end + 1, end + 1);
            match (line.is_empty(), in_request_line) {
                // Empty lines before a request are skipped (RFC 9112, 2.2).
                (true, true) => {}
                (true, false) => return Ok(Step::Pass(end + 1)),
                (false, true) => self.request_line = Some(request_line(line)?),
                (false, false) => self.header(line, bounds)?,
            }
        }
    }

    fn header(&mut self, line: &[u8], bounds: &Bounds) -> Result<(), Refusal> {
        let (name, value) = field(line)?;
        self.headers += 1;
        if self.headers > bounds.headers {
            return Err(Refusal::LongHead);
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.hosts += 1,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = number(value).ok_or(Refusal::Length)?;
                if self.length.replace(length).is_some() {
                    return Err(Refusal::Length);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let again = std::mem::replace(&mut self.chunked, true);
                let old = self.request_line == Some(Http1::V0);
                if again || old || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::Coding);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What follows this head.
    fn body(&self, bounds: &Bounds) -> Result<State, Refusal> {
        let one_host = match self.request_line {
            Some(Http1::V1) => self.hosts == 1,
            Some(Http1::V0) | None => self.hosts <= 1,
        };
        if !one_host {
            return Err(Refusal::Host);
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Refusal::LengthAndCoding),
            (true, None) => Ok(State::ChunkSize(Chunked::default())),
            (false, Some(length)) if length > bounds.body_bytes => Err(Refusal::LongBody),
            (false, Some(0) | None) => Ok(State::Head(Head::default())),
            (false, Some(length)) => Ok(State::Length(length)),
        }
    }
}

/// `METHOD SP TARGET SP HTTP/1.x` (RFC 9112, 3). The target has no blank, no `#`, and is ASCII.
fn request_line(line: &[u8]) -> Result<Http1, Refusal> {
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::RequestLine);
    };
    let target_is_visible = target.iter().all(|byte| matches!(byte, b'!'..=b'~') && *byte != b'#');
    if method.is_empty()
        || !method.iter().copied().all(is_token)
        || target.is_empty()
        || !target_is_visible
    {
        return Err(Refusal::RequestLine);
    }
    let version = match version {
        b"HTTP/1.1" => Http1::V1,
        b"HTTP/1.0" => Http1::V0,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return Err(Refusal::Version);
        }
        _ => return Err(Refusal::RequestLine),
    };
    match method {
        b"CONNECT" => Err(Refusal::Connect),
        _ => Ok(version),
    }
}

/// `name: value` (RFC 9112, 5), the value without the blanks around it.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Refusal::Fold);
    }
    let colon = line.iter().position(|&byte| !is_token(byte)).ok_or(Refusal::Field)?;
    if colon == 0 || line[colon] != b':' {
        return Err(Refusal::Field);
    }
    let value = &line[colon + 1..];
    if has_control(value) { Err(Refusal::Control) } else { Ok((&line[..colon], blanks_off(value))) }
}

/// Whether there is a control character other than a tab. Values are most of a head: they are looked
/// at by eight bytes, and again if there may be one among these.
fn has_control(value: &[u8]) -> bool {
    const EACH: u64 = u64::MAX / 255;
    let may_have = |word: u64| {
        let low = word.wrapping_sub(EACH * 0x20) & !word;
        let delete = word ^ (EACH * 0x7f);
        (low | (delete.wrapping_sub(EACH) & !delete)) & (EACH * 0x80) != 0
    };
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    let (words, rest) = value.as_chunks::<8>();
    words.iter().any(|word| may_have(u64::from_ne_bytes(*word)) && word.iter().any(is_control))
        || rest.iter().any(is_control)
}

/// Blank and tab, which HTTP calls OWS; `trim_ascii` takes more.
fn blanks_off(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Digits and nothing else.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// `1*HEXDIG [ BWS ";" ...]`: the size, and how many bytes of extensions there are.
fn chunk_size(line: &[u8]) -> Option<(u64, usize)> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if !(1..=16).contains(&digits) {
        return None;
    }
    let (digits, rest) = line.split_at(digits);
    let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    let control = rest.iter().any(|&byte| byte != b'\t' && byte.is_ascii_control());
    let extensions = blanks_off(rest);
    let fine = !control && matches!(extensions.first(), None | Some(b';'));
    fine.then_some((size, rest.len()))
}

/// The first line without its CR LF, if it is there.
fn whole_line(bytes: &[u8], bound: usize, long: Refusal) -> Result<Option<&[u8]>, Refusal> {
    let bytes = &bytes[..bytes.len().min(bound)];
    match memchr(b'\n', bytes) {
        Some(end) => bytes[..end].strip_suffix(b"\r").map(Some).ok_or(Refusal::Chunk),
        None if bytes.len() == bound => Err(long),
        None => Ok(None),
    }
}

fn within(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

/// tchar (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = matches!(
                byte as u8,
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\''
                    | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
            byte += 1;
        }
        table
    };
    TOKEN[byte as usize]
}

/// For `fuzz/fuzz_targets/http.rs`.
#[cfg(fuzzing)]
pub mod fuzzing {
    use std::ops::Range;

    use super::{Bounds, Framing, Refusal, Step};

    /// What has become of a connection's bytes.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Passed {
        /// How many were passed.
        pub count: usize,
        /// Where the heads are in them.
        pub heads: Vec<Range<usize>>,
        /// What was wrong with the next.
        pub refusal: Option<Refusal>,
        /// Nothing was looked at.
        pub http2: bool,
    }

    /// Shows bytes to the framing, in pieces as long as `pieces` says, again and again.
    pub fn pass(bytes: &[u8], pieces: &[u8]) -> Passed {
        let bounds = Bounds { head_bytes: 1024, line_bytes: 128, headers: 8, body_bytes: 2000 };
        let mut framing = Framing::new(bounds);
        let mut passed = Passed { count: 0, heads: Vec::new(), refusal: None, http2: false };
        let mut pieces = pieces.iter().map(|&piece| usize::from(piece).max(1)).cycle();
        let mut seen = 0;
        while seen < bytes.len() && passed.refusal.is_none() {
            let piece = pieces.next().unwrap_or(bytes.len());
            seen = bytes.len().min(seen + piece);
            loop {
                let heads = framing.heads();
                match framing.step(&bytes[passed.count..seen]) {
                    Ok(Step::Pass(count)) => {
                        let start = passed.count;
                        passed.count += count;
                        if framing.heads() > heads {
                            passed.heads.push(start..passed.count);
                        }
                    }
                    Ok(Step::More) => break,
                    Err(refusal) => {
                        passed.refusal = Some(refusal);
                        break;
                    }
                }
            }
        }
        passed.http2 = framing.is_http2();
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { head_bytes: 400, line_bytes: 60, headers: 5, body_bytes: 1000 };

    /// All at once, and byte by byte: the same must come of it.
    fn pass(bytes: &[u8]) -> (usize, Result<(), Refusal>, u64) {
        let mut framing = Framing::new(BOUNDS);
        let (passed, result) = framing.pass(bytes);
        let whole = (passed, result, framing.heads());

        let mut framing = Framing::new(BOUNDS);
        let (mut passed, mut result) = (0, Ok(()));
        for end in 1..=bytes.len() {
            let (more, now) = framing.pass(&bytes[passed..end]);
            passed += more;
            result = now;
            if result.is_err() {
                break;
            }
        }
        assert_eq!((passed, result, framing.heads()), whole, "{}", bytes.escape_ascii());
        whole
    }

    fn refused(bytes: impl AsRef<[u8]>) -> Refusal {
        let (passed, result, heads) = pass(bytes.as_ref());
        assert_eq!((passed, heads), (0, 0), "{}", bytes.as_ref().escape_ascii());
        result.unwrap_err()
    }

    fn accepted(bytes: impl AsRef<[u8]>) -> u64 {
        let bytes = bytes.as_ref();
        let (passed, result, heads) = pass(bytes);
        assert_eq!((passed, result), (bytes.len(), Ok(())), "{}", bytes.escape_ascii());
        heads
    }

    #[test]
    fn passes_what_is_in_order() {
        assert_eq!(accepted("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 1);
        assert_eq!(accepted("\r\n\r\nGET / HTTP/1.0\r\n\r\n"), 1);
        assert_eq!(accepted(b"GET http://a/b?c HTTP/1.1\r\nhost:\r\nX: \x80\t, b\r\n\r\n"), 1);
        assert_eq!(accepted("P / HTTP/1.1\r\nHost: a\r\nContent-Length: \t3 \r\n\r\nabc"), 1);
        let chunked = "P / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
                       3\r\nabc\r\n00a ; x=\"y\"\r\n\r\n\n\n\r\r\n123\r\n0\r\nT: u\r\n\r\n";
        assert_eq!(accepted(chunked), 1);
        assert_eq!(accepted(format!("{chunked}GET / HTTP/1.1\r\nHost: a\r\n\r\n{chunked}")), 3);
    }

    #[test]
    fn leaves_http2_alone() {
        assert_eq!(accepted([PREFACE, b"\0\0\0\x04\0\0\0\0\0GET\n"].concat()), 0);
        assert_eq!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\rx"), Refusal::Version);
        assert_eq!(pass(&PREFACE[..23]), (0, Ok(()), 0));
    }

    #[test]
    fn refuses_doubtful_heads() {
        let cases = [
            (Refusal::BareLf, "GET / HTTP/1.1\nHost: a\r\n\r\n"),
            (Refusal::BareLf, "GET / HTTP/1.1\r\nHost: a\n\r\n"),
            (Refusal::BareLf, "GET / HTTP/1.1\r\nHost: a\r\n\n"),
            (Refusal::BareLf, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "GET /\r\n\r\n"),
            (Refusal::RequestLine, "GET / http/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "GET /a\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "GET /a\r/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "GET /ä HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::RequestLine, "\x16\x03\x01"),
            (Refusal::Version, "GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
            (Refusal::Connect, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            (Refusal::Field, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
            (Refusal::Field, "GET / HTTP/1.1\r\nHost\t: a\r\n\r\n"),
            (Refusal::Field, "GET / HTTP/1.1\r\nHost\r\n\r\n"),
            (Refusal::Field, "GET / HTTP/1.1\r\n: a\r\n\r\n"),
            (Refusal::Field, "GET / HTTP/1.1\r\nHo\0st: a\r\n\r\n"),
            (Refusal::Fold, "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n"),
            (Refusal::Fold, "GET / HTTP/1.1\r\n\tHost: a\r\n\r\n"),
            (Refusal::Control, "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n"),
            (Refusal::Control, "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
            (Refusal::Control, "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"),
            (Refusal::Host, "GET / HTTP/1.1\r\n\r\n"),
            (Refusal::Host, "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
        ];
        for (refusal, head) in cases {
            assert_eq!(refused(head), refusal, "{head:?}");
        }
    }

    #[test]
    fn refuses_doubtful_lengths() {
        let cases = [
            (Refusal::Length, "Content-Length: -1"),
            (Refusal::Length, "Content-Length: +1"),
            (Refusal::Length, "Content-Length:"),
            (Refusal::Length, "Content-Length: 1, 1"),
            (Refusal::Length, "Content-Length: 0x1"),
            (Refusal::Length, "Content-Length: 1 1"),
            (Refusal::Length, "Content-Length: 18446744073709551616"),
            (Refusal::LongBody, "Content-Length: 18446744073709551615"),
            (Refusal::LongBody, "Content-Length: 1001"),
            (Refusal::Length, "Content-Length: 1\r\nContent-Length: 1"),
            (Refusal::Length, "Content-Length: 1\r\ncontent-length: 2"),
            (Refusal::LengthAndCoding, "Content-Length: 1\r\nTransfer-Encoding: chunked"),
            (Refusal::LengthAndCoding, "Transfer-Encoding: chunked\r\nContent-Length: 1"),
            (Refusal::Coding, "Transfer-Encoding: gzip"),
            (Refusal::Coding, "Transfer-Encoding: gzip, chunked"),
            (Refusal::Coding, "Transfer-Encoding: chunked, chunked"),
            (Refusal::Coding, "Transfer-Encoding: xchunked"),
            (Refusal::Coding, "Transfer-Encoding: \"chunked\""),
            (Refusal::Coding, "Transfer-Encoding:"),
            (Refusal::Coding, "Transfer-Encoding: identity"),
            (Refusal::Coding, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            (Refusal::Control, "Transfer-Encoding: \x0bchunked"),
            (Refusal::Field, "Transfer-Encoding : chunked"),
        ];
        for (refusal, headers) in cases {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n0\r\n\r\n");
            assert_eq!(refused(&head), refusal, "{head:?}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(refused(old), Refusal::Coding);
    }

    #[test]
    fn refuses_doubtful_chunks() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let long = format!("1;{}", "x".repeat(CHUNK_LINE_BYTES));
        let cases = [
            (Refusal::Chunk, "\r\n", 0),
            (Refusal::Chunk, "-1\r\n", 0),
            (Refusal::Chunk, "0x1\r\n", 0),
            (Refusal::Chunk, " 1\r\n", 0),
            (Refusal::Chunk, "1 1\r\n", 0),
            (Refusal::Chunk, "g\r\n", 0),
            (Refusal::Chunk, "1\n", 0),
            (Refusal::Chunk, "1;a\n", 0),
            (Refusal::Chunk, "1;a\rb\r\n", 0),
            (Refusal::Chunk, "00000000000000001\r\n", 0),
            (Refusal::Chunk, &long, 0),
            (Refusal::Chunk, "1\r\nab\r\n", 4),
            (Refusal::Chunk, "1\r\na\n", 4),
            (Refusal::Chunk, "1\r\na\r1\r\n", 4),
            (Refusal::LongBody, "ffffffffffffffff\r\n", 0),
            (Refusal::LongBody, "3e9\r\n", 0),
            (Refusal::Field, "0\r\nT : u\r\n\r\n", 3),
            (Refusal::Chunk, "0\r\nT: u\n\r\n", 3),
            (Refusal::Chunk, "0\r\n\n", 3),
        ];
        for (refusal, chunks, sound) in cases {
            let (passed, result, _) = pass(format!("{head}{chunks}").as_bytes());
            assert_eq!((passed, result), (head.len() + sound, Err(refusal)), "{chunks:?}");
        }
        let two = format!("{head}3e8\r\n{}\r\n1\r\n", "x".repeat(1000));
        assert_eq!(pass(two.as_bytes()).1, Err(Refusal::LongBody));
    }

    #[test]
    fn finds_control_characters_anywhere() {
        for byte in 0..=u8::MAX {
            let expected = byte != b'\t' && (byte < 0x20 || byte == 0x7f);
            for filler in [b' ', b'x', b'\t', 0x80, 0xff] {
                for at in 0..20 {
                    let mut value = [filler; 20];
                    value[at] = byte;
                    assert_eq!(has_control(&value), expected, "{byte} at {at} in {filler}");
                }
            }
        }
    }

    #[test]
    fn bounds_heads() {
        let uri =
            |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(length - 14));
        assert_eq!(accepted(uri(60)), 1);
        assert_eq!(refused(uri(61)), Refusal::LongUri);
        assert_eq!(refused("G".repeat(70)), Refusal::LongUri);
        let headers =
            |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(accepted(headers(4)), 1);
        assert_eq!(refused(headers(5)), Refusal::LongHead);
        let long = |bytes: usize| {
            format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(bytes - 32))
        };
        assert_eq!(accepted(long(400)), 1);
        assert_eq!(refused(long(401)), Refusal::LongHead);
        assert_eq!(refused(long(100_000)), Refusal::LongHead);
    }

    #[test]
    fn a_bad_request_behind_a_good_one_does_not_pass() {
        let good = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (passed, result, heads) =
            pass(format!("{good}GET / HTTP/1.1\nHost: a\n\n{good}").as_bytes());
        assert_eq!((passed, result, heads), (good.len(), Err(Refusal::BareLf), 1));
    }
}
