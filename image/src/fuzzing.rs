//! What the fuzz targets (fuzz/) call; not part of the crate otherwise.

use bytes::Bytes;
use kiln_wasm::key::Digest;
use prost::Message;

use crate::containerd::choose::{Documents, choose};
use crate::containerd::grpc::Parts;
use crate::containerd::messages::{GetContainerResponse, GetImageResponse, ReadContentResponse};
use crate::document::{Descriptor, INDEX, MANIFEST};
use crate::{Error, Name};

/// Takes an answer of containerd's apart: the first byte says where its second piece begins.
///
/// # Panics
/// What is in it depends on the pieces that it comes in.
pub fn answer(bytes: &[u8]) {
    let Some((&at, bytes)) = bytes.split_first() else { return };
    let (one, two) = bytes.split_at(bytes.len().min(at.into()));
    let (messages, error) = messages(&[bytes]);
    assert_eq!(self::messages(&[one, two]), (messages.clone(), error));
    for message in messages {
        let _ = GetContainerResponse::decode(message.clone());
        let _ = GetImageResponse::decode(message.clone());
        let _ = ReadContentResponse::decode(message);
    }
}

fn messages(pieces: &[&[u8]]) -> (Vec<Bytes>, Option<&'static str>) {
    let (mut parts, mut messages) = (Parts::default(), Vec::new());
    for piece in pieces {
        parts.add(piece);
        loop {
            match parts.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(what) => return (messages, Some(what)),
            }
        }
    }
    (messages, None)
}

/// Chooses the module among documents, the first of which is an index or a manifest. They are
/// separated by null bytes; a digest's first byte tells which of them it means.
///
/// # Panics
/// What was chosen is no module.
pub fn documents(bytes: &[u8]) {
    let mut store = Store(bytes.split(|&byte| byte == 0).collect());
    for media_type in [INDEX, MANIFEST] {
        let target = Descriptor {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{}", Digest::from([0; 32])),
            size: 1,
            annotations: None,
            platform: None,
        };
        if let Ok(Some(layer)) = choose(&mut store, "image", &target, Some("/app.wasm")) {
            assert!(layer.is_wasm(), "{layer:?}");
            let _ = layer.sha256();
        }
    }
}

struct Store<'a>(Vec<&'a [u8]>);

impl Documents for Store<'_> {
    fn document(&mut self, digest: Digest, _size: u64) -> Result<Option<Vec<u8>>, Error> {
        let number = usize::from_str_radix(&digest.to_string()[..2], 16).unwrap_or_default();
        Ok(self.0.get(number).map(|bytes| bytes.to_vec()))
    }
}

/// Reads an image's name.
///
/// # Panics
/// A name that was taken is another one once it is full.
pub fn name(text: &str) {
    if let Ok(name) = Name::parse(text) {
        assert_eq!(Name::parse(&name.to_string()).ok().as_ref(), Some(&name), "{text:?}");
    }
}
