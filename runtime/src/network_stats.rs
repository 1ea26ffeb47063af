//! Counters of a container's network interfaces, for `events`.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;

use crate::error::{Error, Failure, Step};
use crate::process::Process;

/// One interface, as the container sees it. The names are those of runc's JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)] // netdevice(7) and proc_pid_net(5) have them.
pub struct NetworkInterface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The interfaces in the network namespace of `init`; none if that is the runtime's own: their
/// traffic is the machine's, not the container's.
///
/// Without `lo`, whose traffic leaves nobody's container, as cAdvisor and Docker have it. runc's
/// list is always `null` for a bundle: it knows only the pairs of interfaces that it made itself,
/// and a config.json asks for none.
///
/// # Errors
/// `init` has ended, or the kernel's table is not as proc_pid_net(5) has it.
pub(crate) fn interfaces(init: &Process) -> Result<Vec<NetworkInterface>, Error> {
    let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net"));
    let step = || format!("look at the network namespace of process {}", init.pid);
    let own = namespace("self").step(step)?;
    let its = namespace(&init.pid.to_string()).step(step)?;
    if (own.dev(), own.ino()) == (its.dev(), its.ino()) {
        return Ok(Vec::new());
    }
    let path = format!("/proc/{}/net/dev", init.pid);
    // The container names its interfaces, and the kernel takes nearly every byte.
    let text = fs::read(&path).step(|| format!("read {path}"))?;
    let text = String::from_utf8_lossy(&text);
    // Not before: another process may have got the pid meanwhile.
    if !init.is_alive() {
        return Err(Error::NotRunning);
    }
    parse(&text).ok_or_else(|| Failure::because(format!("read {path}"), "unexpected text").into())
}

/// Two lines of heading; then `eth0: ` and 8 numbers for each direction.
fn parse(text: &str) -> Option<Vec<NetworkInterface>> {
    let interface = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        let numbers = numbers.split_whitespace().map(|number| number.parse().ok());
        let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
        let number = |index: usize| numbers.get(index).copied();
        Some(NetworkInterface {
            name: name.trim().to_owned(),
            rx_bytes: number(0)?,
            rx_packets: number(1)?,
            rx_errors: number(2)?,
            rx_dropped: number(3)?,
            tx_bytes: number(8)?,
            tx_packets: number(9)?,
            tx_errors: number(10)?,
            tx_dropped: number(11)?,
        })
    };
    let mut interfaces: Vec<_> = text.lines().skip(2).map(interface).collect::<Option<_>>()?;
    interfaces.retain(|interface| interface.name != "lo");
    Some(interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       9       1    0    0    0     0          0         0        9       1    0    0    0     0       0          0
  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
";

    #[test]
    fn the_table_is_read_without_lo() {
        let interfaces = parse(TEXT).unwrap();
        let json = r#"[{"Name":"eth0","RxBytes":1000,"RxPackets":10,"RxErrors":1,"RxDropped":2,"TxBytes":2000,"TxPackets":20,"TxErrors":3,"TxDropped":4}]"#;
        assert_eq!(serde_json::to_string(&interfaces).unwrap(), json);
        assert_eq!(parse(""), Some(Vec::new()));
        let odd = String::from_utf8_lossy(b"\n\n \xff\xa1: 1 2 3 4 5 6 7 8 9 10 11 12 0 0 0 0\n");
        assert_eq!(parse(&odd).unwrap()[0].tx_dropped, 12);
        for bad in ["eth0 1", "eth0: 1 2", "eth0: 1 2 3 4 5 6 7 8 9 10 11 x 0 0 0 0"] {
            assert_eq!(parse(&format!("\n\n{bad}\n")), None, "{bad}");
        }
    }
}
