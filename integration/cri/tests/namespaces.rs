//! Where the containers of a pod are: its namespaces, and what a privileged one may do.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use kiln_integration::containerd::{Containerd, Shim, config};
use kiln_integration::{for_each_shim, needs_wasm, proc, skip};
use kiln_integration_cri::{HOST_IDS, Manifest, Pod};

for_each_shim!(
    a_pods_namespaces,
    a_shared_pid_namespace,
    the_nodes_network,
    a_user_namespace,
    a_privileged_container,
    the_hosts_name_and_files
);

/// A module that sleeps, and a shell that does.
fn manifest() -> Manifest {
    let mut manifest = Manifest::load("pods/sidecar");
    manifest.spec.termination_grace_period_seconds = Some(0);
    let module = &mut manifest.spec.containers[0];
    module.image = "localhost/kiln/sleep:1".to_owned();
    module.command = vec!["/sleep.wasm".to_owned()];
    module.args.clear();
    let shell = &mut manifest.spec.containers[1];
    shell.command =
        ["sh", "-c", "echo ready; while :; do sleep 1; done"].map(str::to_owned).to_vec();
    shell.readiness_probe = None;
    manifest
}

/// The processes: pause's, the module's and the shell's.
fn with_pod(shim: Shim, manifest: &Manifest, test: impl FnOnce(&Pod, [i32; 3])) {
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, manifest);
    let (module, shell) = (pod.container("writer"), pod.container("server"));
    module.await_stdout("sleeping");
    shell.await_stdout("ready");
    test(&pod, [pod.pause_pid(), module.pid(), shell.pid()]);
    pod.remove();
}

fn a_pods_namespaces(shim: Shim) {
    needs_wasm!();
    with_pod(shim, &manifest(), |_, [pause, module, shell]| {
        for kind in ["net", "ipc", "uts"] {
            let pods = proc::namespace(pause, kind);
            assert_ne!(pods, proc::own_namespace(kind), "{kind}");
            assert_eq!([module, shell].map(|pid| proc::namespace(pid, kind)), [&*pods, &*pods]);
        }
        for kind in ["pid", "mnt"] {
            let own = [pause, module, shell].map(|pid| proc::namespace(pid, kind));
            assert!(own[0] != own[1] && own[1] != own[2] && own[0] != own[2], "{kind}: {own:?}");
        }
    });
}

fn a_shared_pid_namespace(shim: Shim) {
    needs_wasm!();
    let mut manifest = manifest();
    manifest.spec.share_process_namespace = true;
    with_pod(shim, &manifest, |pod, [pause, module, shell]| {
        let pods = proc::namespace(pause, "pid");
        assert_eq!([module, shell].map(|pid| proc::namespace(pid, "pid")), [&*pods, &*pods]);
        let ps = pod.container("server").exec(&["ps"]).unwrap().stdout;
        assert!(ps.contains("/pause") && ps.contains("/sleep.wasm"), "{ps}");
        // Not pid 1, so not immune to anything; but ended by SIGTERM as ever.
        pod.client.stop_container(&pod.container("writer").id, 30).unwrap();
        assert_eq!(pod.container("writer").status().exit_code, 143);
    });
}

fn the_nodes_network(shim: Shim) {
    needs_wasm!();
    let mut manifest = manifest();
    manifest.spec.host_network = true;
    with_pod(shim, &manifest, |_, pids| {
        let own = proc::own_namespace("net");
        assert_eq!(pids.map(|pid| proc::namespace(pid, "net")), [&*own, &*own, &*own]);
    });
}

/// What the volume's owner is, is root inside, whatever the ids are outside.
fn a_user_namespace(shim: Shim) {
    needs_wasm!();
    if config::major() < 2 {
        skip!("containerd 1.x gives pods no user namespace with volumes");
    }
    let mut manifest = manifest();
    manifest.spec.host_users = Some(false);
    with_pod(shim, &manifest, |pod, pids| {
        let users = proc::namespace(pids[0], "user");
        assert_ne!(users, proc::own_namespace("user"));
        assert_eq!(pids.map(|pid| proc::namespace(pid, "user")), [&*users, &*users, &*users]);
        for pid in pids {
            let uid = proc::status_field(pid, "Uid").unwrap();
            assert!(uid.starts_with(&HOST_IDS.to_string()), "{uid}");
        }
        let owners = ["stat", "-c", "%u:%g", "/", "/bin/busybox", "/page"];
        let owners = pod.container("server").exec(&owners).unwrap();
        assert_eq!(owners.stdout, "0:0\n0:0\n0:0\n", "{owners:?}");
    });
    // Both write to the volume and the root.
    let module = &mut manifest.spec.containers[0];
    module.image = "localhost/kiln/files:1".to_owned();
    module.command = vec!["/files.wasm".to_owned()];
    module.args = ["write", "/page/file", "text"].map(str::to_owned).to_vec();
    let containerd = Containerd::shared(true);
    let pod = Pod::sandbox(&containerd, shim, &manifest);
    let writer = pod.start("writer");
    assert_eq!(writer.await_exit().exit_code, 0, "{:?}", writer.log());
    let file = fs::metadata(pod.volume("page").join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (0, 0), "on the host");
    pod.remove();
}

fn a_privileged_container(shim: Shim) {
    needs_wasm!();
    let mount = ["sh", "-c", "mkdir -p /m && mount -t tmpfs none /m && umount /m"];
    with_pod(shim, &manifest(), |pod, _| {
        let refused = pod.container("server").exec(&mount).unwrap();
        assert_ne!(refused.exit_code, 0, "{refused:?}");
    });
    let mut manifest = manifest();
    for container in &mut manifest.spec.containers {
        container.security_context.privileged = true;
    }
    with_pod(shim, &manifest, |pod, [_, module, shell]| {
        let mounted = pod.container("server").exec(&mount).unwrap();
        assert_eq!(mounted.exit_code, 0, "{mounted:?}");
        let capabilities = |pid| proc::status_field(pid, "CapEff").unwrap();
        assert_eq!(capabilities(module), capabilities(shell));
        assert_eq!(proc::status_field(module, "Seccomp").unwrap(), "0");
    });
}

/// The kubelet and containerd mount files into every container, also where the image has no place
/// for them.
fn the_hosts_name_and_files(shim: Shim) {
    needs_wasm!();
    let mut manifest = manifest();
    let module = &mut manifest.spec.containers[0];
    module.image = "localhost/kiln/files:1".to_owned();
    module.command = vec!["/files.wasm".to_owned()];
    let containerd = Containerd::shared(true);
    for (arguments, shows) in [
        (["read", "/etc/hosts"], "127.0.0.1 localhost"),
        (["read", "/etc/hostname"], "sidecar"),
        (["list", "/etc"], "resolv.conf"),
    ] {
        let mut manifest = manifest.clone();
        manifest.first().args = arguments.map(str::to_owned).to_vec();
        let pod = Pod::sandbox(&containerd, shim, &manifest);
        let container = pod.start("writer");
        assert_eq!(container.await_exit().exit_code, 0, "{:?}", container.log());
        assert!(container.stdout().contains(shows), "{arguments:?}: {:?}", container.log());
        pod.remove();
    }
}
