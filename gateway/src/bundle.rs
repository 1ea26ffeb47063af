//! A container's bundle and sockets, made ahead: when a request waits for a container, nothing is
//! left to do but to create it.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kiln_runtime::template;
use kiln_wasm::annotations::{HANDLER, HTTP, HTTP_SETTING, MODE, VARIANT};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::config::{Function, Reuse, Source};
use crate::state::StateDir;

/// fd 3 takes requests, fd 4 is for the gateway.
const SOCKETS: u32 = 2;
/// Descriptors of a function's server, most of them connections and files of instances.
const DESCRIPTORS: u64 = 8192;

/// What a container needs to be created.
#[derive(Debug)]
pub struct Prepared {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its sockets.
    pub sockets: Sockets,
}

/// The listening sockets of a container, which are the gateway's as well: a connection that is made
/// before the container runs waits. When the container has ended, they are closed, and with them
/// whatever waited.
#[derive(Debug)]
pub struct Sockets {
    http: UnixListener,
    admin: UnixListener,
    /// Good in this process alone.
    pub http_path: PathBuf,
    /// Likewise.
    pub admin_path: PathBuf,
}

impl Sockets {
    fn make(state: &StateDir, id: &str) -> Result<Self> {
        let listen = |name: String| {
            let path = state.socket(&name);
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path);
            listener.with_context(|| format!("bind socket {name}")).map(|bound| (bound, path))
        };
        let (http, http_path) = listen(format!("{id}.http"))?;
        let (admin, admin_path) = listen(format!("{id}.admin"))?;
        // For the server that gets them.
        http.set_nonblocking(true)?;
        admin.set_nonblocking(true)?;
        Ok(Self { http, admin, http_path, admin_path })
    }

    /// Once more, for the container.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn for_container(&self) -> std::io::Result<Vec<OwnedFd>> {
        Ok(vec![self.http.try_clone()?.into(), self.admin.try_clone()?.into()])
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in [&self.http_path, &self.admin_path] {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Prepared {
    /// Makes bundle and sockets for a container.
    ///
    /// # Errors
    /// The module or the user's bundle is not there or not fit, or something cannot be made.
    pub fn make(state: &StateDir, function: &Function, id: &str) -> Result<Self> {
        let bundle = state.bundles().join(id);
        let config = config(function, &bundle, &state.cgroup().join(id))?;
        let rootfs = bundle.join("rootfs");
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&rootfs);
        made.with_context(|| format!("make {}", rootfs.display()))?;
        if let Source::Module(module) = &function.source {
            make_mount_points(&rootfs, &inside(module), &function.dirs)?;
        }
        let path = bundle.join("config.json");
        std::fs::write(&path, config.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { id: id.to_owned(), bundle, sockets: Sockets::make(state, id)? })
    }

    /// Removes the bundle of a container that is not there, or not any more.
    pub fn remove(bundle: &Path) {
        if let Err(error) = std::fs::remove_dir_all(bundle)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("remove {}: {error}", bundle.display());
        }
    }
}

/// That a bundle could be made for the function.
///
/// # Errors
/// As for [`Prepared::make`].
pub fn check(function: &Function) -> Result<()> {
    config(function, Path::new("/"), Path::new("/")).map(drop)
}

/// The module's path in its container.
fn inside(module: &Path) -> String {
    match module.extension().and_then(|extension| extension.to_str()) {
        Some("wat") => "/module.wat".to_owned(),
        _ => "/module.wasm".to_owned(),
    }
}

/// Where the mounts go in a root that is read-only in the container; else each creation would make
/// them.
fn make_mount_points(rootfs: &Path, module: &str, dirs: &[crate::config::Dir]) -> Result<()> {
    let below = |guest: &str| rootfs.join(guest.trim_start_matches('/'));
    std::fs::write(below(module), "").context("make the module's mount point")?;
    let guests = dirs.iter().map(|dir| dir.guest.as_str()).chain(["/dev", "/proc"]);
    for guest in guests {
        let path = below(guest);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

fn config(function: &Function, bundle: &Path, cgroup: &Path) -> Result<Value> {
    let (mut config, is_wasm) = match &function.source {
        Source::Module(module) => (of_module(function, module)?, true),
        Source::Bundle(source) => of_bundle(source)?,
    };
    let rootfs = bundle.join("rootfs");
    if let Source::Module(_) = function.source {
        config["root"] = json!({ "path": text(&rootfs)?, "readonly": true });
    }
    config["process"]["terminal"] = json!(false);
    config["linux"]["cgroupsPath"] = json!(text(cgroup)?);
    let mut env: Vec<String> =
        function.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    env.extend([format!("LISTEN_FDS={SOCKETS}"), "LISTEN_PID=1".to_owned()]);
    extend(&mut config["process"]["env"], env)?;
    extend(&mut config["process"]["args"], function.args.clone())?;
    for dir in &function.dirs {
        let host = std::fs::metadata(&dir.host);
        match host {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => bail!("dirs: {} is not a directory", dir.host.display()),
            Err(error) => return Err(error).context(format!("dirs: {}", dir.host.display())),
        }
        let mode = if dir.read_only { "ro" } else { "rw" };
        let mount = bind(&dir.host, &dir.guest, &[mode, "rbind", "nosuid", "nodev"])?;
        extend(&mut config["mounts"], vec![mount])?;
    }
    limit(&mut config["linux"]["resources"], function);
    if is_wasm {
        let http = |name: &str| format!("{HTTP_SETTING}{name}");
        let mut annotate = |name: String, value: String| {
            set(&mut config["annotations"], &name, Value::String(value));
        };
        annotate(MODE.to_owned(), HTTP.to_owned());
        if let Some(protocol) = function.protocol {
            annotate(http("protocol"), protocol.name().to_owned());
        }
        annotate(http("warm"), function.warm.to_string());
        annotate(http("max"), function.max.to_string());
        annotate(http("queue"), function.queue.to_string());
        annotate(http("timeout"), duration(function.timeout));
        match function.reuse {
            None => {}
            Some(Reuse::Often) => annotate(http("reuse"), "true".to_owned()),
            Some(Reuse::Times(number)) => annotate(http("reuse"), number.to_string()),
        }
        if let Some(handler) = &function.handler {
            annotate(http("handler"), handler.clone());
        }
        // An instance that wants more is told so, rather than killed with all others.
        if let Some(memory) = function.limits.memory {
            annotate(http("memory"), memory.to_string());
        }
    }
    Ok(config)
}

/// What `kiln spec` writes, with less: no capabilities, no terminal, no mounts but /dev and /proc.
fn of_module(function: &Function, module: &Path) -> Result<Value> {
    match std::fs::metadata(module) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => bail!("module {}: is not a file", module.display()),
        Err(error) => return Err(error).context(format!("module {}", module.display())),
    }
    let mut spec: Spec = template::linux();
    spec.set_hostname(Some(function.name.clone()));
    let mut config = serde_json::to_value(&spec).context("write the config")?;
    let inside = inside(module);
    let process = &mut config["process"];
    let none = json!([]);
    process["capabilities"] = json!({ "bounding": none, "effective": none, "permitted": none });
    process["noNewPrivileges"] = json!(true);
    process["user"] = json!({ "uid": function.user.0, "gid": function.user.1 });
    process["cwd"] = json!("/");
    process["args"] = json!([inside]);
    process["env"] = json!([]);
    process["rlimits"] =
        json!([{ "type": "RLIMIT_NOFILE", "hard": DESCRIPTORS, "soft": DESCRIPTORS }]);
    let mounts = config["mounts"].as_array_mut().context("the template has no mounts")?;
    mounts.retain(|mount| matches!(mount["destination"].as_str(), Some("/dev" | "/proc")));
    mounts.push(bind(module, &inside, &["ro", "bind", "nosuid", "nodev", "noexec"])?);
    config["annotations"] = json!({ VARIANT: "compat" });
    Ok(config)
}

/// The user's own config.json, which is to mean the same elsewhere; and whether it is wasm.
fn of_bundle(source: &Path) -> Result<(Value, bool)> {
    let path = source.join("config.json");
    let read = std::fs::read(&path).with_context(|| format!("bundle: {}", path.display()))?;
    let wrong = || format!("bundle: {}", path.display());
    let mut config: Value = serde_json::from_slice(&read).with_context(wrong)?;
    if !config["process"].is_object() {
        bail!("{}: has no process", wrong());
    }
    for stage in ["poststart", "poststop"] {
        if config["hooks"][stage].as_array().is_some_and(|hooks| !hooks.is_empty()) {
            bail!("{}: hooks.{stage} are not for functions", wrong());
        }
    }
    let root = config["root"]["path"].as_str().map(|root| source.join(root));
    let root = root.with_context(|| format!("{}: has no root.path", wrong()))?;
    config["root"]["path"] = json!(text(&root)?);
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let is_bind = mount["type"] == "bind"
            || mount["options"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one == "bind" || one == "rbind"));
        if let Some(from) = mount["source"].as_str().filter(|_| is_bind) {
            mount["source"] = json!(text(&source.join(from))?);
        }
    }
    let annotations = &config["annotations"];
    let is_wasm = [HANDLER, VARIANT].iter().any(|name| annotations[*name].is_string());
    Ok((config, is_wasm))
}

fn limit(resources: &mut Value, function: &Function) {
    set(resources, "pids", json!({ "limit": function.limits.pids }));
    if let Some(bytes) = function.limits.memory {
        set(resources, "memory", json!({ "limit": bytes, "swap": bytes }));
    }
    if let Some(milli) = function.limits.cpu_milli {
        const PERIOD: u64 = 100_000;
        set(
            resources,
            "cpu",
            json!({ "period": PERIOD, "quota": u64::from(milli) * PERIOD / 1000 }),
        );
    }
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Result<Value> {
    Ok(json!({
        "destination": destination, "type": "bind", "source": text(source)?, "options": options,
    }))
}

/// Adds to an object, which is made where there is none.
fn set(object: &mut Value, key: &str, value: Value) {
    match object {
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        other => *other = json!({ key: value }),
    }
}

fn extend<T: Into<Value>>(list: &mut Value, more: Vec<T>) -> Result<()> {
    if list.is_null() {
        *list = json!([]);
    }
    let list = list.as_array_mut().context("config.json: a list is none")?;
    list.extend(more.into_iter().map(Into::into));
    Ok(())
}

fn duration(time: std::time::Duration) -> String {
    humantime::format_duration(time).to_string().replace(' ', "")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn function(text: &str, base: &Path) -> Function {
        let text = format!("[[function]]\nname = 'f'\n{text}");
        Config::parse(&text, Path::new("f.toml"), base).unwrap().functions.remove(0)
    }

    #[test]
    fn a_module_is_alone_in_its_container() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f.wasm"), "").unwrap();
        let keys = "module = 'f.wasm'\nargs = ['-x']\nenv = { A = 'b' }\nmax = 3\ntimeout = '1500ms'\n\
                    limits = { memory = '64MiB', cpu = 0.5, pids = 9 }\n";
        let function = function(keys, dir.path());
        let config = config(&function, Path::new("/b"), Path::new("/g/f-1")).unwrap();
        assert_eq!(config["process"]["args"], json!(["/module.wasm", "-x"]));
        assert_eq!(config["process"]["env"], json!(["A=b", "LISTEN_FDS=2", "LISTEN_PID=1"]));
        assert_eq!(config["process"]["noNewPrivileges"], json!(true));
        assert_eq!(config["process"]["capabilities"]["bounding"], json!([]));
        assert_eq!(config["root"], json!({ "path": "/b/rootfs", "readonly": true }));
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], json!(64 << 20));
        assert_eq!(resources["cpu"]["quota"], json!(50_000));
        assert_eq!(resources["pids"]["limit"], json!(9));
        assert_eq!(config["annotations"]["module.wasm.image/http.timeout"], json!("1s500ms"));
        assert_eq!(config["annotations"]["module.wasm.image/mode"], json!("http"));
        let has = |kind: &str| {
            let namespaces = config["linux"]["namespaces"].as_array().unwrap();
            namespaces.iter().any(|one| one["type"] == kind && one["path"].is_null())
        };
        assert!(has("network") && has("pid") && has("mount") && has("ipc"));
        serde_json::from_value::<Spec>(config.clone()).unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let problem = |keys: &str| {
            let function = function(keys, dir.path());
            format!("{:#}", config(&function, Path::new("/b"), Path::new("/g")).unwrap_err())
        };
        assert!(problem("module = 'no.wasm'").contains("no.wasm: No such file"));
        assert!(problem("bundle = 'no'").contains("no/config.json: No such file"));
        std::fs::write(dir.path().join("f.wasm"), "").unwrap();
        assert!(problem("module = 'f.wasm'\ndirs = ['no:/x']").contains("dirs: "));
    }

    #[test]
    fn a_bundle_means_the_same_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let text = json!({
            "root": { "path": "rootfs" }, "process": { "args": ["/bin/x"] },
            "mounts": [{ "destination": "/a", "type": "bind", "source": "a", "options": ["bind"] }],
        });
        std::fs::write(dir.path().join("config.json"), text.to_string()).unwrap();
        let function = function("bundle = '.'\nargs = ['1']\n", dir.path());
        let config = config(&function, Path::new("/b"), Path::new("/g/f")).unwrap();
        let below = |name: &str| json!(dir.path().join(".").join(name).to_str().unwrap());
        assert_eq!(config["root"]["path"], below("rootfs"));
        assert_eq!(config["mounts"][0]["source"], below("a"));
        assert_eq!(config["process"]["args"], json!(["/bin/x", "1"]));
        assert!(config["annotations"].is_null());
    }
}
