//! Users by number, from /etc/passwd.
//!
//! Not getpwuid(3): it would load name service libraries, in a container the image's.

use std::io::{BufRead, BufReader, Read};

/// An /etc/passwd is a few KiB; an image must not make us read without end.
const MAX_PASSWD: u64 = 1 << 20;

/// The home directory of the user, in the /etc/passwd that this process sees.
pub fn home(uid: u32) -> Option<String> {
    field(uid, 5)
}

/// The name of the user, in the /etc/passwd that this process sees.
pub fn name(uid: u32) -> Option<String> {
    field(uid, 0)
}

fn field(uid: u32, index: usize) -> Option<String> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let file = std::fs::File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    field_in(BufReader::new(file.take(MAX_PASSWD)), uid, index)
}

/// passwd(5): name:password:UID:GID:GECOS:directory:shell.
fn field_in(passwd: impl BufRead, uid: u32, index: usize) -> Option<String> {
    passwd.lines().map_while(Result::ok).find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let found = fields.get(2)?.parse() == Ok(uid);
        fields.get(index).filter(|field| found && !field.is_empty()).map(|&f| f.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n:::\nweb:x:33:33::/var/www:/bin/false\n";
        assert_eq!(field_in(passwd.as_bytes(), 33, 5).unwrap(), "/var/www");
        assert_eq!(field_in(passwd.as_bytes(), 0, 0).unwrap(), "root");
        assert_eq!(field_in(passwd.as_bytes(), 5, 5), None);
    }
}
