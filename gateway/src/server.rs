//! `serve`: from the configuration to the end.

use std::cell::Cell;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kiln_keeper::front::access::{Access, Format};
use kiln_keeper::front::{self, Limits, Listener, Server};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::admin::Admin;
use crate::config::{AccessLog, Config};
use crate::container::Host;
use crate::control;
use crate::function::Shared;
use crate::gateway::Gateway;
use crate::leftovers;
use crate::measure::Metrics;
use crate::reaper::Reaper;
use crate::state::{StateDir, control_socket};
use crate::tasks::Tasks;
use crate::warm::Warm;

/// How often modules are looked at, where that is wished.
const LOOK: Duration = Duration::from_secs(1);
/// How long containers may take to be deleted, once their requests have been given up.
const LAST: Duration = Duration::from_secs(15);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// functions.toml.
    pub config: PathBuf,
    /// The containers' state root, if not below the state directory.
    pub root: Option<PathBuf>,
    /// The gateway's directory.
    pub state: PathBuf,
    /// kiln, beside which the engine is.
    pub kiln: PathBuf,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The gateway cannot begin: what is wrong with its configuration, directory, engine or addresses.
pub fn serve(options: &Options) -> Result<()> {
    let config = Config::load(&options.config)?;
    if !rustix::process::geteuid().is_root() {
        bail!("the gateway needs root: it makes containers with limits and users of their own");
    }
    let state = StateDir::open(&options.state)?;
    let root = match &options.root {
        Some(root) => std::path::absolute(root).context("--root")?,
        None => state.default_root(),
    };
    leftovers::remove(&state, &root).context("remove what the last gateway has left")?;
    state.record_root(&root)?;
    let warm = Warm::new(options.kiln.clone())?;
    // The containers' init becomes ours when the fork that created it ends.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("become a subreaper")?;
    warm.start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("start the event loop")?;
    let host = Host { root, warm, reaper: Rc::new(Reaper::default()) };
    let shared = Rc::new(Shared {
        state,
        host,
        metrics: Metrics::default(),
        limits: Limits::default(),
        tasks: Rc::new(Tasks::default()),
        serial: Cell::new(0),
    });
    let served = LocalSet::new().block_on(&runtime, run(Rc::clone(&shared), options, config));
    let _ = std::fs::remove_file(control_socket(shared.state.path()));
    leftovers::remove_cgroup(&shared.state);
    served
}

async fn run(shared: Rc<Shared>, options: &Options, config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    shared.host.reaper.start().context("handle SIGCHLD")?;
    let settings = config.gateway.clone();
    let control = control::bind(&control_socket(shared.state.path()))?;
    // Before any container is made: the address may be taken.
    let listener = listen(settings.listen, "listen").await?;
    let admin = match settings.admin {
        Some(address) => Some(listen(address, "admin").await?),
        None => None,
    };
    let access = settings.access_log.as_ref().map(open_log).transpose()?;
    let gateway = Gateway::start(Rc::clone(&shared), options.config.clone(), config);

    let (stop, stopped) = watch::channel(false);
    let server = Server { limits: shared.limits.clone(), metrics: shared.metrics.front(), access };
    let serving = server.serve(Listener::Tcp(listener), Rc::clone(&gateway), stopped);
    let functions = tokio::task::spawn_local(serving);
    let (stop_admin, admin_stopped) = watch::channel(false);
    if let Some(listener) = admin {
        let service = Rc::new(Admin(Rc::clone(&gateway)));
        let limits = Limits { connections: 64, ..Limits::default() };
        let serving = front::serve(Listener::Tcp(listener), limits, service, admin_stopped);
        tokio::task::spawn_local(serving);
    }
    tokio::task::spawn_local(control::serve(control, Rc::clone(&gateway)));
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(&gateway),
            _ = look.tick(), if gateway.settings().watch => gateway.look_at_modules(),
        }
    }
    log::info!("ending");
    let _ = stop.send(true);
    end(&shared, &gateway, functions, settings.grace).await;
    let _ = stop_admin.send(true);
    Ok(())
}

fn reload(gateway: &Gateway) {
    match gateway.reload() {
        Ok(()) => log::info!("read {} again", gateway.config_path().display()),
        Err(error) => log::error!("{error}; everything stays as it was"),
    }
}

/// Finishes the requests that there are, as far as there is time, and removes all containers.
async fn end(
    shared: &Shared,
    gateway: &Gateway,
    functions: tokio::task::JoinHandle<std::io::Result<()>>,
    grace: Duration,
) {
    let all = gateway.functions();
    let finish = async {
        let _ = functions.await;
        let busy = || all.iter().any(|function| function.now().in_flight > 0);
        while busy() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gateway.retire();
        shared.tasks.finished().await;
    };
    if tokio::time::timeout(grace, finish).await.is_ok() {
        return;
    }
    log::warn!("requests have not been finished in {} s, and are given up", grace.as_secs_f64());
    gateway.retire();
    for function in &all {
        function.abort();
    }
    if tokio::time::timeout(LAST, shared.tasks.finished()).await.is_err() {
        log::error!("containers are left; the next start removes them");
    }
}

fn open_log(log: &AccessLog) -> Result<Access> {
    let file: OwnedFd = match &log.path {
        None => std::io::stdout().as_fd().try_clone_to_owned().context("open standard output")?,
        Some(path) => {
            let opened = File::options().append(true).create(true).mode(0o640).open(path);
            opened.with_context(|| format!("[gateway] access_log: {}", path.display()))?.into()
        }
    };
    let format = if log.json { Format::Json } else { Format::Text };
    Access::new(file, format).context("start the access log")
}

async fn listen(address: SocketAddr, key: &str) -> Result<TcpListener> {
    // With SO_REUSEADDR, as tokio has it: connections of the last gateway may still be ending.
    let bound = TcpListener::bind(address).await;
    let bound = bound.with_context(|| format!("[gateway] {key}: listen at {address}"))?;
    let address = bound.local_addr().context("ask for the address")?;
    log::info!("{key}: {address}");
    Ok(bound)
}

/// Where kiln is if nobody says: beside the engine folder that this executable is in, or beside it.
pub fn default_kiln(own: &Path) -> PathBuf {
    let dir = own.parent().unwrap_or(Path::new("/"));
    let dir = match dir.file_name().is_some_and(|name| name == "kiln-engine") {
        true => dir.parent().unwrap_or(dir),
        false => dir,
    };
    dir.join("kiln")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kiln_is_beside_the_engine_folder() {
        let kiln = |own: &str| default_kiln(Path::new(own)).display().to_string();
        assert_eq!(kiln("/x/kiln-engine/kiln-gateway"), "/x/kiln");
        assert_eq!(kiln("/usr/local/lib/kiln/kiln-gateway"), "/usr/local/lib/kiln/kiln");
    }
}
