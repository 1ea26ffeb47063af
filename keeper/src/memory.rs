//! How much memory this process has: proc_pid_statm(5). None where there is no /proc.

/// What is resident, in bytes.
pub fn resident() -> Option<u64> {
    statm(1)
}

/// What is writable, in bytes, as RLIMIT_DATA counts it.
pub fn writable() -> Option<u64> {
    statm(5)
}

fn statm(field: usize) -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(field)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some() {
        assert!(resident().unwrap() > 1 << 16);
        assert!(writable().unwrap() > 1 << 16);
    }
}
