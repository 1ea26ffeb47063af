//! The configuration of a containerd of the tests', for 1.x and 2.x.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use super::{PAUSE, Shim};
use crate::{Cli, binary};

/// The major version of the containerd that is installed.
pub fn major() -> u32 {
    static MAJOR: OnceLock<u32> = OnceLock::new();
    *MAJOR.get_or_init(|| {
        let text = Cli::new(["--version"]).binary("containerd").output().ok().stdout;
        let version = text.split_whitespace().nth(2).unwrap_or_default();
        let major = version.trim_start_matches('v').split('.').next().unwrap_or_default();
        major.parse().unwrap_or_else(|_| panic!("containerd --version printed {text:?}"))
    })
}

/// The whole file: everything below `home`, the runtimes as `deploy/` has them.
pub fn configuration(home: &Path, cri: bool) -> String {
    let home_text = home.display();
    let mut disabled = vec!["io.containerd.nri.v1.nri"];
    if !cri {
        disabled.extend(["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"]);
        disabled.extend(["io.containerd.cri.v1.images"]);
    }
    let (version, cri_tables) = match major() {
        1 => (2, cri_v2(home)),
        _ => (3, cri_v3(home)),
    };
    let daemon = format!(
        r#"
version = {version}
root = "{home_text}/d"
state = "{home_text}/s"
disabled_plugins = {disabled:?}

[grpc]
address = "{home_text}/c.sock"

[ttrpc]
address = "{home_text}/t.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{home_text}/opt"
"#
    );
    let mut text = daemon;
    if cri {
        text += &cri_tables;
        text += &runtime(Shim::Runc, home, version);
        text += &runtime(Shim::Kiln, home, version);
    }
    text
}

/// Without CAP_SYS_RESOURCE nobody may lower an OOM score. runc is there to compare with.
fn cri_v2(home: &Path) -> String {
    let (home, snapshotter) = (home.display(), snapshotter());
    format!(
        r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stats_collect_period = 1

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{home}/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// The same for 2.x.
fn cri_v3(home: &Path) -> String {
    let (home, snapshotter) = (home.display(), snapshotter());
    format!(
        r#"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"
stats_collect_period = 1

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{home}/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// What `deploy/` has for the shim, with the paths of the tests and a handler of its own: there,
/// either is "kiln".
fn runtime(shim: Shim, home: &Path, version: u32) -> String {
    let name = match shim {
        Shim::Runc => "runc-shim",
        Shim::Kiln => "kiln-shim",
    };
    let path = binary::workspace().join(format!("deploy/containerd/{name}-v{version}.toml"));
    let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let handler = format!("runtimes.{}", shim.handler());
    let mut text = text
        .replace("runtimes.kiln", &handler)
        .replace("/usr/local/bin/kiln", binary::path().to_str().unwrap())
        .replace("/run/kiln", home.join("r").to_str().unwrap());
    // Not with 2.x, see there: then the state is in /run/kiln.
    if shim == Shim::Kiln && version == 2 {
        let table = text.lines().find(|line| line.ends_with(&format!(".{handler}]"))).unwrap();
        let options = table.replace(']', ".options]");
        text += &format!("\n{options}\nConfigPath = {:?}\n", home.join("shim.toml"));
    }
    text
}

/// overlayfs, unless the temporary folder is itself on one that does not stack.
pub fn snapshotter() -> &'static str {
    static OVERLAY: OnceLock<bool> = OnceLock::new();
    match OVERLAY.get_or_init(|| overlay_works().is_some()) {
        true => "overlayfs",
        false => "native",
    }
}

fn overlay_works() -> Option<()> {
    let home = tempfile::tempdir().ok()?;
    let [lower, upper, work, at] = ["l", "u", "w", "m"].map(|name| home.path().join(name));
    for dir in [&lower, &upper, &work, &at] {
        fs::create_dir(dir).ok()?;
    }
    let options = ["lowerdir", "upperdir", "workdir"].iter().zip([lower, upper, work]);
    let options: Vec<_> = options.map(|(name, dir)| format!("{name}={}", dir.display())).collect();
    let options = std::ffi::CString::new(options.join(",")).ok()?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", &at, "overlay", flags, Some(options.as_c_str())).ok()?;
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).ok()
}
