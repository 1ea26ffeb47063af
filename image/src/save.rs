//! Writing a file that is there whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;

/// Has `write` fill the file at `path`, which replaces one that is there. A file without a name
/// until it is whole, where the file system can do that (`O_TMPFILE`): nothing is left behind even
/// of a process that is killed. A device or a pipe is written to as it is.
///
/// # Errors
/// Those of the system calls and of `write`.
pub(crate) fn save(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        let file = File::options().write(true).open(path)?;
        return filled(&file, write);
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let temporary = Temporary(parent.join(format!(".{}.kiln-tmp", std::process::id())));
    let mode = Mode::from(0o666);
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(CWD, parent, flags | OFlags::TMPFILE, mode) {
        Ok(file) => {
            let file = File::from(file);
            filled(&file, write)?;
            let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            linkat(CWD, own, CWD, &temporary.0, AtFlags::SYMLINK_FOLLOW)?;
        }
        // Older kernels take the flag for O_DIRECTORY.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let flags = flags | OFlags::CREATE | OFlags::EXCL;
            filled(&openat(CWD, &temporary.0, flags, mode)?.into(), write)?;
        }
        Err(errno) => return Err(errno.into()),
    }
    fs::rename(&temporary.0, path)
}

fn filled(
    file: &File,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, file);
    write(&mut out)?;
    out.into_inner().map(drop).map_err(io::IntoInnerError::into_error)
}

/// Removed when dropped, unless it has been renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
