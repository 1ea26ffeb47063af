//! What the shim knows of a container and of its processes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use containerd_shim_protos::api::Status;
use kiln_cgroups::OomWatch;
use kiln_runtime::order::Restore;

use crate::exit::Exit;
use crate::facts::Facts;
use crate::options::Options;
use crate::server::Call;
use crate::stdio::Held;
use crate::terminal::TerminalId;
use crate::unread::Unread;

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// What its config says.
    pub facts: Facts,
    /// What containerd was configured with.
    pub options: Options,
    /// Its first process.
    pub init: Process,
    /// The others, by the id that containerd gives them.
    pub execs: BTreeMap<String, Process>,
    /// Whether it is frozen.
    pub paused: bool,
    /// How it is to be restored by `start`, rather than created.
    pub restore: Option<Restore>,
    /// Tells of processes that the kernel has killed for want of memory.
    pub oom: Option<OomWatch>,
    /// A job removes it.
    pub leaving: bool,
    /// Calls that are answered once it is made, or removed.
    pub awaited: Vec<(Call, Awaited)>,
}

impl Container {
    /// Its init, or the process of this id.
    pub fn process(&self, exec_id: &str) -> Option<&Process> {
        match exec_id {
            "" => Some(&self.init),
            id => self.execs.get(id),
        }
    }

    /// The same, to change it.
    pub fn process_mut(&mut self, exec_id: &str) -> Option<&mut Process> {
        match exec_id {
            "" => Some(&mut self.init),
            id => self.execs.get_mut(id),
        }
    }

    /// The status of one of its processes, as the Task API has it.
    pub fn status(&self, process: &Process) -> Status {
        match process.stage {
            Stage::Making | Stage::Created | Stage::Starting => Status::CREATED,
            Stage::Running if self.paused => Status::PAUSED,
            Stage::Running => Status::RUNNING,
            Stage::Stopped(_) => Status::STOPPED,
        }
    }
}

/// What a call wants of a container that is being made or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// `Connect`.
    Connect,
    /// `Pids`.
    Pids,
    /// `Delete`, which came too early.
    Delete,
}

/// Where a process is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// A job is at work on it; there is no pid yet.
    Making,
    /// It waits for `start`.
    Created,
    /// A job starts it: its end is not told before its beginning.
    Starting,
    /// It runs.
    Running,
    /// It has ended.
    Stopped(Exit),
}

/// Where a process's streams go, as containerd names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// A path, or nothing.
    pub stdin: String,
    /// A path, a URI, or nothing.
    pub stdout: String,
    /// The same.
    pub stderr: String,
    /// All of them are one terminal.
    pub terminal: bool,
}

/// A process that containerd knows: a container's init, or an exec'd one.
#[derive(Debug)]
pub struct Process {
    /// 0 until there is one.
    pub pid: i32,
    /// Where it is in its life.
    pub stage: Stage,
    /// Where its streams go.
    pub io: Io,
    /// An exec's description, as JSON.
    pub spec: String,
    /// What keeps its FIFOs alive.
    pub held: Held,
    /// The same once it has ended, until there is a reader and all is read.
    pub unread: Vec<Unread>,
    /// Its terminal.
    pub terminal: Option<TerminalId>,
    /// Its end, if it came while it was started.
    pub early_exit: Option<Exit>,
    /// Those who wait for its end.
    pub waiters: Vec<Call>,
}

impl Process {
    /// One that there will be.
    pub fn new(io: Io, stage: Stage) -> Self {
        Self {
            pid: 0,
            stage,
            io,
            spec: String::new(),
            held: Held::default(),
            unread: Vec::new(),
            terminal: None,
            early_exit: None,
            waiters: Vec::new(),
        }
    }

    /// Whether somebody may still read what it has said, or that it has ended; forgets what has
    /// been read.
    pub fn is_unread(&mut self) -> bool {
        self.unread.retain(|fifo| !fifo.is_read());
        !self.unread.is_empty()
    }

    /// How it has ended, if it has.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.stage {
            Stage::Stopped(exit) => Some(exit),
            _ => None,
        }
    }
}
