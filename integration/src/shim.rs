//! containerd-shim-kiln-v1 without containerd: started as that starts it, called over its socket,
//! its events received. For what `ctr` cannot reach.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
    ExecProcessRequest, KillRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::ttrpc::proto::Code;
use rustix::fs::{FileType, Mode, OFlags};
use tempfile::TempDir;

use crate::console::readable;
use crate::ttrpc::{Answer, Client, Events};
use crate::{Bundle, Value, cgroup, command, containerd, eventually, fresh_id, json, leftovers};
use crate::{proc, reaper};

/// A shim, and what containerd is to it. When dropped its containers are killed and deleted, it is
/// shut down, and what stays behind fails the test.
#[derive(Debug)]
pub struct Shim {
    /// What it has told containerd.
    pub events: Events,
    home: TempDir,
    /// containerd's namespace, which no other shim on the machine has.
    pub namespace: String,
    /// The container that it is started for.
    pub id: String,
    /// The shim's process; 0 before its start.
    pub pid: i32,
    /// Its socket.
    pub socket: PathBuf,
    bundles: BTreeMap<String, Bundle>,
    _parent: cgroup::Parent,
}

/// How an action of the shim has ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit status.
    pub status: i32,
    /// Its answer.
    pub stdout: Vec<u8>,
    /// Its reasons.
    pub stderr: String,
}

impl Shim {
    /// Starts a shim for a container of this bundle.
    #[track_caller]
    pub fn start(bundle: Bundle) -> Self {
        let mut shim = Shim::prepare(bundle);
        let done = shim.action(&shim.id, &["start"], b"");
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
        shim.runs_at(std::str::from_utf8(&done.stdout).unwrap());
        shim
    }

    /// All but the start.
    pub fn prepare(bundle: Bundle) -> Self {
        reaper::start();
        let home = tempfile::Builder::new().prefix("ks-").tempdir().unwrap();
        let namespace = fresh_id();
        let events = Events::listen(&home.path().join("t.sock"));
        let _parent = cgroup::Parent(namespace.clone());
        let (bundles, socket) = (BTreeMap::new(), PathBuf::new());
        let mut shim =
            Shim { home, namespace, events, id: fresh_id(), pid: 0, socket, bundles, _parent };
        shim.add_as(&shim.id.clone(), bundle);
        shim
    }

    /// Notes where it listens, as its `start` has said, and which process it is.
    #[track_caller]
    pub fn runs_at(&mut self, address: &str) {
        let path = address.strip_prefix("unix://").unwrap_or_else(|| panic!("{address:?}"));
        self.socket = path.into();
        let pid = fs::read_to_string(self.bundle(&self.id).join("shim.pid")).unwrap();
        self.pid = pid.parse().unwrap();
    }

    /// Another container's bundle; returns its id.
    pub fn add(&mut self, bundle: Bundle) -> String {
        let id = fresh_id();
        self.add_as(&id, bundle);
        id
    }

    fn add_as(&mut self, id: &str, bundle: Bundle) {
        let bundle = bundle.set("/linux/cgroupsPath", json!(format!("/{}/{id}", self.namespace)));
        bundle.write();
        self.bundles.insert(id.to_owned(), bundle);
    }

    /// A container's bundle.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.bundles[id].path()
    }

    /// The folder of everything but the bundles.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The state root that the containers are created in: for the namespace.
    pub fn root(&self) -> PathBuf {
        self.home().join("r").join(&self.namespace)
    }

    /// Runs an action of the shim's in a container's bundle, as containerd does.
    #[track_caller]
    pub fn action(&self, id: &str, words: &[&str], stdin: &[u8]) -> Done {
        let mut command = Command::new(containerd::shim_binary().expect("a shim"));
        command.current_dir(self.bundle(id)).env("TTRPC_ADDRESS", self.events.path());
        command.args(["-namespace", &self.namespace, "-id", id, "-address"]);
        command.arg(self.home().join("c.sock")).args(["-publish-binary", "containerd"]).args(words);
        run(&mut command, stdin)
    }

    /// Starts a shim, and a container of this bundle in it.
    #[track_caller]
    pub fn run(bundle: Bundle) -> (Self, Client) {
        let shim = Self::start(bundle);
        let mut client = shim.client();
        client.create(&shim.request(&shim.id)).unwrap();
        client.start(&shim.id, "").unwrap();
        (shim, client)
    }

    /// The same with a container that sleeps.
    #[track_caller]
    pub fn sleeping() -> (Self, Client) {
        Self::run(Bundle::new().args(&["sleep", "1000"]))
    }

    /// Connects to it.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// What creates a container, without streams.
    pub fn request(&self, id: &str) -> CreateTaskRequest {
        let mut request = CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = self.bundle(id).to_str().unwrap().to_owned();
        let mut options = oci::Options::new();
        options.root = self.home().join("r").to_str().unwrap().to_owned();
        request.options = MessageField::some(any("containerd.runc.v1.Options", &options));
        request
    }

    /// A FIFO for a stream.
    pub fn fifo(&self) -> Fifo {
        Fifo::new(&self.home().join(fresh_id()))
    }

    /// Its children that have ended and were not waited for.
    pub fn zombies(&self) -> Vec<i32> {
        zombies(self.pid)
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// How long it has worked.
    pub fn cpu_time(&self) -> Duration {
        proc::cpu_time(self.pid)
    }

    /// Everything left of its containers, and of itself.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (id, bundle) in &self.bundles {
            left.extend(leftovers::find(id, &self.root(), bundle.home()));
        }
        if self.pid != 0 && proc::alive(self.pid) {
            left.push(format!("the shim, process {}", self.pid));
        }
        if self.socket.exists() {
            left.push(format!("the socket {}", self.socket.display()));
        }
        left
    }

    /// Kills and deletes whatever containers it has, and has it end.
    fn empty(&self) -> Result<(), String> {
        let mut client = self.client();
        client.socket.set_read_timeout(Some(crate::patience(10))).unwrap();
        for id in self.bundles.keys() {
            let since = Instant::now();
            loop {
                let _ = client.kill(id, "", 9, true);
                match client.delete(id, "") {
                    Ok(_) => break,
                    Err(refused) if refused.code == Code::NOT_FOUND => break,
                    Err(refused) if since.elapsed() > crate::patience(10) => {
                        return Err(format!("delete {id}: {refused:?}"));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }
        client.shutdown(&self.id, false).map_err(|refused| format!("shutdown: {refused:?}"))
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let mut left = Vec::new();
        if !std::thread::panicking() && self.pid != 0 && proc::alive(self.pid) {
            // One that is there for a moment is about to be reaped.
            let since = Instant::now();
            let mut zombies = self.zombies();
            while !zombies.is_empty() && since.elapsed() < crate::patience(2) {
                std::thread::sleep(Duration::from_millis(5));
                zombies = self.zombies();
            }
            left.extend(zombies.iter().map(|pid| format!("zombie {pid} of the shim")));
        }
        if self.pid != 0 && std::os::unix::net::UnixStream::connect(&self.socket).is_ok() {
            left.extend(self.empty().err());
        }
        let since = Instant::now();
        while !self.leftovers().is_empty() && since.elapsed() < crate::patience(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        left.extend(self.leftovers());
        if left.is_empty() {
            return;
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        for (id, bundle) in &self.bundles {
            leftovers::remove(id, bundle.home());
        }
        let _ = fs::remove_file(&self.socket);
        match std::thread::panicking() {
            true => eprintln!("left of the shim: {left:#?}"),
            false => panic!("left of the shim: {left:#?}"),
        }
    }
}

/// The Task API, as far as tests use it often.
impl Client {
    /// Create.
    #[track_caller]
    pub fn create(&mut self, request: &CreateTaskRequest) -> Answer<u32> {
        self.call("Create", request).map(|response: CreateTaskResponse| response.pid)
    }

    /// Start, of the container or of an exec.
    #[track_caller]
    pub fn start(&mut self, id: &str, exec_id: &str) -> Answer<u32> {
        let mut request = StartRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        self.call("Start", &request).map(|response: StartResponse| response.pid)
    }

    /// Wait; gives the exit status.
    #[track_caller]
    pub fn wait(&mut self, id: &str, exec_id: &str) -> Answer<u32> {
        let stream = self.send_wait(id, exec_id);
        self.answer(stream).map(|response: WaitResponse| response.exit_status)
    }

    /// Sends a Wait, for a later [`Client::answer`].
    pub fn send_wait(&mut self, id: &str, exec_id: &str) -> u32 {
        let mut request = WaitRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        self.send("Wait", &request)
    }

    /// State.
    #[track_caller]
    pub fn state(&mut self, id: &str, exec_id: &str) -> Answer<StateResponse> {
        let mut request = StateRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        self.call("State", &request)
    }

    /// Kill.
    #[track_caller]
    pub fn kill(&mut self, id: &str, exec_id: &str, signal: u32, all: bool) -> Answer<()> {
        let mut request = KillRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        (request.signal, request.all) = (signal, all);
        self.call("Kill", &request).map(|_: Empty| ())
    }

    /// Delete.
    #[track_caller]
    pub fn delete(&mut self, id: &str, exec_id: &str) -> Answer<DeleteResponse> {
        let mut request = DeleteRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        self.call("Delete", &request)
    }

    /// Exec, of this process (JSON); `change` sees the request before.
    #[track_caller]
    pub fn exec(
        &mut self,
        id: &str,
        exec_id: &str,
        process: &Value,
        change: impl FnOnce(&mut ExecProcessRequest),
    ) -> Answer<()> {
        let mut request = ExecProcessRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        let mut spec = Any::new();
        spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
        spec.value = process.to_string().into_bytes();
        request.spec = MessageField::some(spec);
        change(&mut request);
        self.call("Exec", &request).map(|_: Empty| ())
    }

    /// CloseIO of stdin.
    #[track_caller]
    pub fn close_stdin(&mut self, id: &str, exec_id: &str) -> Answer<()> {
        let mut request = CloseIORequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
        request.stdin = true;
        self.call("CloseIO", &request).map(|_: Empty| ())
    }

    /// Shutdown.
    #[track_caller]
    pub fn shutdown(&mut self, id: &str, now: bool) -> Answer<()> {
        let mut request = ShutdownRequest::new();
        (request.id, request.now) = (id.to_owned(), now);
        self.call("Shutdown", &request).map(|_: Empty| ())
    }

    /// Create, Start, Wait; gives the exit status.
    #[track_caller]
    pub fn run(&mut self, request: &CreateTaskRequest) -> u32 {
        self.create(request).unwrap();
        self.start(&request.id, "").unwrap();
        self.wait(&request.id, "").unwrap()
    }
}

/// A message as containerd's typeurl wraps it.
pub fn any(name: &str, message: &impl Message) -> Any {
    let mut any = Any::new();
    any.type_url = name.to_owned();
    any.value = message.write_to_bytes().unwrap();
    any
}

/// An exec's process, with what a spec must have.
pub fn process(args: &[&str]) -> Value {
    json!({ "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } })
}

/// The children of a process that have ended and were not waited for.
pub fn zombies(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.filter(|&child| !proc::alive(child)).collect()
}

/// A FIFO that the test reads, or writes, at its other end.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
    file: File,
}

impl Fifo {
    /// Makes it, for root alone as containerd does, and opens it for reading.
    pub fn new(path: &Path) -> Self {
        let mode = Mode::from_raw_mode(0o700);
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).unwrap();
        Fifo { path: path.to_path_buf(), file: Fifo::open(path, OFlags::RDONLY) }
    }

    /// Opens a FIFO without waiting for the other end.
    pub fn open(path: &Path, flags: OFlags) -> File {
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK).unwrap();
        file.into()
    }

    /// Its path, for a request.
    pub fn name(&self) -> String {
        self.path.to_str().unwrap().to_owned()
    }

    /// Where to write, once somebody reads.
    pub fn writer(&self) -> File {
        Fifo::open(&self.path, OFlags::WRONLY)
    }

    /// Writes as much as it takes; returns how much.
    pub fn fill(&self) -> usize {
        let mut writer = self.writer();
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        rustix::fs::fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
        std::iter::from_fn(|| writer.write(&[b'.'; 1024]).ok()).sum()
    }

    /// Reads until `end` was read, or nobody is left who could write.
    #[track_caller]
    pub fn read_until(&mut self, end: &str) -> String {
        let (mut text, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        while !String::from_utf8_lossy(&text).contains(end) {
            let got = || String::from_utf8_lossy(&text);
            assert!(readable(&self.file, crate::patience(20)), "only got {:?}", got());
            match self.file.read(&mut chunk).unwrap() {
                0 => break,
                count => text.extend_from_slice(&chunk[..count]),
            }
        }
        String::from_utf8(text).unwrap()
    }

    /// Reads until nobody is left who could write.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            assert!(readable(&self.file, crate::patience(20)), "no end after {}", bytes.len());
            match self.file.read(&mut chunk).unwrap() {
                0 => return bytes,
                count => bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

/// Runs a command to its end. What it leaves running holds no pipe of ours.
#[track_caller]
fn run(command: &mut Command, input: &[u8]) -> Done {
    let file = || tempfile::tempfile().unwrap();
    let (mut stdin, mut stdout, mut stderr) = (file(), file(), file());
    stdin.write_all(input).unwrap();
    stdin.seek(SeekFrom::Start(0)).unwrap();
    command.stdin(stdin).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let mut child = reaper::spawn(command);
    let Some(status) = command::wait_child(&mut child, crate::patience(20)) else {
        reaper::end(&mut child);
        panic!("{command:?} does not end");
    };
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let (stdout, stderr) = (read(&mut stdout), read(&mut stderr));
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Done { status: status.code().unwrap_or(-1), stdout, stderr }
}

/// Waits until a process has ended, whoever its parent is.
#[track_caller]
pub fn await_end(pid: i32) {
    eventually(&format!("the end of process {pid}"), || !proc::alive(pid));
}

/// Skips the calling test where there is no shim of kiln's.
#[macro_export]
macro_rules! needs_shim {
    () => {
        if let Some(reason) = $crate::containerd::Shim::Kiln.missing() {
            $crate::skip!("{reason}");
        }
    };
}
