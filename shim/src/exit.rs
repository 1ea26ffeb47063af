//! How and when a process has ended.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// A process's end.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Its exit status, or 128 + n for signal n.
    pub status: u32,
    /// When it was seen.
    pub at: Timestamp,
    /// The same, by a clock that nobody sets.
    pub seen: Instant,
}

impl Exit {
    /// Now, with this status.
    pub fn now(status: u32) -> Self {
        Self { status, at: now(), seen: Instant::now() }
    }
}

/// The present, as the Task API has it.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut now = Timestamp::new();
    now.seconds = since.as_secs().cast_signed();
    now.nanos = since.subsec_nanos().cast_signed();
    now
}
