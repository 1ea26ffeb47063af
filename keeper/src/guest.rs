//! What runs the functions: the engine, as HTTP mode knows it.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// A module that was loaded and checked.
pub trait Module {
    /// A fresh instance of it, which nothing but `_initialize` has run in.
    ///
    /// # Errors
    /// Why it cannot be made, such as that it wants more memory than it may have.
    fn instantiate(&self) -> Result<Box<dyn Instance>, String>;

    /// How many directories an instance has open from the beginning; without any it can open no file.
    fn directories(&self) -> usize {
        0
    }

    /// Puts compiled code in the place of what is interpreted: a shared object that kiln has made of
    /// this module.
    ///
    /// # Errors
    /// It is of no use; the module is as it was.
    fn replace(&mut self, compiled: OwnedFd) -> Result<(), String>;
}

/// An instance of a module.
pub trait Instance {
    /// Runs it with these arguments and this environment to its end. Its streams are this process's.
    fn call(&mut self, args: &[CString], env: &[CString]) -> Ended;
}

/// How a call has ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Ended {
    /// By itself, with this exit status.
    Exit(u32),
    /// By a trap, for this reason.
    Trap(String),
    /// There was no instance to call, for this reason.
    Failed(String),
}
