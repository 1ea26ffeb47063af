//! The four requests of rtnetlink(7) that moving a network device takes.
//!
//! Written out: a library (netlink-packet-route, rtnetlink) would bring parsers for everything that
//! rtnetlink knows, and an asynchronous runtime, for two messages and two attributes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// struct nlmsghdr.
const HEADER: usize = 16;
/// struct ifaddrmsg; struct rtattr before its value.
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;

/// Attributes of an address that are the address, not its history: IFA_ADDRESS, IFA_LOCAL,
/// IFA_BROADCAST, IFA_ANYCAST, IFA_RT_PRIORITY, IFA_PROTO.
const KEPT: [u16; 6] = [1, 2, 4, 5, 9, 11];
const IFA_FLAGS: u16 = 8;
/// Those flags that a request may set: IFA_F_NODAD, IFA_F_HOMEADDRESS, IFA_F_MANAGETEMPADDR,
/// IFA_F_NOPREFIXROUTE, IFA_F_MCAUTOJOIN.
const FLAGS: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;

/// A socket that speaks of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// A permanent address with global scope, ready to be added again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix_length: u8,
    flags: u32,
    /// Type and value.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Socket {
    /// Opens one in this process's network namespace; close-on-exec.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> Result<Self, Errno> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // No protocol is NETLINK_ROUTE, which is 0.
        rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).map(Self)
    }

    /// The index of the device of this name.
    ///
    /// # Errors
    /// ENODEV if there is none.
    pub fn index(&self, name: &str) -> Result<u32, Errno> {
        name_to_index(&self.0, name)
    }

    /// Moves a device to another namespace, where it is named `name`.
    ///
    /// # Errors
    /// EEXIST if the name is taken there; EINVAL for a device that cannot be moved.
    pub fn move_to(&self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let mut link = link(index, 0, 0);
        attribute(&mut link, libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        attribute(&mut link, libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        self.acknowledged(libc::RTM_NEWLINK, 0, &link)
    }

    /// Sets a device up or down.
    ///
    /// # Errors
    /// Those of the device's driver.
    pub fn set_up(&self, index: u32, up: bool) -> Result<(), Errno> {
        let flag = libc::IFF_UP as u32;
        self.acknowledged(libc::RTM_NEWLINK, 0, &link(index, if up { flag } else { 0 }, flag))
    }

    /// The permanent addresses of a device with global scope.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>, Errno> {
        let mut addresses = Vec::new();
        self.send(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; ADDRESS])?;
        self.receive(|kind, payload| {
            if kind == libc::RTM_NEWADDR {
                addresses.extend(Address::parse(payload, index));
            }
        })?;
        Ok(addresses)
    }

    /// Adds an address to a device.
    ///
    /// # Errors
    /// EEXIST if the device has it.
    pub fn add(&self, index: u32, address: &Address) -> Result<(), Errno> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.acknowledged(libc::RTM_NEWADDR, flags, &address.request(index))
    }

    fn acknowledged(&self, kind: u16, flags: i32, payload: &[u8]) -> Result<(), Errno> {
        self.send(kind, flags | libc::NLM_F_ACK, payload)?;
        self.receive(|_, _| {})
    }

    fn send(&self, kind: u16, flags: i32, payload: &[u8]) -> Result<(), Errno> {
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        message.extend([0; 8]); // sequence number and port: one request at a time
        message.extend(payload);
        rustix::net::send(&self.0, &message, SendFlags::empty()).map(drop)
    }

    /// Reads messages until the answer is complete.
    fn receive(&self, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        let mut buffer = [0; 32 << 10];
        loop {
            let (_, length) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, payload)) = message(&mut rest) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let code =
                            payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0 => Ok(()),
                            code => Err(Errno::from_raw_os_error(-code)),
                        };
                    }
                    _ => each(kind, payload),
                }
            }
        }
    }
}

impl Address {
    /// None for another device's, and for what the kernel gives by itself.
    fn parse(payload: &[u8], index: u32) -> Option<Self> {
        const IFA_F_PERMANENT: u32 = 0x80;
        let (head, mut rest) = payload.split_first_chunk::<ADDRESS>()?;
        let [family, prefix_length, flags, scope, i0, i1, i2, i3] = *head;
        let mut address =
            Self { family, prefix_length, flags: flags.into(), attributes: Vec::new() };
        while let Some((kind, value)) = next_attribute(&mut rest) {
            if kind == IFA_FLAGS {
                address.flags = u32::from_ne_bytes(*value.first_chunk()?);
            } else if KEPT.contains(&kind) {
                address.attributes.push((kind, value.to_vec()));
            }
        }
        let ours =
            u32::from_ne_bytes([i0, i1, i2, i3]) == index && scope == libc::RT_SCOPE_UNIVERSE;
        let permanent = address.flags & IFA_F_PERMANENT != 0;
        address.flags &= FLAGS;
        (ours && permanent).then_some(address)
    }

    fn request(&self, index: u32) -> Vec<u8> {
        let mut request = vec![self.family, self.prefix_length, 0, libc::RT_SCOPE_UNIVERSE];
        request.extend(index.to_ne_bytes());
        for (kind, value) in &self.attributes {
            attribute(&mut request, *kind, value);
        }
        attribute(&mut request, IFA_FLAGS, &self.flags.to_ne_bytes());
        request
    }
}

/// struct ifinfomsg.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut link = vec![0; 4];
    link.extend(index.to_ne_bytes());
    link.extend(flags.to_ne_bytes());
    link.extend(change.to_ne_bytes());
    link
}

/// Appends an attribute, padded to four bytes.
fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The next message of a packet: its type and what follows the header.
fn message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let head = rest.first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let kind = u16::from_ne_bytes([head[4], head[5]]);
    let payload = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload))
}

/// The next attribute, without the flags in the two high bits of its type.
fn next_attribute<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let [l0, l1, t0, t1] = *rest.first_chunk::<ATTRIBUTE>()?;
    let length = usize::from(u16::from_ne_bytes([l0, l1]));
    let value = rest.get(ATTRIBUTE..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([t0, t1]) & 0x3fff, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let mut payload = vec![2, 24, 0x80, 0];
        payload.extend(7_u32.to_ne_bytes());
        attribute(&mut payload, 1, &[10, 0, 0, 1]);
        attribute(&mut payload, 3, b"eth0\0"); // IFA_LABEL: its old name
        attribute(&mut payload, IFA_FLAGS, &0x280_u32.to_ne_bytes());
        let address = Address::parse(&payload, 7).unwrap();
        assert_eq!((address.prefix_length, address.flags), (24, 0x200));
        assert_eq!(address.attributes, [(1, vec![10, 0, 0, 1])]);
        assert_eq!(Address::parse(&payload, 8), None, "another device's");
        let request = address.request(9);
        assert_eq!(request[..8], [[2, 24, 0, 0], 9_u32.to_ne_bytes()].concat());
        payload[3] = 253; // RT_SCOPE_LINK
        assert_eq!(Address::parse(&payload, 7), None);
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        let mut rest: &[u8] = &[32, 0, 0, 0, 2, 0];
        assert!(message(&mut rest).is_none());
        for bytes in [&[0, 0, 1, 0][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1], &[]] {
            assert!(next_attribute(&mut &*bytes).is_none(), "{bytes:?}");
        }
        assert_eq!(Address::parse(&[2, 24], 0), None);
    }

    #[test]
    fn the_kernel_answers() {
        let socket = Socket::open().unwrap();
        let lo = socket.index("lo").unwrap();
        // Those of lo have the scope of the host.
        assert_eq!(socket.addresses(lo).unwrap(), []);
        assert_eq!(socket.index("no-such-device").unwrap_err(), Errno::NODEV);
        assert_eq!(socket.set_up(u32::MAX >> 1, true).unwrap_err(), Errno::NODEV);
    }
}
