//! Lookups in real directories. `Tree` is a host: a rootfs and, beside it, what must not be
//! reached from inside and what is bind mounted.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use oci_spec::runtime::{Mount, MountBuilder};
use tempfile::TempDir;

use super::*;

struct Tree {
    dir: TempDir,
    spec: Spec,
}

impl Tree {
    /// `/app` and `/opt/bin/tool` in the rootfs; `secret` and `src/lib/mod` outside of it.
    fn new(args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        for sub in ["rootfs/opt/bin", "rootfs/etc", "src/lib"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        for (path, text) in [
            ("rootfs/app", "inside"),
            ("rootfs/opt/bin/tool", "tool"),
            ("secret", "outside"),
            ("src/lib/mod", "mounted"),
            ("src/single", "single"),
        ] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        let mut spec = Spec::default();
        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(args.iter().map(ToString::to_string).collect()));
        process.set_env(Some(vec!["PATH=/usr/bin:/opt/bin".to_owned()]));
        spec.set_process(Some(process)).set_mounts(None);
        Tree { dir, spec }
    }

    fn link(self, target: &str, at: &str) -> Self {
        symlink(target, self.dir.path().join("rootfs").join(at)).unwrap();
        self
    }

    fn cwd(mut self, cwd: &str) -> Self {
        self.spec.process_mut().as_mut().unwrap().set_cwd(cwd.into());
        self
    }

    fn env(mut self, env: &[&str]) -> Self {
        let env = env.iter().map(ToString::to_string).collect();
        self.spec.process_mut().as_mut().unwrap().set_env(Some(env));
        self
    }

    fn mount(mut self, mount: Mount) -> Self {
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        self.spec.set_mounts(Some(mounts));
        self
    }

    /// Bind mounts a path beside the rootfs.
    fn bind(self, source: &str, destination: &str) -> Self {
        let source = self.dir.path().join(source);
        self.mount(mount(&source.to_string_lossy(), destination, "none", &["rbind", "ro"]))
    }

    fn tmpfs(self, destination: &str) -> Self {
        self.mount(mount("tmpfs", destination, "tmpfs", &["nosuid"]))
    }

    fn locate(&self) -> Result<Located, Error> {
        let rootfs = File::open(self.dir.path().join("rootfs")).unwrap();
        locate(&self.spec, rootfs.as_fd())
    }

    fn text(&self) -> String {
        match self.locate() {
            Ok(Located::Found(entrypoint)) => contents(entrypoint),
            Ok(Located::Deferred(_)) => "deferred".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

fn contents(entrypoint: Entrypoint) -> String {
    let mut text = String::new();
    File::from(entrypoint.file).read_to_string(&mut text).unwrap();
    text
}

fn mount(source: &str, destination: &str, typ: &str, options: &[&str]) -> Mount {
    MountBuilder::default()
        .source(source)
        .destination(destination)
        .typ(typ)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
        .unwrap()
}

#[test]
fn absolute_and_relative_paths() {
    assert_eq!(Tree::new(&["/app"]).text(), "inside");
    assert_eq!(Tree::new(&["//opt/./bin/../../app"]).text(), "inside");
    assert_eq!(Tree::new(&["./app"]).cwd("/").text(), "inside");
    assert_eq!(Tree::new(&["bin/tool"]).cwd("/opt").text(), "tool");
    assert_eq!(Tree::new(&["../../../../app"]).cwd("/opt").text(), "inside");
}

#[test]
fn bare_names_are_searched() {
    assert_eq!(Tree::new(&["tool"]).text(), "tool");
    assert_eq!(Tree::new(&["app"]).text(), "inside", "below the root, as crun does");
    assert_eq!(Tree::new(&["app"]).env(&["PATH="]).text(), "inside", "empty means cwd");
    assert_eq!(Tree::new(&["tool"]).env(&[]).cwd("/opt/bin").text(), "tool");
    assert_eq!(Tree::new(&["tool"]).env(&["PATH=bin"]).cwd("/opt").text(), "tool");
    assert_eq!(
        Tree::new(&["tool"]).env(&[]).text(),
        "entrypoint \"tool\": executable file not found in $PATH \
         (looked for /bin/tool, /usr/bin/tool, /tool)"
    );
    // A directory on the way is passed over, as execvp(3) does.
    assert_eq!(Tree::new(&["bin"]).env(&["PATH=/opt"]).text(), {
        "entrypoint /opt/bin: permission denied: a directory, not a regular file"
    });
    let tree = Tree::new(&["app"]).env(&["PATH=/opt:/"]);
    fs::create_dir(tree.dir.path().join("rootfs/opt/app")).unwrap();
    assert_eq!(tree.text(), "inside");
}

#[test]
fn nothing_to_look_for() {
    assert!(matches!(Tree::new(&[]).locate(), Err(Error::NoEntrypoint)));
    assert!(matches!(Tree::new(&[""]).locate(), Err(Error::NoEntrypoint)));
    let mut tree = Tree::new(&["/app"]);
    tree.spec.set_process(None);
    assert!(matches!(tree.locate(), Err(Error::NoEntrypoint)));
}

#[test]
fn links_stay_inside() {
    let secret = |tree: &Tree| tree.dir.path().join("secret").to_string_lossy().into_owned();
    let tree = Tree::new(&["/link"]);
    let target = secret(&tree);
    let text = tree.link(&target, "link").text();
    assert!(text.contains("looked for"), "{text}");
    let text = Tree::new(&["/link"]).link("../../secret", "link").text();
    assert!(text.contains("looked for"), "{text}");
    let text = Tree::new(&["/etc/up/secret"]).link("../..", "etc/up").text();
    assert!(text.contains("looked for"), "{text}");
    // The same links with something there inside.
    assert_eq!(Tree::new(&["/link"]).link("/app", "link").text(), "inside");
    assert_eq!(Tree::new(&["/link"]).link("../../../app", "link").text(), "inside");
    assert_eq!(Tree::new(&["/etc/up/app"]).link("../..", "etc/up").text(), "inside");
    assert_eq!(Tree::new(&["/b/tool"]).link("opt", "o").link("/o/bin", "b").text(), "tool");
}

#[test]
fn loops_end() {
    let text = Tree::new(&["/a"]).link("b", "a").link("a", "b").text();
    assert_eq!(text, "entrypoint /a: open: Too many levels of symbolic links (os error 40)");
}

#[test]
fn procfs_links_are_not_followed() {
    let exe = |tree: Tree| tree.link("/proc/self/exe", "exe");
    let text = exe(Tree::new(&["/exe"])).text();
    assert!(text.contains("looked for"), "{text}");
    let proc = mount("proc", "/proc", "proc", &[]);
    assert_eq!(exe(Tree::new(&["/exe"])).mount(proc).text(), "deferred");
    // The host's procfs in the container, as a privileged pod may have it.
    let proc = || mount("/proc", "/proc", "bind", &["rbind"]);
    for entrypoint in ["/exe", "/proc/self/exe", "/proc/1/exe"] {
        let text = exe(Tree::new(&[entrypoint])).mount(proc()).text();
        assert!(text.contains("Too many levels of symbolic links"), "{text}");
    }
}

#[test]
fn only_regular_files() {
    let fifo = Tree::new(&["/fifo"]);
    let path = fifo.dir.path().join("rootfs/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, 0o644.into(), 0).unwrap();
    assert_eq!(fifo.text(), "entrypoint /fifo: permission denied: a fifo, not a regular file");
    assert_eq!(
        Tree::new(&["/null"]).mount(mount("/dev/null", "/null", "none", &["bind"])).text(),
        "entrypoint /null: permission denied: a character device, not a regular file"
    );
    assert_eq!(
        Tree::new(&["/etc"]).text(),
        "entrypoint /etc: permission denied: a directory, not a regular file"
    );
    assert!(Tree::new(&["/app/x"]).text().contains("looked for"));
    assert!(Tree::new(&["/app/../app"]).text().contains("looked for"));
}

#[test]
fn bind_mounts_cover_the_rootfs() {
    assert_eq!(Tree::new(&["/mnt/lib/mod"]).bind("src", "/mnt").text(), "mounted");
    assert_eq!(Tree::new(&["/app"]).bind("src/single", "/app").text(), "single");
    assert!(Tree::new(&["/opt/bin/tool"]).bind("src", "/opt").text().contains("looked for"));
    assert!(Tree::new(&["/app/x"]).bind("src/single", "/app").text().contains("looked for"));
    assert_eq!(Tree::new(&["/mod"]).bind("src/lib", "/").text(), "mounted");
    // The option alone or the type alone makes a bind mount.
    for (typ, options) in [("bind", &[][..]), ("", &["bind"]), ("none", &["rbind"])] {
        let tree = Tree::new(&["/mnt/mod"]);
        let source = tree.dir.path().join("src/lib").to_string_lossy().into_owned();
        assert_eq!(tree.mount(mount(&source, "/mnt", typ, options)).text(), "mounted");
    }
}

#[test]
fn links_lead_into_mounts_and_out_of_them() {
    // Into a mount of which the rootfs has not even the directory.
    let tree = Tree::new(&["/link"]).link("/mnt/lib/mod", "link").bind("src", "/mnt");
    assert_eq!(tree.text(), "mounted");
    let tree = Tree::new(&["/l/mod"]).link("mnt/lib", "l").bind("src", "/mnt");
    assert_eq!(tree.text(), "mounted");
    // Absolute and upward links in the source mean the container's root, not the host's.
    for target in ["/app", "../app", "../../../../app"] {
        let tree = Tree::new(&["/mnt/out"]).bind("src", "/mnt");
        symlink(target, tree.dir.path().join("src/out")).unwrap();
        assert_eq!(tree.text(), "inside", "{target}");
    }
    for target in ["/secret", "../secret"] {
        let tree = Tree::new(&["/mnt/out"]).bind("src", "/mnt");
        symlink(target, tree.dir.path().join("src/out")).unwrap();
        assert!(tree.text().contains("looked for"), "{target}");
    }
    // A destination behind a link: /run is what /var/run leads to.
    let tree = Tree::new(&["/run/x/mod"]).bind("src/lib", "/var/run/x");
    fs::create_dir(tree.dir.path().join("rootfs/var")).unwrap();
    assert_eq!(tree.link("../run", "var/run").text(), "mounted");
}

#[test]
fn other_mounts_defer() {
    assert_eq!(Tree::new(&["/tmp/mod"]).tmpfs("/tmp").text(), "deferred");
    assert_eq!(Tree::new(&["/opt/bin/tool"]).tmpfs("/opt").text(), "deferred");
    assert_eq!(Tree::new(&["/app"]).tmpfs("/opt").text(), "inside");
    assert!(Tree::new(&["/opt2"]).tmpfs("/opt").text().contains("looked for"));
    // Along PATH: what a tmpfs hides may come first.
    assert_eq!(Tree::new(&["tool"]).tmpfs("/usr").text(), "deferred");
    let relative = mount("src", "/mnt", "bind", &[]);
    assert_eq!(Tree::new(&["/mnt/lib/mod"]).mount(relative).text(), "deferred");
    assert_eq!(Tree::new(&["/mnt/x"]).bind("gone", "/mnt").text(), "deferred");
}

#[test]
fn the_last_mount_wins() {
    let tree = || Tree::new(&["/mnt/lib/mod"]);
    assert_eq!(tree().tmpfs("/mnt").bind("src", "/mnt").text(), "mounted");
    assert_eq!(tree().bind("src", "/mnt").tmpfs("/mnt").text(), "deferred");
    assert_eq!(tree().bind("src", "/mnt").tmpfs("/mnt/lib").text(), "deferred");
    assert_eq!(tree().tmpfs("/mnt").bind("src/lib", "/mnt/lib").text(), "mounted");
    // Mounted over by its parent, although its own destination is longer.
    assert_eq!(tree().bind("src/lib", "/mnt/lib").tmpfs("/mnt").text(), "deferred");
}

#[test]
fn deferred_entrypoints_open_once_the_mounts_are_there() {
    let tree = Tree::new(&["/opt/bin/tool"]).tmpfs("/opt");
    let Located::Deferred(candidates) = tree.locate().unwrap() else { panic!("found") };
    let rootfs = File::open(tree.dir.path().join("rootfs")).unwrap();
    assert_eq!(contents(candidates.open(rootfs.as_fd()).unwrap()), "tool");
    fs::remove_file(tree.dir.path().join("rootfs/opt/bin/tool")).unwrap();
    symlink("../../../secret", tree.dir.path().join("rootfs/opt/bin/tool")).unwrap();
    assert!(matches!(candidates.open(rootfs.as_fd()), Err(Error::NotFound { .. })));
}

#[test]
fn bytes_at_the_start() {
    let magic = |bytes: &[u8]| {
        let tree = Tree::new(&["/app"]);
        fs::write(tree.dir.path().join("rootfs/app"), bytes).unwrap();
        let Located::Found(entrypoint) = tree.locate().unwrap() else { panic!("deferred") };
        entrypoint.starts_with_magic().unwrap()
    };
    assert!(magic(b"\0asm") && magic(b"\0asm\x01\0\0\0"));
    assert!(!magic(b"") && !magic(b"\0as") && !magic(b"\x7fELF\x02"));
}
