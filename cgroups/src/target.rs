//! Where a controller's files are, and writing a limit there so that a failure
//! names the field, the file, the value and the cause.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::cgroup::{Cgroup, Member};
use crate::dir;
use crate::error::{Error, Hint};
use crate::subtree;

/// The container's cgroup in the hierarchy that has a given controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    member: &'a Member,
    controller: &'a str,
}

impl Cgroup {
    /// Finds the controller: the v1 hierarchy that has it, else the unified
    /// one. `field` is for whom.
    pub(crate) fn target<'a>(
        &'a self,
        controller: &'a str,
        field: &str,
    ) -> Result<Target<'a>, Error> {
        self.target_if_any(controller).ok_or_else(|| Error::NoController {
            field: field.to_owned(),
            controller: controller.to_owned(),
            hint: Hint::new("see /proc/cgroups and cgroup.controllers for what there is"),
        })
    }

    pub(crate) fn target_if_any<'a>(&'a self, controller: &'a str) -> Option<Target<'a>> {
        let v2 = || self.unified().filter(|member| member.hierarchy.has(controller));
        self.v1(controller).or_else(v2).map(|member| Target { member, controller })
    }

    /// The unified hierarchy, for the files that every v2 cgroup has.
    pub(crate) fn core_target(&self) -> Option<Target<'_>> {
        self.unified().map(|member| Target { member, controller: "cgroup" })
    }
}

impl Target<'_> {
    pub fn is_v2(&self) -> bool {
        self.member.hierarchy.is_v2()
    }

    /// Writes one limit.
    pub fn write(&self, field: &str, file: &str, value: &str) -> Result<(), Error> {
        let opened = self.open(field, file, value)?;
        self.write_to(&opened, field, file, value)
    }

    /// Opens a file for several writes.
    ///
    /// A v2 file that is missing is mostly one whose controller no ancestor
    /// has enabled yet, so that is tried before giving up.
    pub fn open(&self, field: &str, file: &str, value: &str) -> Result<OwnedFd, Error> {
        match dir::open_for_writing(&self.member.dir, file) {
            Ok(opened) => return Ok(opened),
            Err(Errno::NOENT) if self.is_v2() => {}
            Err(errno) => return Err(self.error(field, file, value, errno)),
        }
        let hint = subtree::enable(&self.member.hierarchy, Some(self.controller));
        match dir::open_for_writing(&self.member.dir, file) {
            Ok(opened) => Ok(opened),
            Err(Errno::NOENT) if hint != Hint::none() => Err(Error::NoController {
                field: field.to_owned(),
                controller: self.controller.to_owned(),
                hint,
            }),
            Err(errno) => Err(self.error(field, file, value, errno)),
        }
    }

    /// One request to a file from [`Target::open`].
    pub fn write_to(
        &self,
        opened: impl AsFd,
        field: &str,
        file: &str,
        value: &str,
    ) -> Result<(), Error> {
        let written = dir::write_all(opened, value.as_bytes());
        written.map_err(|errno| self.error(field, file, value, errno))
    }

    /// The text of a file, without the newline at its end.
    pub fn read(&self, file: &str) -> Result<String, Error> {
        match dir::read_file(&self.member.dir, file) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            Err(errno) => Err(Error::Read { path: self.path(file), errno }),
        }
    }

    /// The path of a file, for messages.
    pub fn path(&self, file: &str) -> PathBuf {
        self.member.path().join(file)
    }

    /// Opens a file for reading what is there and writing after that; none if that is impossible.
    pub fn open_both(&self, file: &str) -> Option<OwnedFd> {
        self.open_as(file, OFlags::RDWR).ok()
    }

    /// Opens a file as it is asked for.
    pub fn open_as(&self, file: &str, access: OFlags) -> Result<OwnedFd, Errno> {
        dir::open_file(&self.member.dir, file, access)
    }

    /// Whether both are the same cgroup.
    pub fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.member, other.member)
    }

    pub fn error(&self, field: &str, file: &str, value: &str, errno: Errno) -> Error {
        let hint = match (file, errno) {
            ("memory.memsw.limit_in_bytes" | "memory.swap.max", Errno::NOENT) => {
                Hint::new("this kernel does not count swap, boot with swapaccount=1")
            }
            (_, Errno::NOENT) => Hint::new("this kernel does not have that file"),
            // It is in use and cannot be reclaimed.
            ("memory.limit_in_bytes", Errno::BUSY) => match self.read("memory.usage_in_bytes") {
                Ok(usage) => Hint::new(format!("{usage} bytes are in use")),
                Err(_) => Hint::none(),
            },
            ("memory.limit_in_bytes", Errno::INVAL) => {
                match self.read("memory.memsw.limit_in_bytes") {
                    Ok(both) => {
                        Hint::new(format!("memory and swap together are limited to {both}"))
                    }
                    Err(_) => Hint::none(),
                }
            }
            _ => Hint::none(),
        };
        Error::Write {
            field: field.to_owned(),
            path: self.path(file),
            value: value.to_owned(),
            errno,
            hint,
        }
    }
}

/// Whether an error is the kernel's refusal with this errno.
pub(crate) fn refused_with(error: &Error, refusal: Errno) -> bool {
    matches!(error, Error::Write { errno, .. } if *errno == refusal)
}
