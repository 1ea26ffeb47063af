//! HTTP mode: a module is loaded once and answers each request from a fresh instance, which was made
//! ahead of time.
//!
//! - [`front`]: the HTTP server, which the gateway shares;
//! - [`server`]: one function's: the [`pool`] of its workers, [`protocol`]s, health and metrics;
//! - [`parent`] and [`worker`]: the processes that the module is in. Each request has a worker's process
//!   to itself, so whatever it does (loop, sleep, exhaust its stack or memory) ends with a signal to it;
//! - [`guest`]: what the engine does for all that.

mod board;
pub mod call;
mod counters;
mod desk;
pub mod front;
pub mod guest;
mod journal;
mod lease;
pub mod listen;
mod memory;
pub mod metrics;
pub mod parent;
mod parent_link;
pub mod pool;
pub mod protocol;
pub mod server;
pub mod settings;
mod size;
mod sys;
mod trim;
pub mod worker;
mod worker_link;
