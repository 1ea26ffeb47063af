//! Which containers are wasm.
//!
//! An unknown value is an error rather than a native container: whoever sets one of these
//! annotations expects a handler that kiln does not have. crun ignores such values.

use std::os::fd::BorrowedFd;

use oci_spec::runtime::Spec;

use crate::Error;
use crate::annotations::{
    CONTAINERD_CONTAINER_TYPE, CRIO_CONTAINER_TYPE, HANDLER, HANDLERS, SANDBOX, VARIANT, VARIANTS,
    value,
};
use crate::locate::{Located, locate};

/// What executes a container's entrypoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// execve(2).
    Native,
    /// A wasm engine.
    Wasm,
}

/// When an annotation makes a container wasm.
#[derive(Clone, Copy)]
enum Rule {
    Always,
    IfEntrypointIsWasm,
}

/// The first bytes of every wasm binary, module or component.
pub(crate) const MAGIC: [u8; 4] = *b"\0asm";

/// Tells what executes the entrypoint of a container, whose root directory without the spec's
/// mounts is `rootfs`.
///
/// In this order: a pod's pause container is native; `run.oci.handler` decides; else
/// `module.wasm.image/variant` decides; else the container is native. The `-smart` values make
/// it wasm if the entrypoint's file begins with the wasm magic, or is called `.wasm` or `.wat`;
/// an entrypoint in a mount that cannot be looked into yet is judged by its name alone.
///
/// Makes no system call unless one of the `-smart` values is set.
///
/// # Errors
/// - [`Error::UnknownAnnotation`]: one of the two annotations has another value.
/// - [`Error::Entrypoint`]: the entrypoint's first bytes could not be read. One that is missing
///   or not a regular file is native, so that it fails as on any other runtime.
pub fn detect(spec: &Spec, rootfs: BorrowedFd<'_>) -> Result<Kind, Error> {
    match asked_for(spec)? {
        None => Ok(Kind::Native),
        Some(Rule::Always) => Ok(Kind::Wasm),
        Some(Rule::IfEntrypointIsWasm) if is_wasm(spec, rootfs)? => Ok(Kind::Wasm),
        Some(Rule::IfEntrypointIsWasm) => Ok(Kind::Native),
    }
}

/// Whether one of the annotations asks for wasm: only then [`detect_for_exec`] need be called.
pub fn may_be_wasm(spec: &Spec) -> bool {
    [HANDLER, VARIANT].iter().any(|name| value(spec, name).is_some())
}

/// The same for a process that is executed in a container which is there: `spec` has that process,
/// and no mounts, because they are in place below `root`. Whatever value asks for wasm, the file
/// decides: a wasm container may have Linux programs, too.
///
/// # Errors
/// As for [`detect`].
pub fn detect_for_exec(spec: &Spec, root: BorrowedFd<'_>) -> Result<Kind, Error> {
    match asked_for(spec)? {
        Some(_) if is_wasm(spec, root)? => Ok(Kind::Wasm),
        _ => Ok(Kind::Native),
    }
}

/// What the annotations say.
fn asked_for(spec: &Spec) -> Result<Option<Rule>, Error> {
    if [CONTAINERD_CONTAINER_TYPE, CRIO_CONTAINER_TYPE]
        .iter()
        .any(|name| value(spec, name) == Some(SANDBOX))
    {
        return Ok(None);
    }
    // Both are read before the first counts: a value that nobody knows is never passed over.
    let handler = rule(spec, HANDLER, &HANDLERS)?;
    let variant = rule(spec, VARIANT, &VARIANTS)?;
    Ok(handler.or(variant))
}

fn rule(spec: &Spec, name: &'static str, known: &[&str]) -> Result<Option<Rule>, Error> {
    match value(spec, name) {
        None => Ok(None),
        Some(value) if !known.contains(&value) => {
            Err(Error::unknown_annotation(name, value, known))
        }
        Some(value) if value.ends_with("-smart") => Ok(Some(Rule::IfEntrypointIsWasm)),
        Some(_) => Ok(Some(Rule::Always)),
    }
}

fn is_wasm(spec: &Spec, rootfs: BorrowedFd<'_>) -> Result<bool, Error> {
    let args = spec.process().as_ref().and_then(|process| process.args().as_ref());
    let Some(entrypoint) = args.and_then(|args| args.first()) else {
        return Ok(false);
    };
    if has_suffix(entrypoint, ".wasm") || has_suffix(entrypoint, ".wat") {
        return Ok(true);
    }
    match locate(spec, rootfs) {
        Ok(Located::Found(entrypoint)) => entrypoint.starts_with_magic(),
        Ok(Located::Deferred(_))
        | Err(Error::NoEntrypoint | Error::NotFound { .. } | Error::NotRegular { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Whether `name` ends in `suffix`, in any mixture of cases, as crun compares.
pub(crate) fn has_suffix(name: &str, suffix: &str) -> bool {
    let at = name.len().checked_sub(suffix.len());
    at.and_then(|at| name.as_bytes().get(at..))
        .is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use tempfile::TempDir;

    use super::*;

    fn spec(args: &[&str], annotations: &[(&str, &str)]) -> Spec {
        let mut spec = Spec::default();
        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(args.iter().map(ToString::to_string).collect()));
        spec.set_process(Some(process));
        let pairs = annotations.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        spec.set_annotations(Some(pairs.collect::<HashMap<_, _>>()));
        spec
    }

    /// A rootfs with `/bin/app`, `/bin/linux`, `/bin/linux.wasm` and `/text.wat`.
    fn rootfs() -> TempDir {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/app"), b"\0asm\x01\0\0\0").unwrap();
        fs::write(dir.path().join("bin/linux"), b"\x7fELF").unwrap();
        fs::write(dir.path().join("bin/linux.wasm"), b"\x7fELF").unwrap();
        fs::write(dir.path().join("text.wat"), b"(module)").unwrap();
        fs::write(dir.path().join("short"), b"\0as").unwrap();
        dir
    }

    fn kind(args: &[&str], annotations: &[(&str, &str)]) -> Result<Kind, Error> {
        let dir = rootfs();
        let fd = File::open(dir.path()).unwrap();
        detect(&spec(args, annotations), fd.as_fd())
    }

    #[test]
    fn without_annotations_everything_is_native() {
        assert_eq!(kind(&["/bin/app"], &[]).unwrap(), Kind::Native);
        assert_eq!(kind(&["/text.wat"], &[]).unwrap(), Kind::Native);
        let mut bare = Spec::default();
        bare.set_annotations(None).set_process(None);
        let fd = File::open("/").unwrap();
        assert_eq!(detect(&bare, fd.as_fd()).unwrap(), Kind::Native);
    }

    #[test]
    fn plain_values_are_always_wasm() {
        for pair in [(HANDLER, "wasm"), (HANDLER, "wasmedge"), (VARIANT, "compat")] {
            assert_eq!(kind(&["/bin/linux"], &[pair]).unwrap(), Kind::Wasm, "{pair:?}");
            assert_eq!(kind(&["/not/there"], &[pair]).unwrap(), Kind::Wasm, "{pair:?}");
        }
    }

    #[test]
    fn smart_values_look_at_the_entrypoint() {
        for pair in [(HANDLER, "wasm-smart"), (VARIANT, "compat-smart")] {
            let kind = |args: &[&str]| kind(args, &[pair]).unwrap();
            assert_eq!(kind(&["/bin/app"]), Kind::Wasm, "magic without a suffix");
            assert_eq!(kind(&["app"]), Kind::Wasm, "found along PATH");
            assert_eq!(kind(&["/text.wat"]), Kind::Wasm);
            assert_eq!(kind(&["/TEXT.WAT"]), Kind::Wasm);
            assert_eq!(kind(&["/bin/linux.wasm"]), Kind::Wasm, "named so, refused later");
            assert_eq!(kind(&["/gone.wasm"]), Kind::Wasm);
            assert_eq!(kind(&["/bin/linux"]), Kind::Native);
            assert_eq!(kind(&["linux"]), Kind::Native);
            assert_eq!(kind(&["/short"]), Kind::Native);
            assert_eq!(kind(&["/bin"]), Kind::Native);
            assert_eq!(kind(&["/gone"]), Kind::Native);
            assert_eq!(kind(&[]), Kind::Native);
        }
    }

    #[test]
    fn in_a_container_the_file_decides() {
        let dir = rootfs();
        let fd = File::open(dir.path()).unwrap();
        let kind = |args: &[&str], annotations: &[(&str, &str)]| {
            detect_for_exec(&spec(args, annotations), fd.as_fd()).unwrap()
        };
        for pair in [(HANDLER, "wasm"), (VARIANT, "compat"), (VARIANT, "compat-smart")] {
            assert_eq!(kind(&["/bin/app"], &[pair]), Kind::Wasm);
            assert_eq!(kind(&["/gone.wasm"], &[pair]), Kind::Wasm);
            assert_eq!(kind(&["/bin/linux"], &[pair]), Kind::Native);
        }
        assert_eq!(kind(&["/bin/app"], &[]), Kind::Native);
        assert!(may_be_wasm(&spec(&[], &[(VARIANT, "x")])) && !may_be_wasm(&spec(&[], &[])));
    }

    #[test]
    fn the_pause_container_is_native() {
        for name in [CONTAINERD_CONTAINER_TYPE, CRIO_CONTAINER_TYPE] {
            let pairs = [(name, "sandbox"), (HANDLER, "wasm"), (VARIANT, "nonsense")];
            assert_eq!(kind(&["/bin/app"], &pairs).unwrap(), Kind::Native);
            let pairs = [(name, "container"), (HANDLER, "wasm")];
            assert_eq!(kind(&["/bin/app"], &pairs).unwrap(), Kind::Wasm);
        }
    }

    #[test]
    fn the_handler_goes_before_the_variant() {
        let pairs = [(HANDLER, "wasm-smart"), (VARIANT, "compat")];
        assert_eq!(kind(&["/bin/linux"], &pairs).unwrap(), Kind::Native);
        let pairs = [(HANDLER, "wasm"), (VARIANT, "compat-smart")];
        assert_eq!(kind(&["/bin/linux"], &pairs).unwrap(), Kind::Wasm);
    }

    #[test]
    fn unknown_values_are_errors() {
        assert_eq!(
            kind(&["/bin/app"], &[(HANDLER, "wasmtime")]).unwrap_err().to_string(),
            "annotation run.oci.handler: unknown value \"wasmtime\" \
             (known: wasm, wasmedge, wasm-smart)"
        );
        assert_eq!(
            kind(&["/bin/app"], &[(HANDLER, "wasm"), (VARIANT, "")]).unwrap_err().to_string(),
            "annotation module.wasm.image/variant: unknown value \"\" \
             (known: compat, compat-smart)"
        );
    }

    #[test]
    fn suffixes() {
        assert!(has_suffix("a.WASM", ".wasm") && has_suffix(".wat", ".wat"));
        assert!(!has_suffix("wat", ".wat") && !has_suffix("", ".wat") && !has_suffix("é", ".wasm"));
    }
}
