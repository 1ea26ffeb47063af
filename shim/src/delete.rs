//! `delete`: containerd cleans up after a shim that has died. Called in the bundle, or with its
//! path; whatever is still there of the container goes.

use std::io::Write;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::{DeleteResponse, ShutdownRequest};
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::Request;
use kiln_runtime::state::StateRoot;
use kiln_runtime::{delete, snapshot};
use rustix::io::Errno;

use crate::error::{Context, Error};
use crate::exit::Exit;
use crate::flags::Flags;
use crate::frames::{self, Connection};
use crate::options::Options;
use crate::start;
use crate::task::SERVICES;

/// The whole action: prints how the container has ended, which nobody has seen.
///
/// # Errors
/// Something could not be removed; it can be tried again.
pub fn delete(flags: &Flags) -> Result<(), Error> {
    let bundle = match flags.bundle.as_os_str().is_empty() {
        true => std::env::current_dir().step("find the bundle")?,
        false => flags.bundle.clone(),
    };
    let root = Options::saved(&bundle).state_root(&flags.namespace);
    let mut response = DeleteResponse::new();
    let exit = Exit::now(128 + libc::SIGKILL.cast_unsigned());
    response.exit_status = exit.status;
    response.exited_at = MessageField::some(exit.at);
    if let Some(root) = StateRoot::open(&root)? {
        match root.find(&flags.id.parse()?) {
            Ok(dir) => {
                let init = dir.read().ok().flatten().and_then(|state| state.init);
                response.pid = init.map_or(0, |init| init.pid.cast_unsigned());
                delete::delete(&root, &dir, true)?;
            }
            Err(kiln_runtime::Error::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    snapshot::unmount_all(&bundle);
    if let Some(socket) = socket(&bundle) {
        dismiss(&socket, &flags.id)?;
    }
    let answer = response.write_to_bytes().unwrap_or_default();
    std::io::stdout().write_all(&answer).step("answer")
}

/// The shim's socket.
fn socket(bundle: &Path) -> Option<PathBuf> {
    let address = std::fs::read_to_string(bundle.join("address")).ok()?;
    Some(address.strip_prefix("unix://")?.into())
}

/// Removes the socket of a shim that has died. One that lives is told to end if it has no
/// container: a containerd that was killed before there was one does not come back to it.
fn dismiss(path: &Path, id: &str) -> Result<(), Error> {
    let lock = start::lock(path)?;
    let socket = match frames::connect(path) {
        Ok(socket) => socket,
        // It is stopped.
        Err(Errno::AGAIN) => return Ok(()),
        Err(_) => {
            let _ = std::fs::remove_file(path);
            return Ok(());
        }
    };
    drop(lock);
    let mut shutdown = ShutdownRequest::new();
    id.clone_into(&mut shutdown.id);
    let mut request = Request::new();
    SERVICES[0].clone_into(&mut request.service);
    "Shutdown".clone_into(&mut request.method);
    request.payload = shutdown.write_to_bytes().unwrap_or_default();
    // What it hears before we are gone counts.
    Connection::new(socket).request(1, &request);
    Ok(())
}
