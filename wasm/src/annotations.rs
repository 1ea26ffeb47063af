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

/// How the container's module is run: [`MODES`].
pub const MODE: &str = "module.wasm.image/mode";
/// What begins the names of the settings of [`HTTP`].
pub const HTTP_SETTING: &str = "module.wasm.image/http.";
/// The mode in which the container is a server, whose module answers each request.
pub const HTTP: &str = "http";

/// The values of [`MODE`] that kiln knows.
pub const MODES: [&str; 2] = ["command", HTTP];

/// All of kiln's own, for `features`: whoever may set them chooses what runs the container.
pub const ALL: [&str; 4] = [HANDLER, MODE, TRUSTED_AOT, VARIANT];

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

/// The settings of a container that is to be a server: names without [`HTTP_SETTING`], and values. None
/// for one that runs its module once.
///
/// # Errors
/// [`Error::UnknownAnnotation`] if the mode is none that kiln knows.
pub fn http(spec: &Spec) -> Result<Option<Vec<(&str, &str)>>, Error> {
    match value(spec, MODE) {
        None | Some("command") => Ok(None),
        Some(HTTP) => {
            let all = spec.annotations().iter().flatten();
            let mut settings: Vec<_> = all
                .filter_map(|(name, value)| {
                    Some((name.strip_prefix(HTTP_SETTING)?, value.as_str()))
                })
                .collect();
            // Which of two wrong ones is named is not left to chance.
            settings.sort_unstable();
            Ok(Some(settings))
        }
        Some(other) => Err(Error::unknown_annotation(MODE, other, &MODES)),
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

    #[test]
    fn a_server_has_settings() {
        let with = |pairs: &[(&str, &str)]| {
            let mut spec = Spec::default();
            let all = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            spec.set_annotations(Some(all.collect()));
            http(&spec).map(|found| {
                found.map(|found| found.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>())
            })
        };
        let port = ("module.wasm.image/http.port", "80");
        assert_eq!(with(&[port]).unwrap(), None, "no mode");
        assert_eq!(with(&[(MODE, "command"), port]).unwrap(), None);
        let max = ("module.wasm.image/http.max", "2");
        assert_eq!(with(&[(MODE, "http"), port, max]).unwrap().unwrap(), ["max=2", "port=80"]);
        assert_eq!(
            with(&[(MODE, "ftp")]).unwrap_err().to_string(),
            "annotation module.wasm.image/mode: unknown value \"ftp\" (known: command, http)"
        );
    }
}
