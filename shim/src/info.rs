//! What containerd 2 asks before there is a container: `-info`.

use std::io::Write;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use kiln_runtime::placement::PROPERTY_PREFIX;

use crate::RUNTIME;
use crate::error::{Context, Error};

/// The name that containerd has registered for a features document as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints it.
///
/// # Errors
/// Nobody takes it.
pub fn print() -> Result<(), Error> {
    let mut version = RuntimeVersion::new();
    env!("CARGO_PKG_VERSION").clone_into(&mut version.version);
    let mut info = RuntimeInfo::new();
    RUNTIME.clone_into(&mut info.name);
    info.version = MessageField::some(version);
    info.features = MessageField::some(features());
    std::io::stdout().write_all(&info.write_to_bytes().unwrap_or_default()).step("answer")
}

/// As `kiln features` has them. Without, containerd refuses idmapped mounts, as all volumes of a pod
/// with a user namespace are.
fn features() -> Any {
    let options = kiln_runtime::mounts::option_names();
    let mut annotations = vec![PROPERTY_PREFIX];
    annotations.extend(kiln_wasm::annotations::ALL);
    annotations.extend(kiln_runtime::annotations::UNSAFE);
    let features = kiln_runtime::features::features(&options, &annotations);
    let mut any = Any::new();
    FEATURES.clone_into(&mut any.type_url);
    any.value = serde_json::to_vec(&features).unwrap_or_default();
    any
}
