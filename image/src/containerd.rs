//! The module of a container whose image is a wasm artifact, from containerd's content store.
//!
//! For the shim: what it calls blocks, starts no thread, and gives up at a deadline. Asynchronous
//! code must not call it: it has a runtime of its own.
//! What containerd says is believed; what the image says is not: digests are checked for their
//! form and against the bytes, sizes and counts are bounded.

pub(crate) mod choose;
pub(crate) mod grpc;
pub(crate) mod messages;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_wasm::header::MAX_BYTES;
use kiln_wasm::key::Digest;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use self::choose::{Documents, choose};
use self::grpc::{Channel, Method, NOT_FOUND};
use self::messages::{Get, GetContainerResponse, GetImageResponse, ReadContentResponse};
use crate::Error;
use crate::document::Descriptor;

const CONTAINERS_GET: Method =
    Method { name: "Containers/Get", path: "/containerd.services.containers.v1.Containers/Get" };
const IMAGES_GET: Method =
    Method { name: "Images/Get", path: "/containerd.services.images.v1.Images/Get" };
const CONTENT_READ: Method =
    Method { name: "Content/Read", path: "/containerd.services.content.v1.Content/Read" };

/// A module in containerd's content store.
#[derive(Clone, Debug)]
pub struct Found {
    /// The digest of its bytes, which is the AOT cache's, too.
    pub digest: Digest,
    /// Its size in bytes, at most [`MAX_BYTES`].
    pub size_bytes: u64,
    /// The layer's media type, one of [`crate::document::WASM_LAYERS`].
    pub media_type: String,
    /// What the artifact calls the file. Not to be trusted: for messages.
    pub name: Option<String>,
    image: String,
}

/// A module, read and verified.
#[derive(Debug)]
pub struct Module {
    /// Its bytes: a sealed memory file, at its start, close-on-exec.
    pub file: OwnedFd,
    /// Where it is from.
    pub found: Found,
}

/// A connection to containerd, in one of its namespaces. After an error other than
/// [`Error::Refused`], [`Error::Document`] and [`Error::Memory`] it is of no use any more.
#[derive(Debug)]
pub struct Containerd {
    channel: Channel,
}

/// [`Containerd::find`] and [`Containerd::read`] in one, in at most `limit`: the module of a
/// container, or `None` if its image is no wasm artifact, or it has none.
///
/// # Errors
/// As for [`Containerd`]'s methods.
pub fn module_of(
    address: &Path,
    namespace: &str,
    container: &str,
    entrypoint: Option<&str>,
    limit: Duration,
) -> Result<Option<Module>, Error> {
    let mut containerd = Containerd::connect(address, namespace, limit)?;
    match containerd.find(container, entrypoint)? {
        Some(found) => containerd.read(found).map(Some),
        None => Ok(None),
    }
}

impl Containerd {
    /// Connects to containerd's gRPC socket, as its shims get it (`-address`). Whatever is done
    /// with the connection must be done in `limit` from now.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn connect(address: &Path, namespace: &str, limit: Duration) -> Result<Self, Error> {
        let path = address.to_str().and_then(|path| path.strip_prefix("unix://"));
        let path = path.map_or(address, Path::new);
        let channel = Channel::connect(path, namespace, Instant::now() + limit)?;
        Ok(Containerd { channel })
    }

    /// Finds the module of a container: its image's layer that is called as the file of
    /// `entrypoint` (`process.args[0]`), else the first that is wasm. `None` if the container was
    /// not made from an image, the image is not there any more, or is no wasm artifact.
    ///
    /// Reads no module: whoever has it in the AOT cache already, by its digest, needs none.
    ///
    /// # Errors
    /// - [`Error::Refused`]: containerd has no such container, for one.
    /// - [`Error::Document`], [`Error::Blob`]: the image is malformed.
    /// - [`Error::NotPulled`]: containerd does not have all of it.
    /// - [`Error::Connection`], [`Error::Deadline`], [`Error::Protocol`].
    pub fn find(
        &mut self,
        container: &str,
        entrypoint: Option<&str>,
    ) -> Result<Option<Found>, Error> {
        match self.image_of(container)? {
            Some(image) => self.find_in(&image, entrypoint),
            None => Ok(None),
        }
    }

    /// As [`Containerd::find`], for an image by its name in containerd.
    ///
    /// # Errors
    /// As for [`Containerd::find`].
    pub fn find_in(
        &mut self,
        image: &str,
        entrypoint: Option<&str>,
    ) -> Result<Option<Found>, Error> {
        let Some(target) = self.target_of(image)? else { return Ok(None) };
        let blobs = &mut Blobs { channel: &mut self.channel, image };
        let Some(layer) = choose(blobs, image, &target, entrypoint)? else { return Ok(None) };
        let bad = |why: String| Error::Blob {
            image: image.to_owned(),
            digest: choose::shortened(&layer.digest),
            why,
        };
        let digest = layer.sha256().ok_or_else(|| bad("not a SHA-256 digest".to_owned()))?;
        if layer.size > MAX_BYTES {
            return Err(bad(format!("{} bytes are more than {MAX_BYTES}", layer.size)));
        }
        let name = layer.title().map(str::to_owned);
        let Descriptor { size: size_bytes, media_type, .. } = layer;
        let image = image.to_owned();
        Ok(Some(Found { digest, size_bytes, media_type, name, image }))
    }

    /// Reads a module into memory, and verifies it.
    ///
    /// # Errors
    /// - [`Error::Blob`]: it is not what its digest says, or of another size.
    /// - [`Error::Memory`]: there is no room for it.
    /// - Those of the connection; [`Error::Refused`] if it is not there any more.
    pub fn read(&mut self, found: Found) -> Result<Module, Error> {
        let memory = memory_file()?;
        let blobs = &mut Blobs { channel: &mut self.channel, image: &found.image };
        blobs.read(found.digest, found.size_bytes, |bytes| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(&memory, rest));
                rest = &rest[written.map_err(memory_failed("write"))?..];
            }
            Ok(())
        })?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&memory, seals).map_err(memory_failed("seal"))?;
        rustix::fs::seek(&memory, rustix::fs::SeekFrom::Start(0)).map_err(memory_failed("seek"))?;
        Ok(Module { file: memory, found })
    }

    fn image_of(&mut self, container: &str) -> Result<Option<String>, Error> {
        let request = Get { what: container.to_owned() };
        let answer: GetContainerResponse = self.channel.call(CONTAINERS_GET, &request)?;
        let image = answer.container.unwrap_or_default().image;
        Ok(Some(image).filter(|image| !image.is_empty()))
    }

    fn target_of(&mut self, image: &str) -> Result<Option<Descriptor>, Error> {
        let request = Get { what: image.to_owned() };
        let answer: GetImageResponse = match self.channel.call(IMAGES_GET, &request) {
            Err(Error::Refused { status: NOT_FOUND, .. }) => return Ok(None),
            answer => answer?,
        };
        let target = answer.image.unwrap_or_default().target.unwrap_or_default();
        let messages::Descriptor { media_type, digest, size } = target;
        Ok(Some(Descriptor { media_type, digest, size, annotations: None, platform: None }))
    }
}

/// containerd's content store.
struct Blobs<'a> {
    channel: &'a mut Channel,
    image: &'a str,
}

impl Blobs<'_> {
    /// Hands a blob to `sink`, piece by piece; verified once this returns.
    fn read(
        &mut self,
        digest: Digest,
        size: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let name = format!("sha256:{digest}");
        let bad = |why| Error::Blob { image: self.image.to_owned(), digest: name.clone(), why };
        let request = Get { what: name.clone() };
        let mut hash = Sha256::new();
        let mut have = 0;
        self.channel.stream(CONTENT_READ, &request, |message| {
            let ReadContentResponse { offset, data } = message;
            if offset != have {
                return Err(bad("comes in disorder".to_owned()));
            }
            have += data.len() as u64;
            if have > size {
                return Err(bad(format!("more than the {size} bytes that it should have")));
            }
            hash.update(&data);
            sink(&data)
        })?;
        if have < size {
            return Err(bad(format!("{have} bytes instead of {size}")));
        }
        match Digest::from(<[u8; 32]>::from(hash.finalize())) == digest {
            true => Ok(()),
            false => Err(bad("its bytes have another digest".to_owned())),
        }
    }
}

impl Documents for Blobs<'_> {
    fn document(&mut self, digest: Digest, size: u64) -> Result<Option<Vec<u8>>, Error> {
        let mut document = Vec::new();
        let read = self.read(digest, size, |bytes| {
            document.extend_from_slice(bytes);
            Ok(())
        });
        match read {
            Err(Error::Refused { status: NOT_FOUND, .. }) => Ok(None),
            read => read.map(|()| Some(document)),
        }
    }
}

/// A memory file that can be sealed, and never be executed where the kernel knows how to say so
/// (6.3; `vm.memfd_noexec` may demand it).
fn memory_file() -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("kiln-module", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create("kiln-module", flags),
        made => made,
    }
    .map_err(memory_failed("create"))
}

fn memory_failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Memory { call, errno }
}
