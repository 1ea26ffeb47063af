//! The functions that there are, and how they become others: at a reload, at `kiln fn add` and
//! `remove`, and when a module has changed.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use kiln_keeper::front::{Body, Peer, Service, path};

use crate::added::{self, Added};
use crate::config::{Config, Source};
use crate::function::{Function, Named, Shared};
use crate::logs::Log;
use crate::measure::Numbers;
use crate::proxy::{self, Call, Outcome, Tally, plain};
use crate::route::{Match, Route, Table};

/// How often a request asks again who has its route, when functions are replaced while it waits.
const ROUNDS: usize = 8;

/// All functions and their routes.
#[derive(Debug)]
pub struct Gateway {
    /// What functions share.
    pub shared: Rc<Shared>,
    /// The file.
    config_path: PathBuf,
    config: RefCell<Config>,
    added: RefCell<Vec<Added>>,
    functions: RefCell<BTreeMap<String, Entry>>,
    named: RefCell<HashMap<String, Rc<Named>>>,
    routes: RefCell<Rc<Table<Rc<Function>>>>,
}

#[derive(Debug)]
struct Entry {
    function: Rc<Function>,
    stamp: Option<Stamp>,
    /// As it was seen the last time, if it was another: files change in several steps.
    seen: Option<Stamp>,
}

/// Which file a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    id: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(source: &Source) -> Option<Self> {
        let meta = match source {
            Source::Module(path) => path.metadata(),
            Source::Bundle(path) => path.join("config.json").metadata(),
        };
        let meta = meta.ok()?;
        Some(Self {
            id: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// Why a function is not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is wrong.
    #[error("{0}")]
    Wrong(String),
    /// The name or a route is taken.
    #[error("{0}")]
    Taken(String),
    /// There is no such function.
    #[error("there is no function {0:?}")]
    None(String),
    /// It is the configuration file's.
    #[error("function {0:?} is in {1:?}: remove it there")]
    OfFile(String, PathBuf),
    /// It cannot be recorded.
    #[error("{0}")]
    Record(String),
}

impl Gateway {
    /// Starts what the file and the functions that were added before say.
    pub fn start(shared: Rc<Shared>, config_path: PathBuf, config: Config) -> Rc<Self> {
        let added = added::load(&shared.state.added());
        let gateway = Rc::new(Self {
            shared,
            config_path,
            config: RefCell::new(config),
            added: RefCell::new(added),
            functions: RefCell::default(),
            named: RefCell::default(),
            routes: RefCell::default(),
        });
        gateway.apply();
        gateway
    }

    /// Reads the file again. If it is wrong everything stays as it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn reload(&self) -> Result<(), crate::config::Error> {
        let config = Config::load(&self.config_path)?;
        let now = &config.gateway;
        {
            let before = &self.config.borrow().gateway;
            let fixed = |one: &crate::config::Gateway| {
                (one.listen, one.admin, one.access_log.clone(), one.grace)
            };
            if fixed(before) != fixed(now) {
                log::warn!("[gateway]: all but watch is the old one until the next start");
            }
        }
        *self.config.borrow_mut() = config;
        self.apply();
        Ok(())
    }

    /// `[gateway]`.
    pub fn settings(&self) -> crate::config::Gateway {
        self.config.borrow().gateway.clone()
    }

    /// Adds a function for good. `text` is TOML with one `[[function]]`.
    ///
    /// # Errors
    /// It is wrong, taken, or cannot be recorded.
    pub fn add(&self, text: &str) -> Result<String, Error> {
        let new = Added::parse(text).map_err(|error| Error::Wrong(error.to_string()))?;
        let name = new.name().to_owned();
        if self.functions.borrow().contains_key(&name) {
            return Err(Error::Taken(format!("there is a function {name:?} already")));
        }
        let routes = Rc::clone(&self.routes.borrow());
        for (route, _) in &new.config.routes {
            if let Some((_, function)) = routes.iter().find(|(other, _)| other == route) {
                let owner = function.name();
                return Err(Error::Taken(format!("\"{route}\" is a route of function {owner:?}")));
            }
        }
        // The bundle is tried out now: afterwards nobody looks at what went wrong.
        crate::bundle::check(&new.config.functions[0])
            .map_err(|error| Error::Wrong(format!("{error:#}")))?;
        new.record(&self.shared.state.added()).map_err(|error| Error::Record(error.to_string()))?;
        self.added.borrow_mut().push(new);
        self.apply();
        Ok(name)
    }

    /// Removes a function that was added.
    ///
    /// # Errors
    /// There is none, or it is the file's.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let position = self.added.borrow().iter().position(|added| added.name() == name);
        let Some(position) = position else {
            return Err(match self.functions.borrow().contains_key(name) {
                true => Error::OfFile(name.to_owned(), self.config_path.clone()),
                false => Error::None(name.to_owned()),
            });
        };
        added::forget(&self.shared.state.added(), name)
            .map_err(|error| Error::Record(error.to_string()))?;
        self.added.borrow_mut().remove(position);
        self.apply();
        Ok(())
    }

    /// Whether the function was added while a gateway ran.
    pub fn was_added(&self, name: &str) -> bool {
        self.added.borrow().iter().any(|added| added.name() == name)
    }

    /// All functions, by name.
    pub fn functions(&self) -> Vec<Rc<Function>> {
        self.functions.borrow().values().map(|entry| Rc::clone(&entry.function)).collect()
    }

    /// One function.
    pub fn function(&self, name: &str) -> Option<Rc<Function>> {
        self.functions.borrow().get(name).map(|entry| Rc::clone(&entry.function))
    }

    /// The routes of a function.
    pub fn routes_of(&self, name: &str) -> Vec<String> {
        let routes = Rc::clone(&self.routes.borrow());
        let own = routes.iter().filter(|(_, function)| function.name() == name);
        own.map(|(route, _)| route.to_string()).collect()
    }

    /// Looks at the modules, and replaces functions whose module is another and has stayed so since
    /// the last look.
    pub fn look_at_modules(&self) {
        let mut changed = Vec::new();
        for entry in self.functions.borrow_mut().values_mut() {
            let now = Stamp::of(&entry.function.config.source);
            // One that has gone may come back; until then the container has it.
            if now.is_none() || now == entry.stamp {
                entry.seen = None;
            } else if now == entry.seen {
                changed.push(entry.function.name().to_owned());
            } else {
                entry.seen = now;
            }
        }
        if !changed.is_empty() {
            log::info!("the modules of {} have changed", changed.join(", "));
            self.apply();
        }
    }

    /// Takes no more requests for any function: what runs is finished.
    pub fn retire(&self) {
        *self.routes.borrow_mut() = Rc::default();
        for entry in self.functions.borrow().values() {
            entry.function.retire();
        }
    }

    /// Makes the functions those that are configured; those that stay the same are left alone.
    fn apply(&self) {
        let (mut wanted, mut routes) = {
            let config = self.config.borrow();
            (config.functions.clone(), config.routes.clone())
        };
        for added in self.added.borrow().iter() {
            let name = added.name();
            if wanted.iter().any(|function| function.name == name) {
                log::warn!("function {name} was added, but is in the file now, which wins");
                continue;
            }
            wanted.extend(added.config.functions.iter().cloned());
            for (route, name) in &added.config.routes {
                match routes.iter().any(|(other, _)| other == route) {
                    true => log::warn!("function {name}: route \"{route}\" is taken by the file"),
                    false => routes.push((route.clone(), name.clone())),
                }
            }
        }
        let mut old = std::mem::take(&mut *self.functions.borrow_mut());
        let mut new = BTreeMap::new();
        for config in wanted {
            let name = config.name.clone();
            let stamp = Stamp::of(&config.source);
            let kept = old.remove(&name).filter(|entry| {
                let same = entry.function.config == config && entry.stamp == stamp;
                if !same {
                    entry.function.retire();
                }
                same
            });
            let entry = kept.unwrap_or_else(|| {
                let named = self.named(&name);
                let function = Function::start(&self.shared, config, named);
                Entry { function, stamp, seen: None }
            });
            new.insert(name, entry);
        }
        let target = |(route, name): (Route, String)| {
            new.get(&name).map(|entry| (route, Rc::clone(&entry.function)))
        };
        let routes = routes.into_iter().filter_map(target).collect();
        *self.routes.borrow_mut() = Rc::new(Table::new(routes));
        for (name, entry) in old {
            log::info!("function {name} goes");
            entry.function.retire();
        }
        *self.functions.borrow_mut() = new;
    }

    fn named(&self, name: &str) -> Rc<Named> {
        let mut named = self.named.borrow_mut();
        let new =
            || Named { numbers: Numbers::default(), log: Log::open(self.shared.state.log(name)) };
        Rc::clone(named.entry(name.to_owned()).or_insert_with(|| Rc::new(new())))
    }

    /// The file that the gateway was configured with.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }
}

impl Service for Gateway {
    async fn answer(self: Rc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let mut request = request;
        for _ in 0..ROUNDS {
            let path = match path::normalize(request.uri().path()) {
                Ok(path) => path,
                // The front has answered all but `OPTIONS *`.
                Err(problem) => {
                    self.shared.metrics.unrouted();
                    return plain(StatusCode::BAD_REQUEST, PLAIN, format!("{problem}\n"));
                }
            };
            // No borrow is held while the function works.
            let routes = Rc::clone(&self.routes.borrow());
            let function = match routes.find(request.method().as_str(), &path) {
                Match::Found(function) => Rc::clone(function),
                Match::Method(methods) => {
                    self.shared.metrics.unrouted();
                    return not_allowed(&methods);
                }
                Match::None => {
                    self.shared.metrics.unrouted();
                    return plain(StatusCode::NOT_FOUND, PLAIN, "no function has this path\n");
                }
            };
            drop((routes, path));
            let call =
                Call { tally: Tally::new(Rc::clone(&function)), peer, limits: &self.shared.limits };
            match proxy::call(&function, request, call).await {
                Outcome::Answer(response) => return response,
                Outcome::Again(again) => request = again,
            }
        }
        plain(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "the function is being replaced\n")
    }
}

/// The type of short texts.
pub const PLAIN: &str = "text/plain; charset=utf-8";

fn not_allowed(methods: &[&str]) -> Response<Body> {
    let mut response =
        plain(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "this path has other methods\n");
    if let Ok(allow) = HeaderValue::from_str(&methods.join(", ")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
