//! `exec --process`: a process's JSON, completed with what a container has, and checked.

#![no_main]

use std::sync::LazyLock;

use kiln_runtime::exec::process::complete;
use kiln_runtime::plan::ProcessPlan;
use kiln_runtime::{lenient, template};
use oci_spec::runtime::{Linux, Process, Spec};

static CONTAINER: LazyLock<Spec> = LazyLock::new(template::linux);

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    let Ok(process) = lenient::from_slice::<Process>(json) else { return };
    let Some(container) = CONTAINER.process() else { return };
    let whole = complete(process, container);
    assert!(whole.no_new_privileges().is_some() && whole.capabilities().is_some());
    if let Ok(plan) = ProcessPlan::new(&whole, &Linux::default()) {
        assert!(plan.cwd.is_absolute() && !plan.args.is_empty());
        assert!(plan.uid != u32::MAX && plan.gid != u32::MAX);
        assert!(plan.c_strings().is_ok());
    }
});
