//! What server and worker say to each other: a call, and how it has ended.
//!
//! A message is its length in bytes, four of them, the lowest first, and a value in postcard's
//! encoding. A call's descriptors come with its first byte (unix(7), SCM_RIGHTS).

use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::guest::Ended;

/// The longest message, in bytes.
const MAX_BYTES: usize = 256 << 20;
/// The length's own.
const PREFIX: usize = 4;

/// A request, as a worker gets it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Call {
    /// The guest's arguments from `argv[0]` on.
    pub args: Vec<CString>,
    /// Its environment, each `NAME=value`.
    pub env: Vec<CString>,
    /// Whether a descriptor to read from comes with it; else there is nothing to read.
    pub stdin: bool,
    /// Whether one for stderr comes with it, behind that; else it is the server's.
    pub stderr: bool,
}

/// A call as it is sent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sent {
    /// Which of the worker's calls it is, the lowest byte first: bytes, so that they stand at the
    /// same place in each.
    number: [u8; 4],
    /// The call.
    pub call: Call,
}

impl Sent {
    /// A message that has no number yet.
    ///
    /// # Errors
    /// The call is too long.
    pub fn encode(call: Call) -> io::Result<Vec<u8>> {
        encode(&Sent { number: [0; 4], call })
    }

    /// Gives a message its number.
    pub fn set_number(message: &mut [u8], number: u32) {
        if let Some(place) = message.get_mut(PREFIX..PREFIX + 4) {
            place.copy_from_slice(&number.to_le_bytes());
        }
    }

    /// Which of the worker's calls it is.
    pub fn number(&self) -> u32 {
        u32::from_le_bytes(self.number)
    }
}

/// What comes of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Answer {
    /// Which call it answers.
    pub number: u32,
    /// How long the worker was at it, in nanoseconds, with the making of the instance.
    pub nanoseconds: u64,
    /// How it ended.
    pub ended: Ended,
    /// The last of what the guest has written to its standard output.
    pub output: Vec<u8>,
}

/// A message as it is sent.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let encoded = postcard::to_extend(message, vec![0; PREFIX]).map_err(io::Error::other)?;
    let length = encoded.len() - PREFIX;
    if length > MAX_BYTES {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut encoded = encoded;
    encoded[..PREFIX].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(encoded)
}

/// Sends what it can of `bytes` and all of `descriptors`; returns how many bytes.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<usize> {
    let flags = SendFlags::NOSIGNAL;
    if descriptors.is_empty() {
        return rustix::net::send(socket, bytes, flags);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
}

/// Receives up to `buffer`'s length of bytes, and descriptors with them, which are closed on
/// execve(2).
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(buffer)];
    let received = recvmsg(socket, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

/// What has come of a message.
#[derive(Debug, Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    /// Where the next message begins.
    start: usize,
    /// How long a message may be, in bytes, if not as long as any.
    most: Option<usize>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

impl Incoming {
    /// Of messages that are no longer than that, in bytes.
    pub fn bounded(most: usize) -> Self {
        Incoming { most: Some(most), ..Incoming::default() }
    }

    /// Takes in what the socket has, at most `buffer`'s length. False at the end of the stream.
    pub fn fill(&mut self, socket: impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<bool> {
        let count = receive(socket, buffer, &mut self.descriptors)?;
        self.add(&buffer[..count]);
        Ok(count > 0)
    }

    /// Takes in what was read elsewhere.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.start));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, once all of it has come.
    pub fn message<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let coming = &self.bytes[self.start..];
        let Some((prefix, rest)) = coming.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > self.most.unwrap_or(MAX_BYTES) {
            return Err(io::Error::other("not a message"));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = postcard::from_bytes(message).map_err(io::Error::other)?;
        self.start += PREFIX + length;
        Ok(Some(message))
    }

    /// The call's descriptors: stdin and stderr.
    pub fn streams(&mut self, call: &Call) -> (Option<OwnedFd>, Option<OwnedFd>) {
        let mut next = |wanted: bool| {
            (wanted && !self.descriptors.is_empty()).then(|| self.descriptors.remove(0))
        };
        (next(call.stdin), next(call.stderr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_pieces() {
        let call = Call { args: vec![c"program".into(), c"a b".into()], ..Call::default() };
        let encoded = encode(&call).unwrap();
        let mut incoming = Incoming::default();
        for byte in &encoded[..encoded.len() - 1] {
            incoming.bytes.push(*byte);
            assert_eq!(incoming.message::<Call>().unwrap(), None);
        }
        incoming.bytes.push(encoded[encoded.len() - 1]);
        for status in [7, 8] {
            incoming.bytes.extend(encode(&Ended::Exit(status)).unwrap());
        }
        incoming.bytes.extend([0xff; 9]);
        assert_eq!(incoming.message::<Call>().unwrap(), Some(call));
        for status in [7, 8] {
            assert_eq!(incoming.message::<Ended>().unwrap(), Some(Ended::Exit(status)), "the next");
        }
        assert!(incoming.message::<Call>().is_err());
    }

    #[test]
    fn a_call_is_numbered_when_it_is_sent() {
        let call = Call { args: vec![c"program".into()], ..Call::default() };
        let mut message = Sent::encode(call.clone()).unwrap();
        for number in [1, u32::MAX - 1] {
            Sent::set_number(&mut message, number);
            let mut incoming = Incoming::default();
            incoming.add(&message);
            let sent: Sent = incoming.message().unwrap().unwrap();
            assert_eq!((sent.number(), sent.call), (number, call.clone()));
        }
    }

    #[test]
    fn descriptors_come_along() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let call = Call { stderr: true, ..Call::default() };
        send(&ours, &encode(&call).unwrap(), &[file.as_fd()]).unwrap();
        let mut incoming = Incoming::default();
        assert!(incoming.fill(&theirs, &mut [0; 4096]).unwrap());
        let received: Call = incoming.message().unwrap().unwrap();
        let (stdin, stderr) = incoming.streams(&received);
        assert!(stdin.is_none() && stderr.is_some());
    }
}
