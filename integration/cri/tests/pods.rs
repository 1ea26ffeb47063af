//! The pods of `deploy/`, run as the kubelet would.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};

use kiln_integration::containerd::{Containerd, Shim};
use kiln_integration::image::Image;
use kiln_integration::{
    Cli, cgroup, eventually, examples, for_each_shim, needs_cgroup_library, needs_wasm, proc, skip,
};
use kiln_integration_cri::api::ContainerState;
use kiln_integration_cri::manifest::{self, RuntimeClass};
use kiln_integration_cri::{Manifest, Pod, import};

for_each_shim!(
    hello,
    wasi_demo,
    a_module_and_a_sidecar,
    limits,
    statistics,
    a_probe,
    a_function,
    the_sandboxs_own_container_is_linux,
    the_other_annotation
);

fn hello(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &Manifest::load("pods/hello"));
    let hello = pod.container("hello");
    let status = hello.await_exit();
    assert_eq!((status.exit_code, &*status.reason), (0, "Completed"), "{status:?}");
    // containerd looks at the clock for started_at only when all is over.
    assert!(status.finished_at > status.created_at, "{status:?}");
    assert_eq!(hello.stdout(), "hello from wasm\n");
    pod.remove();
}

fn wasi_demo(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &Manifest::load("pods/wasi-demo"));
    let demo = pod.container("demo");
    let status = demo.await_exit();
    assert_eq!(status.exit_code, 0, "{status:?} {:?}", demo.log());
    let log = demo.log();
    let has = |text: &str| log.iter().any(|line| line.stream == "stdout" && line.text == text);
    for line in [
        "argument 0: /wasi-demo.wasm",
        "argument 1: one",
        "argument 2: two words",
        "environment: DEMO_FILE=/data/demo.txt",
        "environment: HOSTNAME=wasi-demo",
        "file /data/demo.txt: written and read back",
    ] {
        assert!(has(line), "no {line:?} in {log:?}");
    }
    assert!(log.iter().all(|line| line.full));
    let file = pod.volume("data").join("demo.txt");
    assert_eq!(fs::read_to_string(file).unwrap(), "written and read back");
    pod.remove();
}

fn a_module_and_a_sidecar(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let manifest = Manifest::load("pods/sidecar");
    let pod = Pod::run(&containerd, shim, &manifest);
    let (writer, server) = (pod.container("writer"), pod.container("server"));
    let status = writer.await_exit();
    assert_eq!(status.exit_code, 0, "{status:?} {:?}", writer.log());
    let probe = manifest.container("server").readiness_probe.clone().unwrap();
    eventually("the sidecar to be ready", || pod.probe(&probe, &server).is_ok());
    // One network: the module's page, by the sidecar, from a third process.
    let page =
        server.exec(&["busybox", "wget", "-qO-", "http://127.0.0.1:8080/index.html"]).unwrap();
    assert_eq!((page.exit_code, &*page.stdout), (0, "written by wasm"), "{page:?}");
    let other = manifest::Probe {
        http_get: Some(manifest::HttpGet { path: "/gone".to_owned(), port: 8080 }),
        ..manifest::Probe::default()
    };
    assert!(pod.probe(&other, &server).unwrap_err().contains("404"));
    let refused = server.exec(&["touch", "/page/new"]).unwrap();
    assert_ne!(refused.exit_code, 0, "{refused:?}");
    pod.remove();
}

fn limits(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &Manifest::load("pods/limits"));
    let sleeper = pod.container("sleeper");
    sleeper.await_stdout("sleeping");
    let pid = sleeper.pid();
    let setting = |controller, v1, v2| cgroup::setting(pid, controller, v1, v2).unwrap();
    assert_eq!(setting("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    if cgroup::is_v2() {
        assert_eq!(setting("cpu", "-", "cpu.max"), "50000 100000");
    } else {
        assert_eq!(setting("cpu", "cpu.cfs_quota_us", "-"), "50000");
        assert_eq!(setting("cpu", "cpu.shares", "-"), "102");
    }
    let field = |name: &str| proc::status_field(pid, name).unwrap();
    assert!(field("Uid").starts_with("1000"));
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!((&*field("NoNewPrivs"), &*field("Seccomp")), ("1", "2"));
    pod.remove();
}

fn statistics(shim: Shim) {
    needs_wasm!();
    needs_cgroup_library!(shim);
    let containerd = Containerd::shared(true);
    for (manifest, container) in [("pods/limits", "sleeper"), ("pods/http", "sort")] {
        let pod = Pod::run(&containerd, shim, &Manifest::load(manifest));
        let stats = pod.client.stats(&pod.container(container).id).unwrap();
        let working_set = stats.memory.unwrap().working_set_bytes.unwrap().value;
        assert!((1 << 16..64 << 20).contains(&working_set), "{container}: {working_set}");
        pod.remove();
    }
}

fn a_probe(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let manifest = Manifest::load("pods/probe");
    let pod = Pod::run(&containerd, shim, &manifest);
    let sleeper = pod.container("sleeper");
    sleeper.await_stdout("sleeping");
    let probe = manifest.container("sleeper").liveness_probe.clone().unwrap();
    pod.probe(&probe, &sleeper).unwrap();
    let exec = |words: &[&str]| {
        let command = words.iter().map(|&word| word.to_owned()).collect();
        manifest::Probe { exec: Some(manifest::ExecAction { command }), ..probe.clone() }
    };
    // A probe that hangs fails as one that says no does.
    let hangs = manifest::Probe { timeout_seconds: Some(1), ..exec(&["/sleep.wasm", "100"]) };
    assert!(pod.probe(&hangs, &sleeper).unwrap_err().contains("timeout"));
    assert!(pod.probe(&exec(&["/gone.wasm"]), &sleeper).is_err());
    assert_eq!(sleeper.status().state(), ContainerState::Running);
    pod.remove();
}

fn a_function(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let manifest = Manifest::load("pods/http");
    let pod = Pod::run(&containerd, shim, &manifest);
    let sort = pod.container("sort");
    // At once: the port was open before the container was said to run.
    let answer = post(pod.ip(), r#"{"args":["1111","2345","8","99","-10000"]}"#);
    let answer =
        answer.unwrap_or_else(|error| panic!("{error}: {:?} {:?}", sort.status(), sort.log()));
    assert!(answer.ends_with(r#"{"status":0,"output":["-10000 8 99 1111 2345"]}"#), "{answer}");
    let probe = manifest.container("sort").readiness_probe.clone().unwrap();
    pod.probe(&probe, &sort).unwrap();

    let pid = sort.pid();
    let field = |name: &str| proc::status_field(pid, name).unwrap();
    assert!(field("Uid").starts_with("1000"));
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!((&*field("NoNewPrivs"), &*field("Seccomp")), ("1", "2"));
    let limit = cgroup::setting(pid, "memory", "memory.limit_in_bytes", "memory.max").unwrap();
    assert_eq!(limit, "134217728");

    // Once, and not as a server: what is executed beside it is a program.
    let exec = sort.exec(&["/sort.wasm", "2", "1"]).unwrap();
    assert_eq!((exec.exit_code, &*exec.stdout), (0, "1 2\n"), "{exec:?}");

    // Frozen, and answered once it is not any more.
    let task = |verb: &str| containerd.ctr_in("k8s.io", &["tasks", verb, &sort.id]).output().ok();
    task("pause");
    let ip = pod.ip().to_owned();
    let waiting = std::thread::spawn(move || post(&ip, r#"{"args":["2","1"]}"#));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!waiting.is_finished(), "answered while it was frozen");
    task("resume");
    let answer = waiting.join().unwrap().unwrap();
    assert!(answer.ends_with(r#"["1 2"]}"#), "{answer}");

    let begun = std::time::Instant::now();
    pod.client.stop_container(&sort.id, 20).unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    let status = sort.status();
    assert_eq!(status.exit_code, 0, "{status:?} {}", sort.stderr());
    pod.remove();
}

/// Posts to a function; the whole answer.
fn post(ip: &str, body: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect((ip, 10086))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
    let length = body.len();
    write!(stream, "POST / HTTP/1.1\r\nHost: sort\r\nConnection: close\r\n")?;
    write!(stream, "Content-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn the_other_annotation(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    for value in ["wasm", "wasmedge", "wasm-smart"] {
        let mut manifest = Manifest::load("pods/hello");
        let annotation = ("run.oci.handler".to_owned(), value.to_owned());
        manifest.metadata.annotations = HashMap::from([annotation]);
        let pod = Pod::run(&containerd, shim, &manifest);
        let hello = pod.container("hello");
        assert_eq!(hello.await_exit().exit_code, 0, "{value}: {:?}", hello.log());
        assert_eq!(hello.stdout(), "hello from wasm\n");
        pod.remove();
    }
}

/// The module as the image's layer: nothing is unpacked, and runc's shim has no way to it.
#[test]
fn an_artifact() {
    needs_wasm!();
    if let Some(reason) = Shim::Kiln.missing() {
        skip!("{reason}");
    }
    let containerd = Containerd::shared(true);
    let name = "localhost/kiln-test/hello-artifact:1";
    import(&containerd, name, |folder| {
        let module = examples::find("hello.wasm").unwrap();
        let archive = folder.join("artifact.tar");
        let pack = Cli::new(["image", "pack", "--format", "artifact", "-t", name]);
        pack.arg("-o").arg(&archive).arg(module).output().ok();
        Image { name: name.to_owned(), archive }
    });
    let mut manifest = Manifest::load("pods/hello");
    name.clone_into(&mut manifest.first().image);
    let pod = Pod::run(&containerd, Shim::Kiln, &manifest);
    let hello = pod.container("hello");
    assert_eq!(hello.await_exit().exit_code, 0, "{:?}", hello.log());
    assert_eq!(hello.stdout(), "hello from wasm\n");
    pod.remove();
}

/// It gets the pod's annotations, too.
fn the_sandboxs_own_container_is_linux(shim: Shim) {
    let containerd = Containerd::shared(true);
    for value in ["compat", "compat-smart"] {
        let mut manifest = Manifest::load("pods/hello");
        let annotations = &mut manifest.metadata.annotations;
        annotations.insert("module.wasm.image/variant".to_owned(), value.to_owned());
        let pod = Pod::sandbox(&containerd, shim, &manifest);
        let config = containerd.bundle("k8s.io", &pod.sandbox).join("config.json");
        let config: kiln_integration::Value =
            serde_json::from_str(&fs::read_to_string(config).unwrap()).unwrap();
        assert_eq!(config["annotations"]["module.wasm.image/variant"], value);
        let exe = fs::read_link(format!("/proc/{}/exe", pod.pause_pid())).unwrap();
        assert_eq!(exe.to_str(), Some("/pause"));
        pod.remove();
    }
}

/// What the harness reads is what the documentation names.
#[test]
fn the_runtime_class_names_the_configured_handler() {
    let class = RuntimeClass::load("runtimeclass");
    let table = format!("containerd.runtimes.{}]", class.handler);
    for name in ["runc-shim-v2", "runc-shim-v3", "kiln-shim-v2", "kiln-shim-v3"] {
        let path = manifest::folder().join(format!("containerd/{name}.toml"));
        assert!(fs::read_to_string(path).unwrap().contains(&table), "{name}");
    }
    for entry in fs::read_dir(manifest::folder().join("pods")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let pod = Manifest::load(&format!("pods/{}", name.trim_end_matches(".yaml")));
        assert_eq!(pod.spec.runtime_class_name, class.metadata.name, "{name}");
    }
}

/// The configuration for containerd 2.x, which is not here, says what the other one does.
#[test]
fn both_versions_of_the_configuration_are_one() {
    let settings = |name: &str| {
        let path = manifest::folder().join(format!("containerd/{name}.toml"));
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines
            .map(|line| {
                line.replace("\"io.containerd.grpc.v1.cri\"", "'io.containerd.cri.v1.runtime'")
            })
            .collect::<Vec<_>>()
    };
    for shim in ["runc-shim", "kiln-shim"] {
        assert_eq!(settings(&format!("{shim}-v2")), settings(&format!("{shim}-v3")));
    }
}
