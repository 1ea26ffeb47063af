//! One container of a function: created by the warm parent, started, frozen, thawed, ended and
//! deleted.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kiln_cgroups::Cgroup;
use kiln_runtime::delete;
use kiln_runtime::order::{self, Order};
use kiln_runtime::process::Process;
use kiln_runtime::start;
use kiln_runtime::state::{ContainerDir, StateRoot};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::bundle::{Prepared, Sockets};
use crate::logs::{Log, Voice};
use crate::pool::Pool;
use crate::reaper::{Exit, Reaper};
use crate::sys::readable;
use crate::warm::{self, Warm};

/// How long a container may take to end by itself, once it was asked to and has no requests.
const FAREWELL: Duration = Duration::from_secs(5);

/// What containers are made with; one for the whole gateway.
#[derive(Debug)]
pub struct Host {
    /// The state root.
    pub root: PathBuf,
    /// Creates containers.
    pub warm: Warm,
    /// Tells of their ends.
    pub reaper: Rc<Reaper>,
}

/// A container that has been started.
#[derive(Debug)]
pub struct Container {
    /// Its id below the state root.
    pub id: String,
    /// Init in our pid namespace.
    pub pid: i32,
    /// Connections to it.
    pub pool: Pool,
    /// Whether it has answered a request.
    pub useful: Cell<bool>,
    sockets: RefCell<Option<Sockets>>,
    process: Option<Process>,
    pidfd: Option<OwnedFd>,
    frozen: Cell<bool>,
    /// Whether it has been asked to end, or is being deleted.
    leaving: Cell<bool>,
    cgroup: RefCell<Option<Arc<Cgroup>>>,
    voice: Voice,
    ended: watch::Receiver<Option<Exit>>,
    root: PathBuf,
    bundle: PathBuf,
}

impl Container {
    /// Creates and starts it. The log hears what it writes.
    ///
    /// # Errors
    /// Why there is none; nothing of it is left then.
    pub async fn create(
        host: &Host,
        prepared: Prepared,
        log: &Rc<Log>,
    ) -> Result<Rc<Self>, String> {
        let Prepared { id, bundle, sockets } = prepared;
        let step = |error: std::io::Error| format!("create container {id}: {error}");
        let (pipe, voice) = log.attach().map_err(step)?;
        let streams = sockets.for_container().and_then(|sockets| warm::streams(pipe, sockets));
        let streams = streams.map_err(step)?;
        let order = Order::Create(order::Create {
            root: host.root.clone(),
            id: id.clone(),
            bundle: bundle.clone(),
            pid_file: None,
            pivot: true,
            keyring: true,
            systemd: false,
            snapshot: Vec::new(),
            empty: true,
        });
        let pid = match host.warm.order(&order, &streams).await {
            Ok(pid) => pid,
            Err(reason) => {
                Prepared::remove(&bundle);
                return Err(reason);
            }
        };
        // Or the pipe would not end with the container.
        drop(streams);
        let ended = watch_end(&host.reaper, pid);
        let mut container = Self {
            id,
            pid,
            pool: Pool::new(sockets.http_path.clone()),
            useful: Cell::new(false),
            sockets: RefCell::new(Some(sockets)),
            process: None,
            pidfd: None,
            frozen: Cell::new(false),
            leaving: Cell::new(false),
            cgroup: RefCell::new(None),
            voice,
            ended,
            root: host.root.clone(),
            bundle,
        };
        match container.start().await {
            Ok(()) => Ok(Rc::new(container)),
            Err(error) => {
                let said = container.voice.last_lines().await;
                container.delete().await;
                let reason = format!("{error:#}");
                Err(if said.is_empty() { reason } else { format!("{reason}: {said}") })
            }
        }
    }

    async fn start(&mut self) -> Result<()> {
        let process = Process::of(self.pid)?;
        self.pidfd = process.pidfd()?;
        self.process = Some(process);
        let (_, dir) = self.find()?;
        match start::begin(dir)? {
            Some(begun) => {
                readable(&begun).await.context("wait for the container's start")?;
                begun.finish()?;
            }
            // There is more to do than to say go.
            None => {
                let (_, dir) = self.find()?;
                spawn_blocking(move || start::start(&dir, None)).await??;
            }
        }
        Ok(())
    }

    fn find(&self) -> Result<(StateRoot, ContainerDir)> {
        find(&self.root, &self.id)
    }

    /// The path of the socket on which it says how it is; good in this process alone.
    pub fn admin_path(&self) -> Option<PathBuf> {
        self.sockets.borrow().as_ref().map(|sockets| sockets.admin_path.clone())
    }

    /// Whether it has ended by now; asks the kernel, which knows it before the reaper does.
    pub fn has_ended(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Whether its end is our doing.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// Waits for its end.
    pub async fn end(&self) -> Exit {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Status(0)),
            // The reaper has gone, and so has the gateway.
            Err(_) => Exit::Status(0),
        }
    }

    /// Why it has ended: how, and its last words.
    pub async fn reason(&self, exit: Exit) -> String {
        let said = self.voice.last_lines().await;
        match said.is_empty() {
            true => exit.to_string(),
            false => format!("{exit}: {said}"),
        }
    }

    /// Freezes it. Does not block this thread.
    ///
    /// # Errors
    /// It cannot be frozen; it runs then.
    pub async fn freeze(&self) -> Result<()> {
        let cgroup = self.cgroup()?;
        let frozen = spawn_blocking(move || cgroup.freeze()).await.context("freeze")?;
        frozen?;
        self.frozen.set(true);
        Ok(())
    }

    /// Lets it go on: one write(2).
    ///
    /// # Errors
    /// Those of write(2).
    pub fn thaw(&self) -> Result<()> {
        self.cgroup()?.thaw()?;
        self.frozen.set(false);
        Ok(())
    }

    /// What its cgroup has charged, in bytes; also of a frozen one.
    pub fn memory(&self) -> Option<u64> {
        self.cgroup().ok()?.memory_usage().ok()?
    }

    /// Opened when it is first needed, which is after the first answer.
    fn cgroup(&self) -> Result<Arc<Cgroup>> {
        let mut opened = self.cgroup.borrow_mut();
        if let Some(cgroup) = &*opened {
            return Ok(Arc::clone(cgroup));
        }
        let (_, dir) = self.find()?;
        let state = dir.read()?.context("the container has gone")?;
        let paths = state.cgroup.context("the container has no cgroup")?;
        let cgroup = Arc::new(Cgroup::open(&paths)?);
        *opened = Some(Arc::clone(&cgroup));
        Ok(cgroup)
    }

    /// Ends it, which has no requests: asks, waits, and then does not ask any more.
    pub async fn stop(&self) {
        if self.frozen.get()
            && let Err(error) = self.thaw()
        {
            log::debug!("container {}: {error:#}", self.id);
        }
        self.leaving.set(true);
        self.pool.clear();
        let asked = self.process.as_ref().map(|process| process.signal(libc::SIGTERM));
        if matches!(asked, Some(Ok(true))) {
            let _ = tokio::time::timeout(FAREWELL, self.end()).await;
        }
        self.delete().await;
    }

    /// Removes all of it, killing what is left.
    pub async fn delete(&self) {
        self.leaving.set(true);
        // What waits in the backlog has nobody left to wait for.
        self.sockets.borrow_mut().take();
        let (root, id, bundle) = (self.root.clone(), self.id.clone(), self.bundle.clone());
        let deleted = spawn_blocking(move || {
            let deleted = remove(&root, &id);
            Prepared::remove(&bundle);
            deleted
        });
        match deleted.await {
            Ok(Ok(())) => log::debug!("container {}: deleted", self.id),
            Ok(Err(error)) => log::warn!("container {}: delete: {error:#}", self.id),
            Err(error) => log::warn!("container {}: delete: {error}", self.id),
        }
    }
}

fn watch_end(reaper: &Reaper, pid: i32) -> watch::Receiver<Option<Exit>> {
    let (tell, ended) = watch::channel(None);
    let end = reaper.watch(pid);
    tokio::task::spawn_local(async move {
        if let Ok(exit) = end.await {
            let _ = tell.send(Some(exit));
        }
    });
    ended
}

fn find(root: &Path, id: &str) -> Result<(StateRoot, ContainerDir)> {
    let root = StateRoot::open(root)?.context("the state root has gone")?;
    let dir = root.find(&id.parse()?)?;
    Ok((root, dir))
}

/// Deletes a container, whatever its status. Blocks. That there is none is success.
///
/// # Errors
/// Those of [`delete::delete`].
pub fn remove(root: &Path, id: &str) -> Result<()> {
    let Some(root) = StateRoot::open(root)? else { return Ok(()) };
    match root.find(&id.parse()?) {
        Err(kiln_runtime::Error::NotFound(_)) => Ok(()),
        dir => Ok(delete::delete(&root, &dir?, true)?),
    }
}
