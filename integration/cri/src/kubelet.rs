//! What the kubelet does with a pod's manifest: sandbox, containers, probes, and the end.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kiln_integration::containerd::{Containerd, Shim};
use kiln_integration::image::Image;
use kiln_integration::{Cli, Value, binary, cgroup, eventually, fresh_id, proc};
use tempfile::TempDir;

use crate::api::{
    Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, IdMapping,
    ImageSpec, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile, Signed, UserNamespace,
};
use crate::client::{Answer, Client};
use crate::log::{self, Line};
use crate::manifest::{ContainerSpec, Manifest, PodSpec, Probe, SecurityContext, milli};

/// What the kubelet has hidden of /proc, and made read-only.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where the ids of a pod with a user namespace begin on the host.
pub const HOST_IDS: u32 = 1 << 20;

/// A pod that runs, or did. When dropped it is stopped and removed, and what stays behind fails the
/// test.
#[derive(Debug)]
pub struct Pod<'a> {
    containerd: &'a Containerd,
    /// CRI itself, for what the pod's methods do not cover.
    pub client: Client,
    /// The sandbox's id.
    pub sandbox: String,
    manifest: Manifest,
    config: PodSandboxConfig,
    uid: String,
    home: TempDir,
    made: Mutex<Vec<Made>>,
    namespaces: Vec<PathBuf>,
    ip: String,
    removed: bool,
}

/// A container that was made.
#[derive(Clone, Debug)]
struct Made {
    id: String,
    /// By [`Pod::remove_container`].
    removed: bool,
}

/// One container of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    client: Client,
    log: PathBuf,
    termination_log: PathBuf,
}

/// Imports an image for CRI, once, and waits until CRI knows it.
#[track_caller]
pub fn import(containerd: &Containerd, name: &str, make: impl FnOnce(&Path) -> Image) {
    static DONE: Mutex<Option<HashSet<(PathBuf, String)>>> = Mutex::new(None);
    // Two imports of one blob at a time get in each other's way.
    let mut done = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let key = (containerd.home().to_path_buf(), name.to_owned());
    if done.get_or_insert_default().insert(key) {
        let image = make(containerd.home());
        containerd.import_into("k8s.io", &image);
        Client::new(containerd).await_image(name);
    }
}

/// Makes the image that a manifest names: `busybox:VERSION`, or `localhost/kiln/EXAMPLE:TAG` as
/// `deploy/README.md` says. Those of `localhost/kiln-test` are the test's to import.
#[track_caller]
fn provide(containerd: &Containerd, name: &str) {
    match name.strip_prefix("localhost/kiln/").and_then(|rest| rest.split_once(':')) {
        Some((example, _)) => {
            let module = format!("{example}.wasm");
            import(containerd, name, |folder| match binary::is_kiln() {
                true => Image::packed(name, &module, folder),
                // Another runtime, to check the tests with.
                false => Image::of_example(name, &module, folder),
            });
        }
        None if name.starts_with("busybox:") => {
            let name = format!("docker.io/library/{name}");
            import(containerd, &name, |folder| Image::busybox(&name, folder));
        }
        None if name.starts_with("localhost/kiln-test/") => {}
        None => panic!("no recipe for image {name}"),
    }
}

impl<'a> Pod<'a> {
    /// The whole pod: its sandbox, and its containers one after the other.
    #[track_caller]
    pub fn run(containerd: &'a Containerd, shim: Shim, manifest: &Manifest) -> Self {
        let pod = Pod::sandbox(containerd, shim, manifest);
        for container in &manifest.spec.containers {
            pod.start(&container.name);
        }
        pod
    }

    /// The sandbox alone.
    #[track_caller]
    pub fn sandbox(containerd: &'a Containerd, shim: Shim, manifest: &Manifest) -> Self {
        for container in &manifest.spec.containers {
            provide(containerd, &container.image);
        }
        let (client, uid, home) =
            (Client::new(containerd), fresh_id(), tempfile::tempdir().unwrap());
        let config = sandbox_config(manifest, &uid, home.path(), &containerd.namespace);
        fs::write(home.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        let sandbox = client
            .run_pod_sandbox(&config, shim.handler())
            .unwrap_or_else(|err| panic!("RunPodSandbox: {err}"));
        let status = client.pod_sandbox_status(&sandbox).unwrap();
        let info: Value = serde_json::from_str(&status.info["info"]).unwrap();
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap().iter();
        Pod {
            containerd,
            client,
            sandbox,
            manifest: manifest.clone(),
            config,
            uid,
            home,
            made: Mutex::default(),
            namespaces: namespaces.filter_map(|one| Some(one["path"].as_str()?.into())).collect(),
            ip: status.status.unwrap().network.unwrap_or_default().ip,
            removed: false,
        }
    }

    /// CreateContainer of a container in the manifest.
    pub fn create(&self, name: &str) -> Answer<Container> {
        let spec = self.manifest.container(name);
        let number = self.made().len();
        let config = self.container_config(spec, u32::try_from(number).unwrap());
        let id = self.client.create_container(&self.sandbox, &config, &self.config)?;
        self.made().push(Made { id: id.clone(), removed: false });
        let log = Path::new(&self.config.log_directory).join(config.log_path);
        let termination_log = self.termination_log(name);
        Ok(Container { id, client: self.client.clone(), log, termination_log })
    }

    /// Creates and starts a container of the manifest.
    #[track_caller]
    pub fn start(&self, name: &str) -> Container {
        let container = self.create(name).unwrap_or_else(|err| panic!("CreateContainer: {err}"));
        container.start().unwrap_or_else(|err| panic!("StartContainer: {err}"));
        container
    }

    /// The container of this name, of which there is one.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        let specs = self.manifest.spec.containers.iter();
        let at = specs.map(|spec| &spec.name).position(|other| other == name).unwrap();
        let id = self.made()[at].id.clone();
        let log = Path::new(&self.config.log_directory).join(format!("{name}/{at}.log"));
        let termination_log = self.termination_log(name);
        Container { id, client: self.client.clone(), log, termination_log }
    }

    /// Its address.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    /// The process of the sandbox's own container.
    pub fn pause_pid(&self) -> i32 {
        let status = self.client.pod_sandbox_status(&self.sandbox).unwrap();
        let info: Value = serde_json::from_str(&status.info["info"]).unwrap();
        i32::try_from(info["pid"].as_i64().unwrap()).unwrap()
    }

    /// A volume of the pod, on the host.
    pub fn volume(&self, name: &str) -> PathBuf {
        let path = self.home.path().join("volumes").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Probes a container once; the reason if it is found unwell.
    pub fn probe(&self, probe: &Probe, container: &Container) -> Result<(), String> {
        let timeout = probe.timeout_seconds.unwrap_or(1);
        if let Some(exec) = &probe.exec {
            let words: Vec<&str> = exec.command.iter().map(|word| &**word).collect();
            let outcome = container.exec_timeout(&words, timeout).map_err(|err| err.to_string())?;
            return match outcome.exit_code {
                0 => Ok(()),
                code => Err(format!("exit status {code}")),
            };
        }
        let get = probe.http_get.as_ref().unwrap();
        let timeout = Duration::from_secs(timeout.cast_unsigned());
        let answer =
            http_get(self.ip(), get.port, &get.path, timeout).map_err(|err| err.to_string())?;
        match answer.split(' ').nth(1) {
            Some(code) if code.starts_with(['2', '3']) => Ok(()),
            _ => Err(answer),
        }
    }

    /// Stops all containers, with the pod's grace period, and then the sandbox.
    #[track_caller]
    pub fn stop(&self) {
        let grace = self.manifest.spec.termination_grace_period_seconds.unwrap_or(30);
        for id in self.present() {
            self.client.stop_container(&id, grace).unwrap();
        }
        self.client.stop_pod_sandbox(&self.sandbox).unwrap();
    }

    /// Removes one container.
    #[track_caller]
    pub fn remove_container(&self, container: &Container) {
        self.client.remove_container(&container.id).unwrap();
        let mut made = self.made();
        let own = made.iter_mut().find(|made| made.id == container.id);
        own.unwrap().removed = true;
    }

    /// Removes it all, and asserts that nothing is left. It need not be stopped.
    #[track_caller]
    pub fn remove(mut self) {
        self.stop();
        let left = self.remove_all();
        assert!(left.is_empty(), "left of pod {}: {left:#?}", self.manifest.metadata.name);
    }

    fn made(&self) -> MutexGuard<'_, Vec<Made>> {
        self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The containers that CRI must know.
    fn present(&self) -> Vec<String> {
        let made = self.made();
        made.iter().filter(|made| !made.removed).map(|made| made.id.clone()).collect()
    }

    fn termination_log(&self, name: &str) -> PathBuf {
        self.home.path().join(format!("termination-{name}"))
    }

    fn container_config(&self, spec: &ContainerSpec, number: u32) -> ContainerConfig {
        let pod = &self.manifest.spec;
        let mut mounts: Vec<Mount> = spec
            .volume_mounts
            .iter()
            .map(|mount| {
                let volume = self.volume(&mount.name);
                let mount = bind(&volume, &mount.mount_path, mount.read_only);
                Mount { uids: ids(pod), gids: ids(pod), ..mount }
            })
            .collect();
        mounts.push(bind(&self.home.path().join("hosts"), "/etc/hosts", false));
        let termination_log = self.termination_log(&spec.name);
        fs::write(&termination_log, "").unwrap();
        mounts.push(bind(&termination_log, "/dev/termination-log", false));
        let envs = spec
            .env
            .iter()
            .map(|variable| KeyValue { key: variable.name.clone(), value: variable.value.clone() });
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt: number }),
            image: Some(ImageSpec { image: spec.image.clone() }),
            command: spec.command.clone(),
            args: spec.args.clone(),
            working_dir: spec.working_dir.clone(),
            envs: envs.collect(),
            mounts,
            labels: HashMap::from([("io.kubernetes.container.name".into(), spec.name.clone())]),
            annotations: HashMap::new(),
            log_path: format!("{}/{number}.log", spec.name),
            stdin: spec.stdin,
            stdin_once: false,
            tty: spec.tty,
            linux: Some(LinuxContainerConfig {
                resources: Some(resources(spec)),
                security_context: Some(security_context(pod, &spec.security_context)),
            }),
        }
    }

    /// Removes the pod by CRI, and what is the kubelet's to remove. What is left, in words.
    fn remove_all(&mut self) -> Vec<String> {
        self.removed = true;
        self.containerd.note_shims();
        let mut left = Vec::new();
        let mut note = |what: &str, answer: Answer<_>| {
            left.extend(answer.err().map(|err| format!("{what}: {err}")));
        };
        note("StopPodSandbox", self.client.stop_pod_sandbox(&self.sandbox));
        for id in self.present() {
            note("RemoveContainer", self.client.remove_container(&id));
        }
        note("RemovePodSandbox", self.client.remove_pod_sandbox(&self.sandbox));
        let since = Instant::now();
        // A shim ends by itself, a little after its last task.
        let mut rest = self.leftovers();
        while !rest.is_empty() && since.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(20));
            rest = self.leftovers();
        }
        left.extend(rest);
        for dir in cgroup::directories_of(&self.uid).iter().rev() {
            left.extend(fs::remove_dir(dir).err().map(|err| format!("cgroup {dir:?}: {err}")));
        }
        left
    }

    fn leftovers(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.made().iter().map(|made| made.id.clone()).collect();
        ids.push(self.sandbox.clone());
        let has_id = |text: &str| ids.iter().any(|id| text.contains(&**id));
        let mut left = Vec::new();
        for mount in proc::mounts("self") {
            let point = mount.point.display().to_string();
            if has_id(&point) || self.namespaces.contains(&mount.point) {
                left.push(format!("mount on {point}"));
            }
        }
        for pid in proc::pids() {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = [read("cmdline"), read("cgroup")].concat();
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            if proc::alive(pid) && (has_id(&text) || text.contains(&self.uid)) {
                left.push(format!("process {pid}: {text}"));
            }
        }
        for dir in ids.iter().flat_map(|id| cgroup::directories_of(id)) {
            left.push(format!("cgroup {}", dir.display()));
        }
        let folders = [
            self.containerd.kiln_root().join("k8s.io"),
            // With containerd 2.x and kiln's shim.
            "/run/kiln/k8s.io".into(),
            self.containerd.bundle("k8s.io", ""),
        ];
        for state in ids.iter().flat_map(|id| folders.iter().map(move |dir| dir.join(id))) {
            if state.exists() {
                left.push(format!("state {}", state.display()));
            }
        }
        if !self.ip.is_empty() {
            let route = Cli::new(["route", "show", &self.ip]).binary("ip").output().ok().stdout;
            left.extend(route.lines().map(|line| format!("route {line}")));
        }
        left
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let left = self.remove_all();
        let report = format!("left of pod {}: {left:#?}", self.manifest.metadata.name);
        // A second panic would abort the test program and hide the first.
        match (left.is_empty(), std::thread::panicking()) {
            (true, _) => {}
            (false, true) => eprintln!("{report}"),
            (false, false) => panic!("{report}"),
        }
    }
}

impl Container {
    /// StartContainer.
    pub fn start(&self) -> Answer<()> {
        self.client.start_container(&self.id).map(|_| ())
    }

    /// ContainerStatus.
    #[track_caller]
    pub fn status(&self) -> ContainerStatus {
        self.client.container_status(&self.id).unwrap()
    }

    /// Waits until it has exited, and gives its status.
    #[track_caller]
    pub fn await_exit(&self) -> ContainerStatus {
        let mut status = self.status();
        eventually(&format!("the end of {}", self.id), || {
            status = self.status();
            status.state() == ContainerState::Exited
        });
        status
    }

    /// Its process, as the host has it.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let info = self.client.container_info(&self.id).unwrap();
        i32::try_from(info["pid"].as_i64().unwrap()).unwrap()
    }

    /// Its log, in the form of CRI.
    #[track_caller]
    pub fn log(&self) -> Vec<Line> {
        log::parse(&fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// What it has written to stdout.
    #[track_caller]
    pub fn stdout(&self) -> String {
        log::text_of(&self.log(), "stdout")
    }

    /// What it has written to stderr.
    #[track_caller]
    pub fn stderr(&self) -> String {
        log::text_of(&self.log(), "stderr")
    }

    /// Waits until its stdout has this text.
    #[track_caller]
    pub fn await_stdout(&self, text: &str) {
        eventually(&format!("{text:?} from {}", self.id), || self.stdout().contains(text));
    }

    /// What it has written to /dev/termination-log.
    pub fn termination_message(&self) -> String {
        fs::read_to_string(&self.termination_log).unwrap_or_default()
    }

    /// ExecSync, for at most ten seconds.
    pub fn exec(&self, command: &[&str]) -> Answer<Executed> {
        self.exec_timeout(command, 10)
    }

    /// ExecSync, for at most so many seconds.
    pub fn exec_timeout(&self, command: &[&str], timeout: i64) -> Answer<Executed> {
        let answer = self.client.exec_sync(&self.id, command, timeout)?;
        Ok(Executed {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            exit_code: answer.exit_code,
        })
    }
}

/// What ExecSync gave.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Executed {
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i32,
}

fn sandbox_config(manifest: &Manifest, uid: &str, home: &Path, parent: &str) -> PodSandboxConfig {
    let (metadata, containers) = (&manifest.metadata, &manifest.spec.containers);
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: metadata.name.clone(),
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        // The node's, if that is where the pod is.
        hostname: if manifest.spec.host_network { String::new() } else { metadata.name.clone() },
        log_directory: home.join("logs").display().to_string(),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        linux: Some(LinuxPodSandboxConfig {
            // The kubelet's is /kubepods/burstable/podUID or the like.
            cgroup_parent: format!("/{parent}/pod{uid}"),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(&manifest.spec)),
                privileged: containers.iter().any(|one| one.security_context.privileged),
                seccomp: Some(SecurityProfile { profile_type: 0 }),
            }),
        }),
    }
}

/// The pod's network, or the node's; a pid namespace per container, or the pod's; the pod's IPC; a
/// user namespace, if the pod is not to have the host's users.
fn namespaces(pod: &PodSpec) -> NamespaceOption {
    let ids = ids(pod);
    let users = UserNamespace { mode: 0, uids: ids.clone(), gids: ids };
    NamespaceOption {
        network: if pod.host_network { 2 } else { 0 },
        pid: if pod.share_process_namespace { 0 } else { 1 },
        ipc: 0,
        userns_options: (!users.uids.is_empty()).then_some(users),
    }
}

/// Where a pod's users and groups are on the host, if it has its own.
fn ids(pod: &PodSpec) -> Vec<IdMapping> {
    match pod.host_users {
        Some(false) => vec![IdMapping { host_id: HOST_IDS, container_id: 0, length: 1 << 16 }],
        _ => Vec::new(),
    }
}

fn bind(host: &Path, container: &str, readonly: bool) -> Mount {
    let (container_path, host_path) = (container.to_owned(), host.display().to_string());
    Mount { container_path, host_path, readonly, ..Mount::default() }
}

fn resources(spec: &ContainerSpec) -> LinuxContainerResources {
    let of = |table: &std::collections::BTreeMap<String, String>, name: &str| {
        table.get(name).map_or(0, |quantity| milli(quantity))
    };
    let limits = &spec.resources.limits;
    for name in limits.keys().chain(spec.resources.requests.keys()) {
        assert!(["cpu", "memory"].contains(&&**name), "resource {name}");
    }
    let request = match of(&spec.resources.requests, "cpu") {
        0 => of(limits, "cpu"),
        request => request,
    };
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: of(limits, "cpu") * 100,
        cpu_shares: (request * 1024 / 1000).max(2),
        memory_limit_in_bytes: of(limits, "memory") / 1000,
        oom_score_adj: 1000,
    }
}

fn security_context(spec: &PodSpec, container: &SecurityContext) -> LinuxContainerSecurityContext {
    let pod = &spec.security_context;
    let profile = container.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref());
    let profile_type = match profile.map(|profile| &*profile.r#type) {
        Some("RuntimeDefault") => 0,
        None | Some("Unconfined") => 1,
        Some(other) => panic!("seccomp profile {other}"),
    };
    let escalation =
        container.allow_privilege_escalation.or(pod.allow_privilege_escalation).unwrap_or(true);
    let all = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add: container.capabilities.add.clone(),
            drop: container.capabilities.drop.clone(),
        }),
        privileged: container.privileged,
        namespace_options: Some(namespaces(spec)),
        run_as_user: container.run_as_user.or(pod.run_as_user).map(|value| Signed { value }),
        readonly_rootfs: container.read_only_root_filesystem,
        no_new_privs: !escalation,
        masked_paths: all(MASKED),
        readonly_paths: all(READ_ONLY),
        seccomp: Some(SecurityProfile { profile_type }),
    }
}

/// The first line of the answer to a GET.
fn http_get(ip: &str, port: u16, path: &str, timeout: Duration) -> std::io::Result<String> {
    let address = format!("{ip}:{port}").parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {ip}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}
