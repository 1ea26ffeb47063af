//! Everything that this crate refuses or fails at.

use std::io;
use std::path::PathBuf;

use kiln_wasm::BadModule;

/// Why an image could not be packed, or a module not be found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image cannot be called so.
    #[error("image name {name:?}: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A module's file could not be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not a module that can be run.
    #[error("module {}: {why}", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadModule,
    },
    /// A file is a module as text.
    #[error("module {}: in the text format; an image has the binary one (hint: wat2wasm makes it)", path.display())]
    Text {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be called in an image as it is called.
    #[error("module {}: its file name is not one that an image can have", path.display())]
    FileName {
        /// The file.
        path: PathBuf,
    },
    /// An image cannot be set up so.
    #[error("{what} {value:?}: {why}")]
    Setting {
        /// What is set.
        what: &'static str,
        /// To what.
        value: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// An archive could not be made.
    #[error("make the archive: {0}")]
    Archive(#[source] io::Error),
    /// An archive could not be written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// containerd's socket could not be connected to.
    #[cfg(feature = "containerd")]
    #[error("connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came is not HTTP/2.
    #[cfg(feature = "containerd")]
    #[error("containerd: {call}: {source}")]
    Connection {
        /// What was asked, such as `Images/Get`.
        call: &'static str,
        /// Why.
        source: h2::Error,
    },
    /// The deadline has passed.
    #[cfg(feature = "containerd")]
    #[error("containerd: {call}: no answer in time")]
    Deadline {
        /// What was asked.
        call: &'static str,
    },
    /// What came is not gRPC as it is understood here.
    #[cfg(feature = "containerd")]
    #[error("containerd: {call}: {what}")]
    Protocol {
        /// What was asked.
        call: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// containerd refuses.
    #[cfg(feature = "containerd")]
    #[error("containerd: {call}: {message} (gRPC status {status})")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// The status' number, see grpc.io/docs/guides/status-codes.
        status: u32,
        /// What it says.
        message: String,
    },
    /// A manifest or index is malformed.
    #[cfg(feature = "containerd")]
    #[error("image {image:?}: {what} {digest}: {why}")]
    Document {
        /// The image's name.
        image: String,
        /// What it is.
        what: &'static str,
        /// Its digest.
        digest: String,
        /// What is wrong with it.
        why: String,
    },
    /// Of an artifact in an index there is only what containerd unpacks: up to 1.7, it pulls one
    /// manifest of an index.
    #[cfg(feature = "containerd")]
    #[error(
        "image {image:?}: its artifact {digest} was not pulled (hint: push it packed with --no-index)"
    )]
    NotPulled {
        /// The image's name.
        image: String,
        /// The artifact's digest.
        digest: String,
    },
    /// A blob is not what its digest says, or not as large as it should be.
    #[cfg(feature = "containerd")]
    #[error("image {image:?}: blob {digest}: {why}")]
    Blob {
        /// The image's name.
        image: String,
        /// The digest.
        digest: String,
        /// What is wrong.
        why: String,
    },
    /// The module could not be put into memory.
    #[cfg(feature = "containerd")]
    #[error("memory file: {call}: {errno}")]
    Memory {
        /// What failed.
        call: &'static str,
        /// Why.
        errno: rustix::io::Errno,
    },
}
