//! `start`: containerd wants a shim for a container, and gets the address of one: of the pod's, if
//! that is there, else of one that is forked here and outlives this process.
//!
//! The answer is the bare address, which containerd 1.6 to 2.2 take for that of a shim of version 2.
//! From 2.3 on parameters come as a protobuf on stdin, and so does the answer.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use kiln_runtime::sealed;
use kiln_runtime::sys::{self, Cloned, CloseRange};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error};
use crate::events::Publisher;
use crate::facts::Facts;
use crate::flags::Flags;
use crate::frames;
use crate::jobs;
use crate::logger;
use crate::options::Options;
use crate::server::{Listener, Server};

/// Where shims' sockets are, unless containerd says.
const SOCKETS: &str = "/run/containerd/s";
/// What is read of stdin at the most, as by Go's shims.
const MAX_INPUT: u64 = 10 << 20;
/// The version of the Task API that is announced to those who ask: `containerd.task.v3.Task`.
const TASK_API: i32 = 3;

/// What containerd has said.
#[derive(Debug, Default)]
struct Parameters {
    /// containerd's ttrpc socket, for events.
    events: String,
    /// Its gRPC socket.
    address: String,
    sockets: Option<String>,
    options: Option<Any>,
    /// Whether the answer is to be a protobuf.
    bootstrap: bool,
}

/// The whole action. In the new shim it does not return before that ends.
///
/// # Errors
/// There can be no shim.
pub fn start(flags: &Flags) -> Result<(), Error> {
    // The containers' init is this executable until it executes theirs.
    sealed::ensure()?;
    // Nothing is open yet but what the caller has forgotten: it would stay so as long as the shim.
    sys::close_range(3, CloseRange::Close).step("close descriptors")?;
    let parameters = Parameters::read(flags)?;
    let bundle = std::env::current_dir().step("find the bundle")?;
    let facts = Facts::read(&bundle)?;
    let group = facts.group().unwrap_or(&flags.id);
    let sockets = parameters.sockets.as_deref().unwrap_or(SOCKETS);
    let socket = socket_path(sockets, &parameters.address, &flags.namespace, group);
    let address = format!("unix://{}", socket.display());
    if let Some(listener) = listen(&socket)? {
        spawn(flags, &parameters, listener, &socket, &facts).inspect_err(|_| {
            let _ = std::fs::remove_file(&socket);
        })?;
    }
    // Where containerd 1.6 looks for it after a restart.
    write("address", &address)?;
    std::io::stdout().write_all(&parameters.answer(address)).step("answer")
}

impl Parameters {
    fn read(flags: &Flags) -> Result<Self, Error> {
        let mut input = Vec::new();
        if !rustix::termios::isatty(rustix::stdio::stdin()) {
            std::io::stdin().take(MAX_INPUT).read_to_end(&mut input).step("read stdin")?;
        }
        let variable = |name| std::env::var(name).unwrap_or_default();
        let parameters = match bootstrap(&input, flags)? {
            Some(parameters) => parameters,
            None => Self {
                events: variable("TTRPC_ADDRESS"),
                address: flags.address.clone(),
                options: Any::parse_from_bytes(&input).ok().filter(|any| !any.type_url.is_empty()),
                ..Self::default()
            },
        };
        match parameters.events.is_empty() {
            true => Err(Error::Flag("TTRPC_ADDRESS is not set: containerd starts shims".into())),
            false => Ok(parameters),
        }
    }

    fn answer(&self, address: String) -> Vec<u8> {
        if !self.bootstrap {
            return address.into_bytes();
        }
        let mut result = BootstrapResult::new();
        result.version = TASK_API;
        result.address = address;
        "ttrpc".clone_into(&mut result.protocol);
        result.write_to_bytes().unwrap_or_default()
    }
}

/// What containerd 2.3 sends. Older ones send options, if anything, which can be read as that, too:
/// then the type's name stands where the id should.
fn bootstrap(input: &[u8], flags: &Flags) -> Result<Option<Parameters>, Error> {
    let Ok(sent) = BootstrapParams::parse_from_bytes(input) else { return Ok(None) };
    if input.is_empty() || sent.containerd_ttrpc_address.is_empty() {
        return Ok(None);
    }
    if sent.instance_id != flags.id || sent.namespace != flags.namespace {
        return Err(Error::Request {
            field: "stdin",
            problem: format!("is for {}/{}", sent.namespace, sent.instance_id),
        });
    }
    let mut extensions = sent.extensions.into_iter().filter_map(|one| one.value.into_option());
    Ok(Some(Parameters {
        events: sent.containerd_ttrpc_address,
        address: sent.containerd_grpc_address,
        sockets: sent.socket_dir.filter(|dir| !dir.is_empty()),
        options: extensions.find(|any| any.type_url.ends_with("Options")),
        bootstrap: true,
    }))
}

/// As containerd's own: a digest of what tells shims apart, because a socket's path has 108 bytes.
fn socket_path(sockets: &str, address: &str, namespace: &str, group: &str) -> PathBuf {
    let name = Path::new(address).join(namespace).join(group);
    let digest = Sha256::digest(name.as_os_str().as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(sockets).join(hex)
}

/// Listens there, for this user only; None if the group's shim does already.
fn listen(socket: &Path) -> Result<Option<UnixListener>, Error> {
    if let Some(dir) = socket.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
        made.file("make", dir)?;
    }
    let _lock = lock(socket)?;
    let bind = || {
        let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(socket);
        rustix::process::umask(mask);
        bound
    };
    match bind() {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if frames::listens(socket) {
                return Ok(None);
            }
            // Of one that was killed.
            std::fs::remove_file(socket).file("remove", socket)?;
            bind().file("listen on", socket).map(Some)
        }
        bound => bound.file("listen on", socket).map(Some),
    }
}

/// Keeps others from taking the socket of a shim that has died for theirs to remove, or to listen
/// on, while this process does. A socket that is bound is not listening yet, and looks dead.
///
/// # Errors
/// The directory cannot be opened.
pub fn lock(socket: &Path) -> Result<OwnedFd, Error> {
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = rustix::fs::open(dir, flags, Mode::empty()).file("open", dir)?;
    // The kernel unlocks it when it is closed.
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).file("lock", dir)?;
    Ok(lock)
}

/// Forks the shim, which serves from here on.
fn spawn(
    flags: &Flags,
    parameters: &Parameters,
    listener: UnixListener,
    socket: &Path,
    facts: &Facts,
) -> Result<(), Error> {
    let options = Options::read(parameters.options.as_ref())?;
    listener.set_nonblocking(true).step("prepare the socket")?;
    // The shim is born with all of them blocked.
    sys::block_signals();
    match sys::clone3(0, None).step("fork")? {
        Cloned::Parent { pid, .. } => introduce(&options, pid).inspect_err(|_| end(pid)),
        Cloned::Child => {
            let served =
                detach(flags).and_then(|()| serve(flags, parameters, listener, socket, facts));
            if let Err(error) = served {
                log::error!("{error}");
                let _ = std::fs::remove_file(socket);
                sys::exit_now(1);
            }
            sys::exit_now(0)
        }
    }
}

/// What the new shim needs others to do for it.
fn introduce(options: &Options, pid: i32) -> Result<(), Error> {
    write("shim.pid", &pid.to_string())?;
    enter_cgroup(options, pid)?;
    // It goes after its containers, and before containerd.
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", parent()));
    let score = score.ok().and_then(|score| score.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let path = format!("/proc/{pid}/oom_score_adj");
        let _ = std::fs::write(path, (score + 1).min(1000).to_string());
    }
    Ok(())
}

/// Ends a shim that nobody will know of.
fn end(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}

fn parent() -> i32 {
    rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get())
}

/// The option ShimCgroup.
fn enter_cgroup(options: &Options, pid: i32) -> Result<(), Error> {
    if options.shim_cgroup.is_empty() {
        return Ok(());
    }
    let path = Path::new(&options.shim_cgroup);
    let entered = kiln_cgroups::resolve(Some(path), "shim").and_then(|paths| {
        let cgroup = kiln_cgroups::Cgroup::create(&paths)?;
        cgroup.attach(pid)
    });
    Ok(entered.map_err(kiln_runtime::Error::from)?)
}

/// In the shim: a session of its own, nothing of containerd's but the log.
fn detach(flags: &Flags) -> Result<(), Error> {
    logger::init(&flags.id, flags.debug);
    rustix::process::setsid().step("detach")?;
    let (null, access) = (OsStr::new("/dev/null"), OFlags::RDWR | OFlags::CLOEXEC);
    let null = rustix::fs::open(null, access, Mode::empty()).file("open", "/dev/null")?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .step("detach")?;
    // Whatever containers leave behind becomes our child, and is reaped.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).step("detach")?;
    rustix::process::set_parent_process_death_signal(None::<Signal>).step("detach")?;
    jobs::raise_limit();
    std::env::set_current_dir("/").step("detach")
}

fn serve(
    flags: &Flags,
    parameters: &Parameters,
    listener: UnixListener,
    socket: &Path,
    facts: &Facts,
) -> Result<(), Error> {
    let publisher = Publisher::new(&parameters.events, &flags.namespace);
    let address = PathBuf::from(&parameters.address);
    let listener = Listener { socket: listener, path: socket.to_path_buf() };
    let mut server = Server::new(listener, publisher, flags.namespace.clone(), address)?;
    // While containerd reads our answer.
    if facts.may_be_wasm()
        && let Err(error) = server.warm.start()
    {
        log::warn!("{error}");
    }
    server.run()
}

fn write(name: &str, text: &str) -> Result<(), Error> {
    let new = format!("{name}.new");
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, name)).file("write", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_containerd_would_have_it() {
        // containerd-shim's own test has this digest.
        let path = socket_path(SOCKETS, "/run/containerd/containerd.sock", "default", "123");
        let digest = "0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0";
        assert_eq!(path, Path::new(SOCKETS).join(digest));
    }

    #[test]
    fn two_forms_of_parameters() {
        let flags = Flags { id: "c".into(), namespace: "n".into(), ..Flags::default() };
        let mut sent = BootstrapParams::new();
        (sent.instance_id, sent.namespace) = ("c".into(), "n".into());
        sent.containerd_ttrpc_address = "/c.ttrpc".into();
        let read = bootstrap(&sent.write_to_bytes().unwrap(), &flags).unwrap().unwrap();
        assert_eq!(read.events, "/c.ttrpc");
        assert_ne!(read.answer("unix:///s".into()), b"unix:///s");
        sent.instance_id = "other".into();
        assert!(bootstrap(&sent.write_to_bytes().unwrap(), &flags).is_err());

        let mut any = Any::new();
        any.type_url = "containerd.runc.v1.Options".into();
        assert!(bootstrap(&any.write_to_bytes().unwrap(), &flags).unwrap().is_none());
        assert!(bootstrap(b"", &flags).unwrap().is_none());
        assert_eq!(Parameters::default().answer("unix:///s".into()), b"unix:///s");
    }

    #[test]
    fn one_listens_and_the_dead_make_room() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s/socket");
        let listener = listen(&socket).unwrap().unwrap();
        assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o077, 0);
        assert!(listen(&socket).unwrap().is_none());
        drop(listener);
        assert!(listen(&socket).unwrap().is_some());
    }
}
