//! The annotations of a container that concern wasm, each name once.

use oci_spec::runtime::Spec;

use crate::Error;

/// containerd's mark of what a container of a pod is; the pause container is a [`SANDBOX`].
pub const CONTAINERD_CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The same mark as CRI-O sets it.
pub const CRIO_CONTAINER_TYPE: &str = "io.kubernetes.cri-o.ContainerType";
/// The value of both for a pod's pause container, which is never wasm.
pub const SANDBOX: &str = "sandbox";
/// Which handler runs the container, as crun reads it: [`HANDLERS`].
pub const HANDLER: &str = "run.oci.handler";
/// What kind of wasm image it is: [`VARIANTS`].
pub const VARIANT: &str = "module.wasm.image/variant";
/// `true` says that the native code in the module's own AOT section may be run.
pub const TRUSTED_AOT: &str = "module.wasm.image/trusted-aot";

/// The values of [`HANDLER`] that kiln knows.
pub const HANDLERS: [&str; 3] = ["wasm", "wasmedge", "wasm-smart"];
/// The values of [`VARIANT`] that kiln knows.
pub const VARIANTS: [&str; 2] = ["compat", "compat-smart"];

/// The value of one annotation.
pub(crate) fn value<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}

/// Whether the container's image is trusted to bring native code in its module.
///
/// # Errors
/// [`Error::UnknownAnnotation`] if the annotation is neither `true` nor `false`.
pub fn trusted_aot(spec: &Spec) -> Result<bool, Error> {
    match value(spec, TRUSTED_AOT) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Error::unknown_annotation(TRUSTED_AOT, other, &["true", "false"])),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn native_code_is_trusted_only_on_demand() {
        let with = |value: Option<&str>| {
            let mut spec = Spec::default();
            let all = value.map(|v| HashMap::from([(TRUSTED_AOT.to_owned(), v.to_owned())]));
            spec.set_annotations(all);
            trusted_aot(&spec)
        };
        assert!(!with(None).unwrap());
        assert!(!with(Some("false")).unwrap());
        assert!(with(Some("true")).unwrap());
        assert_eq!(
            with(Some("yes")).unwrap_err().to_string(),
            "annotation module.wasm.image/trusted-aot: unknown value \"yes\" (known: true, false)"
        );
    }
}
