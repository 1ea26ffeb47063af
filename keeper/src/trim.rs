//! Memory that the server need not hold: the pages of the engine's files, which it has touched on the
//! way up and its workers use, but itself does not.

use std::fs;

/// Unmaps the pages of this process's read-only file mappings, as far as they are as in the files:
/// what is needed again is mapped again, out of the page cache. What cannot be read stays.
pub fn trim() {
    let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else { return };
    for (start, length) in clean(&smaps) {
        crate::sys::give_back(start, length);
    }
}

/// The mappings that have no page of their own, of proc_pid_smaps(5): start and length.
fn clean(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(mapping) = header(line) {
            current = mapping;
        } else if let (Some(mapping), Some(size)) = (current, line.strip_prefix("Anonymous:"))
            && size.trim() == "0 kB"
        {
            found.push(mapping);
        }
    }
    found
}

/// A mapping's first line, `55d0-55d1 r-xp 00000000 fe:00 123 /path`: None for any other line, Some(None)
/// for a mapping that is writable, shared or of no file.
fn header(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let flags = fields.next()?;
    let path = fields.nth(3);
    let ours = matches!(flags, "r-xp" | "r--p") && path.is_some_and(|path| path.starts_with('/'));
    Some(ours.then(|| (start, end.saturating_sub(start))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_mappings_of_files() {
        let smaps = "\
1000-3000 r-xp 00000000 fe:00 12 /lib/a b.so
Size:                  8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
3000-4000 r--p 00002000 fe:00 12 /lib/relro.so
Anonymous:             4 kB
4000-5000 rw-p 00003000 fe:00 12 /lib/a.so
Anonymous:             0 kB
5000-6000 r--p 00000000 00:00 0                  [vvar]
Anonymous:             0 kB
6000-7000 r--s 00000000 fe:00 12 /shared
Anonymous:             0 kB
";
        assert_eq!(clean(smaps), [(0x1000, 0x2000)]);
    }

    #[test]
    fn what_is_given_back_is_still_there() {
        trim();
        let text = format!("{:?}", std::time::Duration::from_millis(1234));
        assert_eq!(text, "1.234s");
    }
}
