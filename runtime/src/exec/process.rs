//! What an exec'd process is: what its file or the flags say, and where they say nothing, what
//! the container has.

use oci_spec::runtime::Process;

/// Fills what a process file leaves open with what the container's own process has: an exec must
/// not be less confined because its caller left a field out.
///
/// As runc does for capabilities, limits, labels and scheduling; runc takes a noNewPrivileges that is
/// absent for false.
pub fn complete(mut process: Process, container: &Process) -> Process {
    macro_rules! fill {
        ($($get:ident $set:ident),+) => {$(
            if process.$get().is_none() {
                process.$set(container.$get().clone());
            }
        )+};
    }
    fill!(
        capabilities set_capabilities,
        rlimits set_rlimits,
        no_new_privileges set_no_new_privileges,
        oom_score_adj set_oom_score_adj,
        io_priority set_io_priority,
        scheduler set_scheduler,
        exec_cpu_affinity set_exec_cpu_affinity
    );
    let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    if empty(process.apparmor_profile()) {
        process.set_apparmor_profile(container.apparmor_profile().clone());
    }
    if empty(process.selinux_label()) {
        process.set_selinux_label(container.selinux_label().clone());
    }
    if process.user().umask().is_none() {
        process.user_mut().set_umask(container.user().umask());
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(fields: &str) -> Process {
        let json = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/","args":["a"]{fields}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn what_is_absent_is_the_containers() {
        let container = process(
            r#","noNewPrivileges":true,"capabilities":{"bounding":["CAP_KILL"]},"oomScoreAdj":7,
            "apparmorProfile":"tight","rlimits":[{"type":"RLIMIT_CPU","hard":1,"soft":1}]"#,
        );
        let completed = complete(process(r#","env":["A=1"]"#), &container);
        let mut expected = container.clone();
        expected.set_env(Some(vec!["A=1".to_owned()]));
        assert_eq!(completed, expected);
    }

    #[test]
    fn what_is_there_counts() {
        let container = process(r#","noNewPrivileges":true,"apparmorProfile":"tight""#);
        let own =
            process(r#","noNewPrivileges":false,"apparmorProfile":"loose","capabilities":{}"#);
        assert_eq!(complete(own.clone(), &container), own);
    }
}
