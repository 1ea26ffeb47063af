//! HOME, for programs that cannot do without.

use std::io::{BufRead, BufReader, Read};

use crate::error::Error;
use crate::plan::ProcessPlan;

/// An /etc/passwd is a few KiB; an image must not make us read without end.
const MAX_PASSWD: u64 = 1 << 20;

/// Adds HOME to the environment if it is not there: from the container's /etc/passwd, else `/`,
/// as runc and crun do. Called in the container's root.
pub fn with_home(process: &mut ProcessPlan) -> Result<(), Error> {
    if process.variable("HOME").is_none() {
        let home = passwd_home(process.uid).filter(|home| !home.is_empty() && !home.contains('\0'));
        process
            .env
            .push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
    Ok(())
}

fn passwd_home(uid: u32) -> Option<String> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let file = std::fs::File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    home_in(BufReader::new(file.take(MAX_PASSWD)), uid)
}

/// passwd(5): name:password:UID:GID:GECOS:directory:shell.
fn home_in(passwd: impl BufRead, uid: u32) -> Option<String> {
    passwd.lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        found.then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_home_is_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n:::\nweb:x:33:33::/var/www:/bin/false\n";
        assert_eq!(home_in(passwd.as_bytes(), 33).unwrap(), "/var/www");
        assert_eq!(home_in(passwd.as_bytes(), 0).unwrap(), "/root");
        assert_eq!(home_in(passwd.as_bytes(), 5), None);
    }
}
