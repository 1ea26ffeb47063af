//! The server's side of what connects it with a worker.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::board::is_later;
use crate::call::{Answer, Incoming};
use crate::guest::Ended;
use crate::sys;

/// How much is read at once, in bytes: a pipe's capacity.
const CHUNK: usize = 64 << 10;

/// What a worker says, and what its guest writes.
#[derive(Debug)]
pub struct Link {
    answers: AsyncFd<OwnedFd>,
    output: OwnedFd,
    /// That again, while a call is at work that is not a short one: most are, and what they write
    /// fits into the pipe, so that to watch it would wake the server twice for each of them.
    watched: Option<Watched>,
    incoming: Incoming,
    /// Of this call; said after the last of its output.
    ended: Option<(u32, Ended, Duration)>,
    buffer: Box<[u8]>,
}

/// How long an answer may be, in bytes: what fits into a pipe, and how it ended.
const ANSWER: usize = 1 << 20;
/// How long a call may take before its output is looked for.
const SHORT: Duration = Duration::from_millis(1);

/// What a worker says.
#[derive(Debug)]
pub enum Said {
    /// The guest's, to its standard output.
    Output(Bytes),
    /// After all of that; and how long it was at it.
    Ended(Ended, Duration),
    /// Nothing yet: it is no short call.
    Slow,
    /// It has died.
    Gone,
}

impl Link {
    /// Of the server's ends, which do not block.
    ///
    /// # Errors
    /// They cannot be watched.
    pub fn new(answers: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        Ok(Link {
            answers: sys::watch(answers, Interest::READABLE)?,
            output,
            watched: None,
            incoming: Incoming::bounded(ANSWER),
            ended: None,
            buffer: vec![0; CHUNK].into(),
        })
    }

    /// What the worker says next of this call; what it has said of earlier ones nobody waits for.
    /// [`Said::Slow`] until [`Link::watch`] is called.
    ///
    /// # Errors
    /// What it says is not understood.
    pub async fn next(&mut self, number: u32) -> io::Result<Said> {
        // Nobody may have waited for that of an earlier one.
        if let Some((_, ended, spent)) = self.ended.take_if(|(ended, ..)| *ended == number) {
            return Ok(Said::Ended(ended, spent));
        }
        let answer = match &self.watched {
            Some(watched) => {
                let mut chunk = vec![0; CHUNK];
                tokio::select! {
                    biased;
                    answer = hear(&self.answers, &mut self.incoming, &mut self.buffer, number) => answer?,
                    count = watched.read(&mut chunk) => {
                        chunk.truncate(count?);
                        return Ok(Said::Output(chunk.into()));
                    }
                }
            }
            None => {
                let heard = hear(&self.answers, &mut self.incoming, &mut self.buffer, number);
                match timeout(SHORT, heard).await {
                    Ok(answer) => answer?,
                    Err(_) => return Ok(Said::Slow),
                }
            }
        };
        let Some(Answer { ended, output, nanoseconds, .. }) = answer else { return Ok(Said::Gone) };
        let spent = Duration::from_nanos(nanoseconds);
        self.watched = None;
        if output.is_empty() {
            return Ok(Said::Ended(ended, spent));
        }
        self.ended = Some((number, ended, spent));
        Ok(Said::Output(output.into()))
    }

    /// Whether this call has ended, and only nobody has asked yet.
    pub fn has_ended(&self, number: u32) -> bool {
        self.ended.as_ref().is_some_and(|(ended, ..)| *ended == number)
    }

    /// From now on the call's output comes when the guest writes it.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn watch(&mut self) -> io::Result<()> {
        self.watched = Some(Watched::new(self.output.try_clone()?)?);
        Ok(())
    }
}

async fn hear(
    answers: &AsyncFd<OwnedFd>,
    incoming: &mut Incoming,
    buffer: &mut [u8],
    number: u32,
) -> io::Result<Option<Answer>> {
    loop {
        while let Some(answer) = incoming.message::<Answer>()? {
            if answer.number == number {
                return Ok(Some(answer));
            }
            if is_later(answer.number, number) {
                return Err(io::Error::other("the answer to a later call"));
            }
        }
        let mut ready = answers.readable().await?;
        match rustix::io::read(answers, &mut *buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                incoming.add(&buffer[..count]);
                // The pipe is empty: to ask it once more would be in vain.
                if count < buffer.len() {
                    ready.clear_ready();
                }
            }
            Err(Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The guest's output, while it is looked for.
#[derive(Debug)]
struct Watched {
    output: AsyncFd<OwnedFd>,
    /// A pipe of the server's own. Whether a read of the guest's may block is the worker's to choose as
    /// well, which has the same end of it; whether splice(2) may is not.
    relay: (OwnedFd, OwnedFd),
}

impl Watched {
    fn new(output: OwnedFd) -> io::Result<Self> {
        let relay = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Watched { output: sys::watch(output, Interest::READABLE)?, relay })
    }

    /// Waits for some of it.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (reader, writer) = &self.relay;
        loop {
            let mut ready = self.output.readable().await?;
            let flags = SpliceFlags::NONBLOCK;
            match splice(&self.output, None, writer, None, buffer.len(), flags) {
                // Its other end is the worker's; that it has gone is heard from the other pipe.
                Ok(0) => std::future::pending().await,
                Ok(_) => {
                    return Ok(rustix::io::retry_on_intr(|| {
                        rustix::io::read(reader, &mut *buffer)
                    })?);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
