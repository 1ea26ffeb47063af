//! Block I/O: whichever of the schedulers' files there are on v1, `io.stat` on v2.

use serde::Serialize;

use super::is_zero;
use super::pressure::{self, Pressure};
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::target::Target;

/// Block I/O by device and kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Requests that wait; as all that follow only on v1, from CFQ and BFQ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_queue_recursive: Vec<BlkioEntry>,
    /// Nanoseconds from dispatch to completion.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlkioEntry>,
    /// Nanoseconds in queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    /// Requests that became part of others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlkioEntry>,
    /// Milliseconds of disk time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlkioEntry>,
    /// Sectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlkioEntry>,
    /// v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One number of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    /// The device's major number.
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    /// Its minor number.
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`; empty where there is one sum only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// The number.
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Blkio, Error> {
    if let Some(target) = cgroup.target_if_any("blkio") {
        return read_v1(target);
    }
    match cgroup.target_if_any("io") {
        Some(target) => read_v2(target),
        None => Ok(Blkio::default()),
    }
}

/// The first family whose first file says something: BFQ with all its statistics, BFQ, CFQ (until
/// Linux 5.0), the throttling layer, which counts for every scheduler.
fn read_v1(target: Target<'_>) -> Result<Blkio, Error> {
    for (prefix, suffix) in [
        ("blkio.bfq.", "_recursive"),
        ("blkio.", "_recursive"),
        ("blkio.throttle.", "_recursive"),
        ("blkio.throttle.", ""),
    ] {
        let entries = |name: &str| entries_v1(target, &format!("{prefix}{name}{suffix}"));
        let serviced = entries("io_serviced")?;
        if serviced.is_empty() {
            continue;
        }
        return Ok(Blkio {
            io_service_bytes_recursive: entries("io_service_bytes")?,
            io_serviced_recursive: serviced,
            io_queue_recursive: entries("io_queued")?,
            io_service_time_recursive: entries("io_service_time")?,
            io_wait_time_recursive: entries("io_wait_time")?,
            io_merged_recursive: entries("io_merged")?,
            io_time_recursive: entries("time")?,
            sectors_recursive: entries("sectors")?,
            psi: None,
        });
    }
    Ok(Blkio::default())
}

/// `8:0 Read 4096` or `8:0 4096`; the sum over all devices at the end is left out.
fn entries_v1(target: Target<'_>, file: &str) -> Result<Vec<BlkioEntry>, Error> {
    let Some(text) = target.text(file)? else { return Ok(Vec::new()) };
    let mut entries = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (device, op, value) = match words[..] {
            ["Total", _] => continue,
            [device, value] => (device, "", value),
            [device, op, value] => (device, op, value),
            _ => return Err(text.malformed(line)),
        };
        let ((major, minor), value) = (text.device(device)?, text.parse(value)?);
        entries.push(BlkioEntry { major, minor, op: op.to_owned(), value });
    }
    Ok(entries)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn read_v2(target: Target<'_>) -> Result<Blkio, Error> {
    let psi = pressure::read(target, "io.pressure")?;
    let mut blkio = Blkio { psi, ..Blkio::default() };
    let Some(text) = target.text("io.stat")? else { return Ok(blkio) };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (major, minor) = text.device(words.next().unwrap_or_default())?;
        for word in words {
            // A controller may add words of another form.
            let Some((key, value)) = word.split_once('=') else { continue };
            let (to, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            to.push(BlkioEntry { major, minor, op: op.to_owned(), value: text.parse(value)? });
        }
    }
    Ok(blkio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn v1_takes_the_first_family_that_counts() {
        let fake = Fake::new(false, &["blkio"], &[]);
        fake.write("blkio.bfq.io_serviced_recursive", "Total 0\n");
        fake.write("blkio.throttle.io_serviced_recursive", "8:0 Read 3\n8:0 Total 3\nTotal 3\n");
        fake.write("blkio.throttle.io_service_bytes_recursive", "8:0 Read 4096\nTotal 4096\n");
        fake.write("blkio.throttle.sectors_recursive", "8:0 8\n");
        let json = r#"{"ioServiceBytesRecursive":[{"major":8,"op":"Read","value":4096}],"ioServicedRecursive":[{"major":8,"op":"Read","value":3},{"major":8,"op":"Total","value":3}],"sectorsRecursive":[{"major":8,"value":8}]}"#;
        assert_eq!(serde_json::to_string(&read(&fake.cgroup).unwrap()).unwrap(), json);
        for bad in ["8:0", "8 Read 1", "8:x Read 1", "8:0 Read x", "8:0 Read 1 2", "8:0 Read -1"] {
            fake.write("blkio.throttle.io_serviced_recursive", bad);
            assert!(read(&fake.cgroup).is_err(), "{bad}");
        }
    }

    #[test]
    fn v2() {
        let fake = Fake::new(true, &["io"], &[]);
        assert_eq!(read(&fake.cgroup).unwrap(), Blkio::default());
        fake.write(
            "io.stat",
            "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n8:0 \n",
        );
        let blkio = read(&fake.cgroup).unwrap();
        let entry = |op: &str, value| BlkioEntry { major: 8, minor: 16, op: op.into(), value };
        assert_eq!(blkio.io_service_bytes_recursive, [entry("Read", 1), entry("Write", 2)]);
        assert_eq!(blkio.io_serviced_recursive, [entry("Read", 3), entry("Write", 4)]);
        for bad in ["8 rbytes=1", "8:0 rbytes=x", "8:0 rbytes=99999999999999999999"] {
            fake.write("io.stat", bad);
            assert!(read(&fake.cgroup).is_err(), "{bad}");
        }
    }
}
