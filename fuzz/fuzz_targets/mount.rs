//! A mount: destination, type, source and options, a line each.

#![no_main]

use kiln_runtime::mounts::MountPlan;
use oci_spec::runtime::Mount;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let mut mount = Mount::default();
    mount.set_destination(lines.next().unwrap_or_default().into());
    mount.set_typ(lines.next().map(str::to_owned));
    mount.set_source(lines.next().map(Into::into));
    mount.set_options(Some(lines.map(str::to_owned).collect()));
    if let Ok(mut plan) = MountPlan::new(0, &mount) {
        plan.label("system_u:object_r:container_file_t:s0");
        let _ = plan.is_idmapped();
    }
});
