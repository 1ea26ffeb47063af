//! What a function writes: through a pipe into a file of limited size.
//!
//! A pipe, because a file that the container had open could grow between two looks at it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{Notify, watch};

/// When the file is moved aside, to be the only older one.
const MOST: u64 = 1 << 20;
/// How much of the end is kept to tell why a container has ended.
const TAIL: usize = 4096;
/// Read at once.
const CHUNK: usize = 16 << 10;
/// How long what a container has written before its end may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A function's log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: RefCell<Option<File>>,
    size: Cell<u64>,
    /// Files that have been moved aside: who follows the log begins again then.
    turns: Cell<u64>,
    changed: Notify,
}

/// One container's part of it.
#[derive(Clone, Debug)]
pub struct Voice {
    tail: Rc<RefCell<VecDeque<u8>>>,
    ended: watch::Receiver<bool>,
}

impl Log {
    /// Opens the file, to add to it.
    pub fn open(path: PathBuf) -> Rc<Self> {
        let log = Self {
            path,
            file: RefCell::new(None),
            size: Cell::new(0),
            turns: Cell::new(0),
            changed: Notify::new(),
        };
        log.reopen();
        Rc::new(log)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds what came before.
    pub fn older(&self) -> PathBuf {
        self.path.with_extension("log.1")
    }

    /// How often the file has begun anew.
    pub fn turns(&self) -> u64 {
        self.turns.get()
    }

    /// Returns once something has been added.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A line of the gateway's own.
    pub fn note(&self, text: &str) {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        self.add(format!("[{time} kiln-gateway] {}\n", escaped(text)).as_bytes());
    }

    /// Makes a pipe for a container to write to, and reads it to its end. The writing end is
    /// blocking and is the caller's.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn attach(self: &Rc<Self>) -> io::Result<(OwnedFd, Voice)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        let mut read = Receiver::from_owned_fd(read)?;
        let (end, ended) = watch::channel(false);
        let tail = Rc::new(RefCell::new(VecDeque::new()));
        let voice = Voice { tail: Rc::clone(&tail), ended };
        let log = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; CHUNK];
            loop {
                match read.read(&mut buffer).await {
                    Ok(length) if length > 0 => {
                        let bytes = &buffer[..length];
                        keep_tail(&mut tail.borrow_mut(), bytes);
                        log.add(bytes);
                        // A container that never stops writing leaves room for others.
                        tokio::task::yield_now().await;
                    }
                    _ => break,
                }
            }
            let _ = end.send(true);
        });
        Ok((write, voice))
    }

    fn add(&self, bytes: &[u8]) {
        if self.size.get() > MOST {
            let _ = std::fs::rename(&self.path, self.older());
            self.turns.set(self.turns.get() + 1);
            self.reopen();
        }
        if let Some(file) = &mut *self.file.borrow_mut() {
            match file.write_all(bytes) {
                Ok(()) => self.size.set(self.size.get() + bytes.len() as u64),
                Err(error) => log::debug!("write to {}: {error}", self.path.display()),
            }
        }
        self.changed.notify_waiters();
    }

    fn reopen(&self) {
        let opened = File::options().append(true).create(true).mode(0o600).open(&self.path);
        let file = match opened {
            Ok(file) => Some(file),
            Err(error) => {
                log::warn!("open {}: {error}", self.path.display());
                None
            }
        };
        let size = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        self.size.set(size);
        *self.file.borrow_mut() = file;
    }
}

impl Voice {
    /// The last lines that the container has written, which has ended.
    pub async fn last_lines(&self) -> String {
        let mut ended = self.ended.clone();
        let _ = tokio::time::timeout(LAST_WORDS, ended.wait_for(|ended| *ended)).await;
        let tail: Vec<u8> = self.tail.borrow().iter().copied().collect();
        last_lines(&tail)
    }
}

fn keep_tail(tail: &mut VecDeque<u8>, bytes: &[u8]) {
    let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
    let over = (tail.len() + bytes.len()).saturating_sub(TAIL);
    tail.drain(..over);
    tail.extend(bytes);
}

/// At most three lines of the end, as one.
fn last_lines(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let lines = lines.split_off(lines.len().saturating_sub(3));
    let text: String = lines.join("; ");
    let from = text.char_indices().rev().nth(511).map_or(0, |(at, _)| at);
    escaped(&text[from..])
}

/// Without control characters, which a terminal or a header would act on.
pub fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_made_harmless() {
        let mut tail = VecDeque::new();
        for _ in 0..1000 {
            keep_tail(&mut tail, b"0123456789\n");
        }
        assert_eq!(tail.len(), TAIL);
        keep_tail(&mut tail, b"one\n\ntwo\x1b[31m\r\nthree\n\xff\n");
        let tail: Vec<u8> = tail.into_iter().collect();
        assert_eq!(last_lines(&tail), "two\\u{1b}[31m; three; \u{fffd}");
        assert_eq!(last_lines(b""), "");
        assert!(last_lines(&[b'x'; TAIL]).len() <= 512);
    }

    #[test]
    fn a_file_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("a.log"));
        for _ in 0..300 {
            log.add(&[b'x'; 16 << 10]);
        }
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(log.path()) <= MOST + (16 << 10) && size(&log.older()) <= MOST + (16 << 10));
        assert!(log.turns() > 0);
    }
}
