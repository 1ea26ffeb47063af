//! `kiln serve MODULE` as a test runs it: on ports that the kernel chooses, with a check at its end
//! that no process of it is left.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::wait_child;
use crate::http::{Address, Answer};
use crate::{Cli, eventually, examples, patience, proc, reaper};

/// Where there is no cache, and none can be made: what is served is interpreted.
const NO_CACHE: &str = "/proc/no-such-cache";

/// A server that is about to be started.
#[derive(Debug)]
pub struct Serving {
    home: TempDir,
    module: PathBuf,
    listen: String,
    flags: Vec<String>,
    args: Vec<String>,
    wrapper: Vec<String>,
    cache: PathBuf,
}

impl Serving {
    /// Of an example, by its name without `.wasm`.
    ///
    /// # Panics
    /// If the example is not built; [`crate::needs_wasm!`] comes first.
    pub fn example(name: &str) -> Self {
        let file = format!("{name}.wasm");
        let from = examples::find(&file).unwrap_or_else(|| panic!("{file} is not built"));
        let home = tempfile::Builder::new().prefix("kiln-it-").tempdir().unwrap();
        // A copy in a place of its own: that is in the command line of every process of the server.
        let module = home.path().join(file);
        fs::copy(from, &module).unwrap();
        let (listen, cache) = ("127.0.0.1:0".to_owned(), NO_CACHE.into());
        // For whoever is not root.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (flags, args, wrapper) = (Vec::new(), Vec::new(), Vec::new());
        Serving { home, module, listen, flags, args, wrapper, cache }
    }

    /// Its temporary folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Adds flags, split at blanks.
    pub fn flags(mut self, flags: &str) -> Self {
        self.flags.extend(flags.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds one flag as it is.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// The module's arguments before a request's.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// Listens there and not at a port of the kernel's choice.
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// Runs it under another program, such as one that makes it another user's.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// With these bytes as the module.
    pub fn module(name: &str, bytes: &[u8]) -> Self {
        let serving = Serving::example("hello");
        let module = serving.home().join(name);
        fs::write(&module, bytes).unwrap();
        Serving { module, ..serving }
    }

    /// With a cache in its own folder, empty at first: the module is compiled while it is served.
    pub fn cache(mut self) -> Self {
        self.cache = self.home().join("cache");
        self
    }

    /// With the module in such a cache already.
    pub fn compiled(self) -> Self {
        let serving = self.cache();
        let warm = Cli::new(["aot", "warm"]).arg(&serving.module);
        warm.env("KILN_CACHE_DIR", &serving.cache).output().ok();
        serving
    }

    /// The command line.
    pub fn cli(&self) -> Cli {
        let cli = Cli::new(["serve", "--listen", &self.listen, "--admin", "127.0.0.1:0"]);
        let cli = cli.args(&self.flags).arg(&self.module).args(&self.args);
        cli.env("KILN_CACHE_DIR", &self.cache).under(&self.wrapper)
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn start(self) -> Server {
        reaper::start();
        let log = self.home().join("log");
        let mut command = self.cli().command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let child = reaper::spawn(&mut command);
        let nowhere = Address::port(1);
        let mut server = Server {
            child: Some(child),
            address: nowhere.clone(),
            admin: nowhere,
            log,
            serving: self,
        };
        let mut said = String::new();
        eventually("the server to say where it listens", || {
            said = server.log();
            let ended = server.child.as_mut().and_then(|child| wait_child(child, Duration::ZERO));
            if let Some(status) = ended {
                server.child = None;
                panic!("the server ended with {status}: {said}");
            }
            said.lines().filter(|line| line.contains(" at ")).count() == 2 && said.ends_with('\n')
        });
        let mut places = said.lines().filter_map(|line| Some(line.rsplit_once(" at ")?.1));
        let mut address = || places.next().and_then(|at| Some(Address::Tcp(at.parse().ok()?)));
        let first = address();
        server.address = match server.serving.listen.strip_prefix("unix:") {
            Some(path) => Address::Unix(path.into()),
            None => first.unwrap(),
        };
        server.admin = address().unwrap();
        server
    }
}

/// A server that runs. When dropped it is killed, and a process that it leaves behind fails the test.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    /// Where it answers.
    pub address: Address,
    /// Where it tells of itself.
    pub admin: Address,
    log: PathBuf,
    serving: Serving,
}

impl Server {
    /// The server's own process.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id().cast_signed()
    }

    /// That of the workers' parent, once it is there: the server says before where it listens.
    #[track_caller]
    pub fn parent(&self) -> i32 {
        let mut children = Vec::new();
        eventually("the server to have one child", || {
            children = proc::children(self.pid());
            children.retain(|pid| proc::alive(*pid));
            children.len() == 1
        });
        children[0]
    }

    /// All processes of it.
    pub fn processes(&self) -> Vec<i32> {
        processes(self.serving.home())
    }

    /// What it has said on its standard error.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        File::open(&self.log).unwrap().read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its temporary folder.
    pub fn home(&self) -> &Path {
        self.serving.home()
    }

    /// Calls the function with these arguments, by the protocol `keeper`.
    #[track_caller]
    pub fn call(&self, args: &[&str]) -> Answer {
        self.address.post(json!({ "args": args }).to_string())
    }

    /// The lines that a call has printed, which must succeed.
    #[track_caller]
    pub fn lines(&self, args: &[&str]) -> Vec<String> {
        let answer = self.call(args).is(200).json();
        let lines = answer["output"].as_array().unwrap_or_else(|| panic!("{answer}"));
        lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    }

    /// What `/stats` says.
    #[track_caller]
    pub fn stats(&self) -> Value {
        self.admin.get("/stats").is(200).json()
    }

    /// One number of that.
    #[track_caller]
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.stats();
        stats[name].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}"))
    }

    /// Sends the server's own process a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        match wait_child(&mut child, patience(60)) {
            Some(status) => status,
            None => {
                self.child = Some(child);
                panic!("the server has not ended: {}", self.log());
            }
        }
    }

    /// Asserts that no process of it is there any more.
    #[track_caller]
    pub fn assert_no_process(&self) {
        eventually("the server's processes to end", || self.processes().is_empty());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            reaper::end(&mut child);
        }
        // Workers see their parent's end, and the parent the server's.
        let since = Instant::now();
        while !self.processes().is_empty() && since.elapsed() < patience(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = self.processes();
        for pid in &left {
            let _ = Pid::from_raw(*pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        let log = self.log();
        let end = last_lines(&log, 40);
        match (left.is_empty() && !log.contains("panicked at"), std::thread::panicking()) {
            (true, false) => {}
            (true, true) => eprintln!("the server said: {end}"),
            (false, true) => eprintln!("processes left: {left:?}; the server said: {end}"),
            (false, false) => panic!("processes left: {left:?}; the server said: {end}"),
        }
    }
}

/// The last lines of a text that may have many.
fn last_lines(text: &str, most: usize) -> &str {
    let begin = text.rmatch_indices('\n').nth(most).map_or(0, |(at, _)| at + 1);
    &text[begin..]
}

/// The living processes with a path below `home` in their command line.
fn processes(home: &Path) -> Vec<i32> {
    let home = home.as_os_str().as_encoded_bytes();
    let mentions = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(home.len()).any(|window| window == home)
    };
    proc::pids().into_iter().filter(|pid| mentions(pid) && proc::alive(*pid)).collect()
}
