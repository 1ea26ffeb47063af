//! The server of one function.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use rustix::process::WaitOptions;
use serde::Serialize;
use tokio::io::Interest;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use crate::call::receive;
use crate::counters::Counters;
use crate::front::access::{Access, Format};
use crate::front::{self, Body, Limits, Peer, Service};
use crate::guest::Module;
use crate::journal;
use crate::listen::listener;
use crate::parent;
use crate::pool::Pool;
use crate::protocol::{Base, Failure, cgi, keeper, response};
use crate::settings::{AccessLog, Protocol, Settings};

mod calls;

/// After the start: whatever was only needed for that is not any more.
const SETTLED: Duration = Duration::from_secs(1);
/// Between two parents of which the first has died.
const RESTART: Duration = Duration::from_millis(100);

/// A function that is about to be served.
pub struct Function {
    /// What answers.
    pub module: Box<dyn Module>,
    /// How.
    pub settings: Settings,
    /// What every call has in common.
    pub base: Base,
    /// The listening socket.
    pub socket: OwnedFd,
    /// That of the admin endpoint.
    pub admin: Option<OwnedFd>,
    /// A socket on which the module's compiled code arrives, as a descriptor.
    pub compiled: Option<OwnedFd>,
}

/// Serves until SIGTERM or SIGINT; then what runs may end within the grace period.
///
/// This process must have one thread; no other is started but one that writes the access log.
///
/// # Errors
/// Something that a server needs cannot be had.
pub fn serve(function: Function) -> io::Result<()> {
    let Function { mut module, settings, base, socket, admin, compiled } = function;
    // Before there is anything that a worker has no business with.
    let parent = parent::start(&mut *module, &settings)?;
    crate::sys::reset_signals();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // What the tasks hold that are still there at the end is given back within it, too.
    let _inside = runtime.enter();
    let tasks = LocalSet::new();
    let served = tasks.block_on(&runtime, async move {
        let (stop, stopped) = watch::channel(false);
        let pool = Pool::new(parent, settings.warm, settings.max, settings.queue)?;
        let counters = Rc::new(Counters::default());
        let metrics = counters.front.clone();
        let limits = Limits::default();
        let service = Rc::new(Server {
            pool: Rc::clone(&pool),
            settings: settings.clone(),
            limits: limits.clone(),
            base,
            counters: Rc::clone(&counters),
        });
        let code = Rc::new(RefCell::new(None));
        if let Some(compiled) = compiled {
            spawn_local(await_compiled(compiled, Rc::clone(&pool), Rc::clone(&code)));
        }
        if let Some(admin) = admin {
            let service = Rc::new(Admin { pool: Rc::clone(&pool), counters });
            let (listener, stopped) = (listener(admin)?, stopped.clone());
            spawn_local(front::serve(listener, limits.clone(), service, stopped));
        }
        spawn_local(async {
            tokio::time::sleep(SETTLED).await;
            crate::trim::trim();
        });
        spawn_local(reap(module, settings.clone(), Rc::clone(&pool), code));
        let access = settings.access_log.map(access_log).transpose()?;
        let front = front::Server { limits, metrics, access };
        let socket = listener(socket)?;
        let serving = spawn_local(async move { front.serve(socket, service, stopped).await });
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => log::info!("SIGTERM: no more requests"),
            _ = interrupt.recv() => log::info!("SIGINT: no more requests"),
        }
        let _ = stop.send(true);
        // Who asks again does not want to wait.
        tokio::select! {
            _ = tokio::time::timeout(settings.grace, serving) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        pool.close();
        Ok(())
    });
    drop(tasks);
    served
}

/// To this process's standard error. A thread writes it, which takes no lock that a fork needs.
fn access_log(form: AccessLog) -> io::Result<Access> {
    let format = match form {
        AccessLog::Json => Format::Json,
        AccessLog::Text => Format::Text,
    };
    Access::new(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?, format)
}

/// The module's compiled code, which may come at any time, or never.
async fn await_compiled(socket: OwnedFd, pool: Rc<Pool>, code: Rc<RefCell<Option<OwnedFd>>>) {
    if rustix::io::ioctl_fionbio(&socket, true).is_err() {
        return;
    }
    let Ok(socket) = crate::sys::watch(socket, Interest::READABLE) else { return };
    let mut descriptors = Vec::new();
    while let Ok(mut ready) = socket.readable().await {
        match receive(socket.get_ref(), &mut [0; 1], &mut descriptors) {
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            _ => break,
        }
    }
    let Some(received) = descriptors.pop() else { return };
    if let Err(error) = pool.give_compiled(&received) {
        journal::warning(&error);
    }
    *code.borrow_mut() = Some(received);
}

/// Waits for children: the workers' parent, in whose place comes another, and whatever has lost its
/// own parent in a container in which this is the first process.
async fn reap(
    mut module: Box<dyn Module>,
    settings: Settings,
    pool: Rc<Pool>,
    code: Rc<RefCell<Option<OwnedFd>>>,
) {
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    loop {
        let mut lost = false;
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            lost |= pid == pool.parent_pid();
        }
        if lost {
            journal::error(format_args!("the workers' parent has died"));
            tokio::time::sleep(RESTART).await;
            match replace(&mut *module, &settings, &pool, &code) {
                Ok(()) => {}
                Err(error) => journal::error(format_args!("start another: {error}")),
            }
        }
        if children.recv().await.is_none() {
            return;
        }
    }
}

fn replace(
    module: &mut dyn Module,
    settings: &Settings,
    pool: &Rc<Pool>,
    code: &RefCell<Option<OwnedFd>>,
) -> io::Result<()> {
    pool.adopt(parent::start(module, settings)?)?;
    if let Some(code) = &*code.borrow() {
        pool.give_compiled(code)?;
    }
    Ok(())
}

struct Server {
    pool: Rc<Pool>,
    settings: Settings,
    /// The front's, for bodies.
    limits: Limits,
    base: Base,
    counters: Rc<Counters>,
}

impl Service for Server {
    async fn answer(self: Rc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let begun = Instant::now();
        let (response, failure) = match self.settings.protocol {
            Protocol::Keeper => self.keeper(request).await,
            Protocol::Cgi => match Rc::clone(&self).cgi(request, peer).await {
                Ok(response) => (response, None),
                Err(failure) => {
                    let text = format!("{failure}\n");
                    (failure.response("text/plain; charset=utf-8", text), Some(failure))
                }
            },
        };
        if let Some(failure @ (Failure::Trap(_) | Failure::Worker(_) | Failure::Output(_))) =
            &failure
        {
            journal::warning(failure);
        }
        self.counters.answered(begun.elapsed(), failure.map(|failure| failure.kind()));
        response
    }
}

struct Admin {
    pool: Rc<Pool>,
    counters: Rc<Counters>,
}

/// What `/stats` answers.
#[derive(Debug, Serialize)]
struct Stats {
    warm: usize,
    busy: usize,
    queued: usize,
    requests: u64,
    errors: u64,
    cold_starts: u64,
    started: u64,
    lost: u64,
}

impl Service for Admin {
    async fn answer(self: Rc<Self>, request: Request<Incoming>, _: Peer) -> Response<Body> {
        let plain = |status, text: &'static str| response(status, "text/plain", text);
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        }
        match request.uri().path() {
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => match self.pool.is_open() {
                true => plain(StatusCode::OK, "ok\n"),
                false => plain(StatusCode::SERVICE_UNAVAILABLE, "about to end\n"),
            },
            "/metrics" => self.counters.answer(&self.pool),
            "/stats" => {
                let body = serde_json::to_vec(&self.stats()).unwrap_or_default();
                response(StatusCode::OK, keeper::JSON, body)
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /healthz, /readyz, /metrics and /stats\n"),
        }
    }
}

impl Admin {
    fn stats(&self) -> Stats {
        let (idle, alive) = self.pool.workers();
        let counts = self.pool.counts();
        let (requests, errors) = self.counters.totals(&Failure::KINDS);
        Stats {
            warm: idle,
            busy: alive.saturating_sub(idle),
            queued: self.pool.queued(),
            requests,
            errors,
            cold_starts: counts.cold.get(),
            started: counts.started.get(),
            lost: counts.lost.get(),
        }
    }
}

/// `argv[0]` of a function's calls.
pub fn program(protocol: Protocol, module: &str) -> std::ffi::CString {
    match protocol {
        Protocol::Keeper => keeper::program(),
        Protocol::Cgi => cgi::program(module),
    }
}
