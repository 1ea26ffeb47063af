//! Compiled modules that the warm parent keeps loaded, so that its forks share them: a fork finds
//! its module mapped, and pays no memory for it.
//!
//! By the digest of the module's bytes, and only code that kiln has compiled: what an image may
//! bring along is never here.

use std::rc::Rc;

use kiln_wasm::key::Digest;

use crate::load::Prepared;

/// How many modules are kept. A pod has few containers.
const KEPT: usize = 8;

/// See the module; the one that was used last stands last.
#[derive(Debug, Default)]
pub struct Shelf(Vec<(Digest, Rc<Prepared>)>);

impl Shelf {
    /// The module of this digest.
    pub fn get(&self, digest: Digest) -> Option<Rc<Prepared>> {
        self.0.iter().find(|(known, _)| *known == digest).map(|(_, module)| Rc::clone(module))
    }

    /// Whether a module of this digest is there, which then has been used last.
    pub fn touch(&mut self, digest: Digest) -> bool {
        let Some(at) = self.0.iter().position(|(known, _)| *known == digest) else { return false };
        let module = self.0.remove(at);
        self.0.push(module);
        true
    }

    /// Keeps a module, in place of the one that has not been used for longest.
    pub fn put(&mut self, digest: Digest, module: Prepared) {
        if self.0.len() == KEPT {
            self.0.remove(0);
        }
        self.0.push((digest, Rc::new(module)));
    }
}
