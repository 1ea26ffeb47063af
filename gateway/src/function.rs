//! A function: its life ([`crate::lifecycle`]), and the container that it has at the moment.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kiln_keeper::front::Limits;
use tokio::sync::Notify;

use crate::bundle::Prepared;
use crate::config;
use crate::container::{Container, Host};
use crate::lifecycle::{Admission, Due, Life, Policy, State};
use crate::logs::Log;
use crate::measure::{Metrics, Now, Numbers};
use crate::state::StateDir;
use crate::tasks::Tasks;

/// How long a container may take to be created.
const CREATION: Duration = Duration::from_secs(30);
/// How long a request waits to hear why a container has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// When the next container's bundle is made: not while the first answer of this one is.
const LATER: Duration = Duration::from_millis(200);

/// What all functions share.
#[derive(Debug)]
pub struct Shared {
    /// The gateway's directory.
    pub state: StateDir,
    /// What containers are made with.
    pub host: Host,
    /// What is counted.
    pub metrics: Metrics,
    /// What a client may take.
    pub limits: Limits,
    /// What the gateway waits for.
    pub tasks: Rc<Tasks>,
    /// The number of the last container.
    pub serial: Cell<u64>,
}

/// What a function's name keeps when the function is replaced by another.
#[derive(Debug)]
pub struct Named {
    /// Its numbers.
    pub numbers: Numbers,
    /// Its log.
    pub log: Rc<Log>,
}

/// One function.
#[derive(Debug)]
pub struct Function {
    /// As it was configured.
    pub config: config::Function,
    /// Counted by name.
    pub named: Rc<Named>,
    shared: Rc<Shared>,
    life: RefCell<Life>,
    container: RefCell<Option<Rc<Container>>>,
    prepared: RefCell<Option<Prepared>>,
    /// Why there is no container.
    reason: RefCell<String>,
    creating: Cell<bool>,
    /// Whether that is not known whole yet: last words are on their way.
    telling: Cell<bool>,
    /// The state has changed: for requests that wait.
    changed: Notify,
    /// There is something to do: for [`Function::supervise`].
    wake: Notify,
    /// When that looks again by itself.
    next_look: Cell<Option<Instant>>,
}

/// Why a request gets no container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many run and wait as may.
    Busy,
    /// The request has waited for a container that could not be made.
    Failed(String),
    /// That has happened before, and is not tried again for as long.
    BackOff(String, Duration),
    /// The function has been replaced or removed: ask who has the route now.
    Retired,
}

/// A request's right to the container: while there is one, it is neither frozen nor removed.
#[derive(Debug)]
pub struct Lease {
    function: Rc<Function>,
    /// The container.
    pub container: Rc<Container>,
    _place: Place,
}

impl Lease {
    /// The function.
    pub fn function(&self) -> &Rc<Function> {
        &self.function
    }

    /// The container has answered.
    pub fn answered(&self) {
        self.container.useful.set(true);
        self.function.life.borrow_mut().answered();
    }
}

/// A request that is counted.
#[derive(Debug)]
struct Place(Rc<Function>);

impl Place {
    fn take(function: &Rc<Function>) -> Self {
        function.life.borrow_mut().enter();
        Self(Rc::clone(function))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut life = self.0.life.borrow_mut();
        life.leave(Instant::now());
        // Mostly it looks early enough by itself, and then finds that there was a request.
        let late = |deadline| self.0.next_look.get().is_none_or(|look| deadline < look);
        let last = life.state() == State::Retired && life.requests() == 0;
        if last || life.deadline().is_some_and(late) {
            self.0.wake.notify_one();
        }
    }
}

impl Function {
    /// Makes what can be made before the first request, and begins to look after it.
    pub fn start(shared: &Rc<Shared>, config: config::Function, named: Rc<Named>) -> Rc<Self> {
        let life = Life::new(Policy::of(&config), Instant::now());
        let function = Rc::new(Self {
            config,
            named,
            shared: Rc::clone(shared),
            life: RefCell::new(life),
            container: RefCell::new(None),
            prepared: RefCell::new(None),
            reason: RefCell::new(String::new()),
            creating: Cell::new(false),
            telling: Cell::new(false),
            changed: Notify::new(),
            wake: Notify::new(),
            next_look: Cell::new(None),
        });
        function.prepare();
        shared.tasks.spawn(Rc::clone(&function).supervise());
        function
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Where it is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.life.borrow().state()
    }

    /// The container that it has.
    pub fn container(&self) -> Option<Rc<Container>> {
        self.container.borrow().clone()
    }

    /// Why there is no container; empty if nothing is wrong.
    pub fn reason(&self) -> String {
        match self.state() {
            State::Failed => self.reason.borrow().clone(),
            _ => String::new(),
        }
    }

    /// As it is now.
    pub fn now(&self) -> Now {
        let container = self.container();
        Now {
            name: self.name().to_owned(),
            state: self.state().name(),
            in_flight: self.life.borrow().requests(),
            memory: container.and_then(|container| container.memory()),
        }
    }

    /// A container for a request: the one that is there, thawed, or created.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn acquire(self: &Rc<Self>) -> Result<Lease, Refusal> {
        let most = self.config.max as usize + self.config.queue as usize;
        if self.life.borrow().requests() >= most {
            return Err(Refusal::Busy);
        }
        let place = Place::take(self);
        let mut waited = false;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Or what happens before the wait would not be heard.
            changed.as_mut().enable();
            let admission = self.life.borrow_mut().admit(Instant::now());
            match admission {
                Admission::Go | Admission::Thaw => {
                    if let Some(container) = self.running(admission == Admission::Thaw) {
                        let function = Rc::clone(self);
                        return Ok(Lease { function, container, _place: place });
                    }
                    continue;
                }
                Admission::Create => self.create(),
                Admission::Wait => {}
                // The reason is on its way: a container that has ended may have said why.
                Admission::Refused(_) if self.telling.get() => {
                    let _ = tokio::time::timeout(LAST_WORDS, changed).await;
                    waited = true;
                    self.telling.set(false);
                    continue;
                }
                Admission::Refused(wait) => {
                    let reason = self.reason.borrow().clone();
                    return Err(match waited {
                        true => Refusal::Failed(reason),
                        false => Refusal::BackOff(reason, wait),
                    });
                }
                Admission::Retired => return Err(Refusal::Retired),
            }
            waited = true;
            changed.await;
        }
    }

    /// The container, if it is alive.
    fn running(self: &Rc<Self>, thaw: bool) -> Option<Rc<Container>> {
        let Some(container) = self.container() else {
            // It cannot be: whoever takes the container changes the state.
            self.life.borrow_mut().ended(true, Instant::now());
            return None;
        };
        if container.has_ended() {
            self.lost(&container, "it has ended");
            return None;
        }
        if thaw && let Err(error) = container.thaw() {
            self.lost(&container, &format!("{error:#}"));
            self.shared.tasks.spawn(async move { container.delete().await });
            return None;
        }
        Some(container)
    }

    /// The container is of no use any more: it has ended, or will be made to. True for the first who
    /// says it.
    fn lost(self: &Rc<Self>, container: &Rc<Container>, reason: &str) -> bool {
        let is_ours = |own: &Rc<Container>| Rc::ptr_eq(own, container);
        if !self.container.borrow().as_ref().is_some_and(is_ours) {
            return false;
        }
        self.container.borrow_mut().take();
        self.life.borrow_mut().ended(container.useful.get(), Instant::now());
        reason.clone_into(&mut self.reason.borrow_mut());
        self.telling.set(true);
        self.changed.notify_waiters();
        self.wake.notify_one();
        true
    }

    /// Begins to create a container: the state says so already.
    fn create(self: &Rc<Self>) {
        self.creating.set(true);
        let function = Rc::clone(self);
        self.shared.tasks.spawn(async move {
            let created = function.created().await;
            let now = Instant::now();
            match created {
                Ok(container) => {
                    let wanted = function.life.borrow_mut().created(now);
                    match wanted {
                        true => function.install(&container),
                        false => container.stop().await,
                    }
                }
                Err(reason) => {
                    log::warn!("function {}: {reason}", function.name());
                    function.named.log.note(&reason);
                    *function.reason.borrow_mut() = reason;
                    function.life.borrow_mut().creation_failed(now);
                }
            }
            function.creating.set(false);
            function.changed.notify_waiters();
            function.wake.notify_one();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(LATER).await;
                if function.prepared.borrow().is_none() {
                    function.prepare();
                }
            });
        });
    }

    async fn created(&self) -> Result<Rc<Container>, String> {
        let prepared = self.prepared.borrow_mut().take();
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => self.make_ahead().map_err(|error| format!("{error:#}"))?,
        };
        let id = prepared.id.clone();
        let creation = Container::create(&self.shared.host, prepared, &self.named.log);
        match tokio::time::timeout(CREATION, creation).await {
            Ok(created) => created,
            Err(_) => {
                // The order may yet be carried out; whoever starts next removes what is left.
                let root = self.shared.host.root.clone();
                let gone =
                    tokio::task::spawn_blocking(move || crate::container::remove(&root, &id));
                let _ = gone.await;
                Err(format!("no container after {} s", CREATION.as_secs()))
            }
        }
    }

    fn install(self: &Rc<Self>, container: &Rc<Container>) {
        self.shared.metrics.cold_start(self.name(), &self.named.numbers);
        log::info!(
            "function {}: container {}, process {}",
            self.name(),
            container.id,
            container.pid
        );
        *self.container.borrow_mut() = Some(Rc::clone(container));
        let (function, container) = (Rc::clone(self), Rc::clone(container));
        self.shared.tasks.spawn(async move {
            let exit = container.end().await;
            // Before its last words are waited for: nobody is to be sent to it.
            let alone = function.lost(&container, &exit.to_string());
            let reason = container.reason(exit).await;
            // Somebody has asked for its end otherwise.
            let unasked = alone || !container.is_leaving();
            if unasked {
                log::warn!("function {}: container {}: {reason}", function.name(), container.id);
                function.named.log.note(&format!("container {}: {reason}", container.id));
                *function.reason.borrow_mut() = reason;
                function.telling.set(false);
                function.changed.notify_waiters();
                container.delete().await;
            }
        });
    }

    /// The function is going: requests that it has are finished, then its container is removed.
    pub fn retire(&self) {
        self.life.borrow_mut().retire();
        self.changed.notify_waiters();
        self.wake.notify_one();
    }

    /// Ends its container now, with whatever requests it has.
    pub fn abort(self: &Rc<Self>) {
        let container = self.container.borrow_mut().take();
        if let Some(container) = container {
            self.shared.tasks.spawn(async move { container.delete().await });
        }
    }

    fn prepare(&self) {
        if self.state() == State::Retired {
            return;
        }
        match self.make_ahead() {
            Ok(prepared) => *self.prepared.borrow_mut() = Some(prepared),
            Err(error) => log::warn!("function {}: {error:#}", self.name()),
        }
    }

    fn make_ahead(&self) -> anyhow::Result<Prepared> {
        let serial = self.shared.serial.get() + 1;
        self.shared.serial.set(serial);
        let id = format!("{}-{serial}", self.name());
        let made = Prepared::make(&self.shared.state, &self.config, &id);
        made.inspect_err(|_| Prepared::remove(&self.shared.state.bundles().join(&id)))
    }

    /// Does what time brings, until the function has gone.
    async fn supervise(self: Rc<Self>) {
        loop {
            let due = self.life.borrow_mut().due(Instant::now());
            match due {
                Some(Due::Create) => self.create(),
                Some(Due::Freeze) => self.freeze().await,
                Some(Due::Stop) => self.stop(),
                None => {}
            }
            if self.has_gone() {
                break;
            }
            let deadline = self.life.borrow().deadline();
            self.next_look.set(deadline);
            match deadline {
                Some(deadline) => {
                    let sleep = tokio::time::sleep_until(deadline.into());
                    tokio::select! {
                        () = sleep => {}
                        () = self.wake.notified() => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
        let container = self.container.borrow_mut().take();
        if let Some(container) = container {
            container.stop().await;
        }
        let prepared = self.prepared.borrow_mut().take();
        if let Some(prepared) = prepared {
            Prepared::remove(&prepared.bundle);
        }
    }

    fn has_gone(&self) -> bool {
        let life = self.life.borrow();
        life.state() == State::Retired && life.requests() == 0 && !self.creating.get()
    }

    async fn freeze(&self) {
        let Some(container) = self.container() else { return };
        let frozen = container.freeze().await;
        if let Err(error) = &frozen {
            log::warn!("function {}: {error:#}", self.name());
        }
        let thaw = self.life.borrow_mut().frozen(frozen.is_ok());
        let retired = self.state() == State::Retired;
        if (thaw || (retired && frozen.is_ok()))
            && let Err(error) = container.thaw()
        {
            log::warn!("function {}: {error:#}", self.name());
        }
        self.changed.notify_waiters();
    }

    fn stop(self: &Rc<Self>) {
        let container = self.container.borrow_mut().take();
        if let Some(container) = container {
            log::info!("function {}: idle, container {} goes", self.name(), container.id);
            self.shared.tasks.spawn(async move { container.stop().await });
        }
    }
}
