//! The HTTP server with real sockets: what it must serve, and what it must refuse.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod bounds;
mod gone;
mod http2;
mod log;
mod refused;
mod slow;
mod stop;
mod support;
