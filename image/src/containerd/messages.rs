//! containerd's messages, with the fields that are used here.
//!
//! Follows containerd/api: services/containers/v1/containers.proto, services/images/v1/images.proto,
//! services/content/v1/content.proto, types/descriptor.proto. What is int64 there is unsigned here:
//! the bytes are the same, and what is negative is too large.

use bytes::Bytes;
use prost::Message;

/// `GetContainerRequest` (an id), `GetImageRequest` (a name), `ReadContentRequest` (a digest).
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Get {
    #[prost(string, tag = "1")]
    pub(crate) what: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetContainerResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Container {
    #[prost(string, tag = "3")]
    pub(crate) image: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(message, optional, tag = "3")]
    pub(crate) target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Descriptor {
    #[prost(string, tag = "1")]
    pub(crate) media_type: String,
    #[prost(string, tag = "2")]
    pub(crate) digest: String,
    #[prost(uint64, tag = "3")]
    pub(crate) size: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContentResponse {
    #[prost(uint64, tag = "1")]
    pub(crate) offset: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) data: Bytes,
}
