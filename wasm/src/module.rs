//! Reading a module and refusing what the engine must not see.
//!
//! WasmEdge opens an ELF file that it is given as a module with dlopen(3), and runs the native
//! code that it finds in a module's section `wasmedge`: both would let an image run code outside
//! of the sandbox. So what leaves here is a core module, and has no such section unless the
//! container says that its image is trusted. The code of functions is not looked at; that is
//! the engine's own validation.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use wasmparser::{ExternalKind, Parser, Payload, TypeRef};

use crate::Error;
use crate::detect::{MAGIC, has_suffix};
use crate::error::BadModule;
use crate::header::{self, HEADER_LEN, what_it_is};
use crate::key::Digest;
use crate::locate::Entrypoint;

pub use crate::header::MAX_BYTES;

/// The largest module in the text format, in bytes; parsing takes many times its size.
pub const MAX_TEXT_BYTES: u64 = 16 << 20;

/// The custom section in which WasmEdge keeps the native code of a module, see `wasmedgec`.
const AOT_SECTION: &str = "wasmedge";
/// The function that a WASI command exports as its entry point.
pub const START: &str = "_start";
/// The function that a WASI reactor, a module that is called again and again, may export, to be
/// called first.
pub const INITIALIZE: &str = "_initialize";

/// A core module, ready for the engine.
#[derive(Debug)]
pub struct Module {
    path: PathBuf,
    bytes: Vec<u8>,
    imports: Vec<Import>,
    /// The names of the functions that it exports.
    functions: Vec<String>,
    native_code: NativeCode,
    /// If it was known before, and the bytes are those that it is of.
    digest: Option<Digest>,
}

/// What became of the native code in a module's own AOT section.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NativeCode {
    /// It has none.
    None,
    /// It had some, which is not in [`Module::bytes`] any more.
    Removed,
    /// It has some, and the container says that it is trusted.
    Trusted,
}

/// Something that a module needs from outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Import {
    /// The module that provides it, such as `wasi_snapshot_preview1`.
    pub module: String,
    /// Its name there.
    pub name: String,
    /// What it is.
    pub kind: ImportKind,
}

/// The kinds of imports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ImportKind {
    /// A function.
    Function,
    /// A table.
    Table,
    /// A memory.
    Memory,
    /// A global variable.
    Global,
    /// An exception's tag.
    Tag,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ImportKind::Function => "function",
            ImportKind::Table => "table",
            ImportKind::Memory => "memory",
            ImportKind::Global => "global",
            ImportKind::Tag => "tag",
        };
        write!(f, "the {kind} {}.{}", self.module, self.name)
    }
}

impl Module {
    /// Reads a module from its file, which it closes. A file called `.wat` is in the text
    /// format, unless it begins as a binary does. Unless `trust_aot`, all native code is
    /// removed.
    ///
    /// # Errors
    /// - [`Error::Entrypoint`]: the file could not be read.
    /// - [`Error::Module`]: it is empty, truncated, too large, not wasm, a component, of another
    ///   version, or its sections, imports or exports are malformed.
    pub fn read(entrypoint: Entrypoint, trust_aot: bool) -> Result<Self, Error> {
        Module::read_known(entrypoint, None, trust_aot)
    }

    /// As [`Module::read`], of a file whose digest somebody has verified already. It is not
    /// computed again unless the module is not what is in the file: text, or without the native
    /// code that is there.
    ///
    /// # Errors
    /// As for [`Module::read`].
    pub fn read_known(
        entrypoint: Entrypoint,
        digest: Option<Digest>,
        trust_aot: bool,
    ) -> Result<Self, Error> {
        let Entrypoint { file, path } = entrypoint;
        let is_text = has_suffix(&path.to_string_lossy(), ".wat");
        let bytes = read_bounded(&File::from(file), &path, MAX_BYTES)?;
        let at = |why| Error::module(&path, why);
        if is_text && !bytes.starts_with(&MAGIC) && !bytes.is_empty() {
            return Module::from_bytes(&path, from_text(&bytes).map_err(at)?, trust_aot);
        }
        let module = Module::from_bytes(&path, bytes, trust_aot)?;
        let digest = digest.filter(|_| module.native_code != NativeCode::Removed);
        Ok(Module { digest, ..module })
    }

    /// As [`Module::read`], of a binary that is in memory; `path` is for messages.
    ///
    /// # Errors
    /// As for [`Module::read`], but for [`Error::Entrypoint`].
    pub fn from_bytes(path: &Path, mut bytes: Vec<u8>, trust_aot: bool) -> Result<Self, Error> {
        let at = |why| Error::module(path, why);
        header::check(&bytes).map_err(at)?;
        let outline = outline(&bytes).map_err(at)?;
        let native_code = match (outline.native_code.is_empty(), trust_aot) {
            (true, _) => NativeCode::None,
            (false, true) => NativeCode::Trusted,
            (false, false) => NativeCode::Removed,
        };
        if native_code == NativeCode::Removed {
            // From the last to the first, so that the ranges of those before stay right.
            for range in outline.native_code.iter().rev() {
                bytes.drain(range.clone());
            }
        }
        Ok(Module {
            path: path.to_owned(),
            bytes,
            imports: outline.imports,
            functions: outline.functions,
            native_code,
            digest: None,
        })
    }

    /// The path inside the container from which it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The module in the binary format.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest of [`Module::bytes`]. Computed anew by each call unless it was known before.
    pub fn digest(&self) -> Digest {
        self.digest.unwrap_or_else(|| Digest::of(&self.bytes))
    }

    /// What it needs from outside, in its own order.
    pub fn imports(&self) -> &[Import] {
        &self.imports
    }

    /// Whether native code came with it.
    pub fn native_code(&self) -> NativeCode {
        self.native_code
    }

    /// Whether it exports a function of this name.
    pub fn exports(&self, function: &str) -> bool {
        self.functions.iter().any(|name| name == function)
    }

    /// Checks that it exports a function, such as [`START`], without which it is a library and no
    /// program.
    ///
    /// # Errors
    /// [`Error::Module`]: it does not.
    pub fn check_exports(&self, function: &str) -> Result<(), Error> {
        if self.exports(function) {
            return Ok(());
        }
        Err(Error::module(&self.path, BadModule::NoFunction(function.to_owned())))
    }

    /// Checks that each of its imports is provided.
    ///
    /// # Errors
    /// [`Error::Module`]: some are not; the error names the first three of them.
    pub fn check_imports(&self, provided: impl Fn(&Import) -> bool) -> Result<(), Error> {
        let unknown: Vec<&Import> = self.imports.iter().filter(|i| !provided(i)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let mut text: Vec<String> = unknown.iter().take(3).map(ToString::to_string).collect();
        if unknown.len() > 3 {
            text.push(format!("{} more", unknown.len() - 3));
        }
        Err(Error::module(&self.path, BadModule::UnknownImports(text.join(", "))))
    }
}

/// What the sections of a module tell.
#[derive(Default)]
struct Outline {
    imports: Vec<Import>,
    functions: Vec<String>,
    /// The sections with native code, from their identifier to their end.
    native_code: Vec<Range<usize>>,
}

fn outline(bytes: &[u8]) -> Result<Outline, BadModule> {
    let mut outline = Outline::default();
    let mut end = HEADER_LEN;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        if let Some((_, range)) = payload.as_section() {
            // Sections follow each other without a gap.
            let start = end;
            end = usize::try_from(range.end).unwrap_or(bytes.len());
            if matches!(&payload, Payload::CustomSection(custom) if custom.name() == AOT_SECTION) {
                outline.native_code.push(start..end);
            }
        }
        match payload {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    outline.imports.push(import?.into());
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        outline.functions.push(export.name.to_owned());
                    }
                }
            }
            Payload::UnknownSection { id, range, .. } => {
                return Err(BadModule::Malformed {
                    offset: range.start,
                    message: format!("unknown section {id}"),
                });
            }
            _ => (),
        }
    }
    Ok(outline)
}

impl From<wasmparser::Import<'_>> for Import {
    fn from(import: wasmparser::Import<'_>) -> Self {
        Import {
            module: import.module.to_owned(),
            name: import.name.to_owned(),
            kind: match import.ty {
                TypeRef::Func(_) | TypeRef::FuncExact(_) => ImportKind::Function,
                TypeRef::Table(_) => ImportKind::Table,
                TypeRef::Memory(_) => ImportKind::Memory,
                TypeRef::Global(_) => ImportKind::Global,
                TypeRef::Tag(_) => ImportKind::Tag,
            },
        }
    }
}

impl From<wasmparser::BinaryReaderError> for BadModule {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        BadModule::Malformed { offset: error.offset(), message: error.message().to_owned() }
    }
}

fn from_text(bytes: &[u8]) -> Result<Vec<u8>, BadModule> {
    let size = bytes.len() as u64;
    if bytes.starts_with(b"\x7fELF") {
        return Err(BadModule::NotWasm(what_it_is(bytes)));
    }
    if size > MAX_TEXT_BYTES {
        let limit = MAX_TEXT_BYTES;
        return Err(BadModule::TooLarge { size, limit });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| BadModule::Text(format!("not UTF-8 at byte {}", error.valid_up_to())))?;
    wat::parse_str(text).map_err(|error| BadModule::Text(one_line(&error.to_string())))
}

/// The parser shows the place in an excerpt over several lines; errors are one line.
fn one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim);
    let what = lines.next().unwrap_or_default();
    match lines.find_map(|line| line.strip_prefix("--> ")) {
        Some(place) => format!("{what} at {}", place.trim_start_matches("<anon>:")),
        None => what.to_owned(),
    }
}

fn read_bounded(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Error::entrypoint(path, "read", errno)
    };
    let size = file.metadata().map_err(failed)?.len();
    let too_large = |size| Error::module(path, BadModule::TooLarge { size, limit });
    if size > limit {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    // Again, because the file may grow, or not know its size.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
