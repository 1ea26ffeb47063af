//! The log of a container as CRI wants it: `TIME STREAM TAG TEXT` a line.

/// One line of such a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the container's line ends here (tag `F`), or goes on in the next one (`P`).
    pub full: bool,
    /// Without the line's end.
    pub text: String,
}

/// Parses a whole log.
///
/// # Panics
/// If a line is not of this form.
#[track_caller]
pub fn parse(log: &str) -> Vec<Line> {
    log.lines().map(|line| parse_line(line).unwrap_or_else(|| panic!("line {line:?}"))).collect()
}

fn parse_line(line: &str) -> Option<Line> {
    let mut words = line.splitn(4, ' ');
    let time = words.next().filter(|time| time.contains('T') && time.len() > 20)?.to_owned();
    let stream = words.next().filter(|name| ["stdout", "stderr"].contains(name))?.to_owned();
    let full = match words.next()? {
        "F" => true,
        "P" => false,
        _ => return None,
    };
    Some(Line { time, stream, full, text: words.next()?.to_owned() })
}

/// All that one stream wrote, its lines ended.
pub fn text_of(lines: &[Line], stream: &str) -> String {
    let own = lines.iter().filter(|line| line.stream == stream);
    own.map(|line| line.text.clone() + if line.full { "\n" } else { "" }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_parts_of_lines() {
        let lines = parse(
            "2026-01-02T03:04:05.000000006Z stdout P long \n\
             2026-01-02T03:04:05.000000007Z stdout F line\n\
             2026-01-02T03:04:05.000000008Z stderr F \n",
        );
        assert_eq!(lines[0].time, "2026-01-02T03:04:05.000000006Z");
        assert_eq!(text_of(&lines, "stdout"), "long line\n");
        assert_eq!(text_of(&lines, "stderr"), "\n");
        assert_eq!(parse_line("2026-01-02T03:04:05.000000006Z stdout X text"), None);
    }
}
