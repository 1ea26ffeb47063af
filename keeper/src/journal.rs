//! What whoever runs a function is to know, such as why a request got no answer.
//!
//! In a container the runtime's log is closed, as its descriptor is the host's: there it is said on the
//! container's standard error.

use std::fmt::Display;
use std::io::Write;

use log::Level;

/// Something that a request or a function has done, and should not.
pub fn warning(message: impl Display) {
    say(Level::Warn, &message);
}

/// Something that the server could not do.
pub fn error(message: impl Display) {
    say(Level::Error, &message);
}

fn say(level: Level, message: &dyn Display) {
    if level <= log::max_level() {
        log::log!(level, "{message}");
    } else {
        let _ = std::io::stderr().write_all(line(message).as_bytes());
    }
}

/// In one line, and without what would be the guest's to choose on somebody's terminal.
fn line(message: &dyn Display) -> String {
    let mut line = "kiln: ".to_owned();
    for char in message.to_string().chars() {
        match char.is_control() {
            true => line.extend(char.escape_default()),
            false => line.push(char),
        }
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_line() {
        assert_eq!(
            line(&"wasm trap: \u{1b}[2J\nunreachable"),
            "kiln: wasm trap: \\u{1b}[2J\\nunreachable\n"
        );
    }
}
