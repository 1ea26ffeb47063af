//! `kiln checkpoint`, and the options that it shares with `kiln restore`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use kiln_runtime::checkpoint::{CgroupsMode, Checkpoint as Options, Shared, checkpoint};
use kiln_runtime::error::errno_text;
use kiln_runtime::sys;

use crate::global::Global;

// What both take. Not a doc comment: clap would make it the about of both.
#[derive(Args, Debug)]
pub struct Criu {
    /// Directory of CRIU's image files [default: ./checkpoint]
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    /// Directory for CRIU's log and other files [default: that of the images]
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow Unix sockets with a peer outside of the container
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow a session or terminal that is shared with the caller
    #[arg(long)]
    shell_job: bool,
    /// Allow file locks
    #[arg(long)]
    file_locks: bool,
    /// How cgroups are handled: soft, full, strict or ignore [default: soft]
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    manage_cgroups_mode: String,
    /// Make this namespace without its properties: only network, for which it is always done
    #[arg(long, value_name = "NAMESPACE")]
    empty_ns: Vec<String>,
    /// Store equal pages once; at restore, take pages out of the image as they are used
    #[arg(long)]
    auto_dedup: bool,
    /// Restore pages as they are needed, by userfaultfd
    #[arg(long)]
    lazy_pages: bool,
}

impl Criu {
    /// Checked, for the runtime.
    pub fn shared(&self) -> Result<Shared> {
        if let Some(other) = self.empty_ns.iter().find(|name| *name != "network") {
            bail!("--empty-ns: namespace {other:?} is not supported, network is");
        }
        let absolute =
            |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        Ok(Shared {
            image_path: absolute(self.image_path.as_deref().unwrap_or(Path::new("checkpoint")))?,
            work_path: self.work_path.as_deref().map(absolute).transpose()?,
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            cgroups_mode: cgroups_mode(&self.manage_cgroups_mode)?,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
        })
    }
}

fn cgroups_mode(mode: &str) -> Result<CgroupsMode> {
    match mode {
        "" => Ok(CgroupsMode::Default),
        "ignore" => Ok(CgroupsMode::Ignore),
        "soft" => Ok(CgroupsMode::Soft),
        "full" => Ok(CgroupsMode::Full),
        "strict" => Ok(CgroupsMode::Strict),
        other => bail!("--manage-cgroups-mode: {other:?} is not soft, full, strict or ignore"),
    }
}

#[derive(Args, Debug)]
pub struct Checkpoint {
    #[command(flatten)]
    criu: Criu,
    /// Images of an earlier --pre-dump, relative to --image-path
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Let the container go on
    #[arg(long)]
    leave_running: bool,
    /// Leave out TCP connections that are being made
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Give deleted files that are open a name again
    #[arg(long)]
    link_remap: bool,
    /// Descriptor that gets a NUL byte once lazy pages are served
    #[arg(long, value_name = "FD", default_value_t = -1, allow_negative_numbers = true)]
    #[arg(hide_default_value = true)]
    status_fd: i32,
    /// Page server that memory is sent to
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    /// Write only memory, and let the container go on: the rest later, with --parent-path
    #[arg(long)]
    pre_dump: bool,
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl Checkpoint {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        // Before anything is opened: the number is the caller's.
        let status_fd = match self.status_fd {
            -1 => None,
            number => Some(sys::inherited_for_writing(number).map_err(|errno| {
                let reason = errno_text(errno.raw_os_error());
                anyhow::anyhow!("--status-fd {number}: not open for writing: {reason}")
            })?),
        };
        let (root, container) = global.find(&self.id)?;
        let options = Options {
            shared: self.criu.shared()?,
            parent_path: self.parent_path,
            leave_running: self.leave_running,
            pre_dump: self.pre_dump,
            tcp_skip_in_flight: self.tcp_skip_in_flight,
            link_remap: self.link_remap,
            page_server: self.page_server.as_deref().map(address).transpose()?,
            status_fd,
        };
        checkpoint(&root, &container, options)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// `ADDRESS:PORT`; an IPv6 address is in brackets.
fn address(text: &str) -> Result<(String, u16)> {
    let wrong = || format!("--page-server: {text:?} is not ADDRESS:PORT");
    let (address, port) = text.rsplit_once(':').with_context(wrong)?;
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    let address = bare.unwrap_or(address);
    let port = port.parse().with_context(wrong)?;
    if address.is_empty() || (bare.is_none() && address.contains(':')) {
        bail!(wrong());
    }
    Ok((address.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_servers() {
        assert_eq!(address("10.0.0.1:99").unwrap(), ("10.0.0.1".to_owned(), 99));
        assert_eq!(address("[::1]:8").unwrap().0, "::1");
        for bad in ["", "host", ":1", "host:", "host:x", "host:70000", "::1:8"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(cgroups_mode("").unwrap(), CgroupsMode::Default);
        assert!(cgroups_mode("none").unwrap_err().to_string().contains("soft, full"));
    }
}
