//! From what is written to what can be: each key by itself, and then how they go together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::document::{self, Document, FunctionTable, GatewayTable, RouteTable};
use super::{
    AccessLog, Config, Error, Function, Gateway, Keep, Limits, Protocol, Reuse, Source, value,
};
use crate::route::Route;

/// The text that is being checked, for messages.
pub struct Reader<'a> {
    pub text: &'a str,
    pub path: &'a Path,
    pub base: &'a Path,
}

impl Reader<'_> {
    pub fn read(&self) -> Result<Config, Error> {
        let document: Document = toml::from_str(self.text).map_err(|error| self.syntax(&error))?;
        let gateway = match &document.gateway {
            Some(table) => self.gateway(table)?,
            None => self.gateway(&GatewayTable::default())?,
        };
        let mut functions: Vec<Function> = Vec::new();
        let mut routes: Vec<(Route, String)> = Vec::new();
        for table in &document.function {
            let function = self.function(table)?;
            if functions.iter().any(|other| other.name == function.name) {
                let name = &table.as_ref().name;
                return Err(self.wrong(name, "name", format!("{:?} is taken", function.name)));
            }
            for text in &table.as_ref().routes {
                let route = Route::parse(text.as_ref());
                let route = route.map_err(|problem| self.wrong(text, "routes", problem))?;
                self.add_route(&mut routes, route, &function.name, text, "routes")?;
            }
            functions.push(function);
        }
        for table in &document.route {
            let (route, name) = self.route(table.as_ref(), &functions)?;
            self.add_route(&mut routes, route, &name, &table.as_ref().path, "path")?;
        }
        Ok(Config { gateway, functions, routes })
    }

    fn add_route<T>(
        &self,
        routes: &mut Vec<(Route, String)>,
        route: Route,
        name: &str,
        at: &Spanned<T>,
        key: &str,
    ) -> Result<(), Error> {
        if let Some((_, other)) = routes.iter().find(|(other, _)| *other == route) {
            let problem = format!("\"{route}\" is a route of function {other:?} already");
            return Err(self.wrong(at, key, problem));
        }
        routes.push((route, name.to_owned()));
        Ok(())
    }

    fn gateway(&self, table: &GatewayTable) -> Result<Gateway, Error> {
        let address = |at: &Spanned<String>, key| {
            at.as_ref().parse::<SocketAddr>().map_err(|_| {
                let problem = format!("{:?} is not an address such as 0.0.0.0:8080", at.as_ref());
                self.wrong(at, key, problem)
            })
        };
        let listen = match &table.listen {
            Some(at) => address(at, "listen")?,
            None => SocketAddr::from(([0, 0, 0, 0], 8080)),
        };
        let admin = table.admin.as_ref().map(|at| address(at, "admin")).transpose()?;
        if let (Some(at), true) = (&table.admin, admin == Some(listen) && listen.port() != 0) {
            return Err(self.wrong(at, "admin", "is the address of `listen`"));
        }
        let json = match &table.access_log_format {
            None => false,
            Some(at) => match at.as_ref().as_str() {
                "text" => false,
                "json" => true,
                other => {
                    let problem = format!("{other:?} is neither \"text\" nor \"json\"");
                    return Err(self.wrong(at, "access_log_format", problem));
                }
            },
        };
        let access_log = match &table.access_log {
            None => None,
            Some(at) => Some(AccessLog {
                path: match at.as_ref().as_str() {
                    "-" => None,
                    _ => Some(self.host_path(at, "access_log")?),
                },
                json,
            }),
        };
        let grace = match &table.grace {
            None => Duration::from_secs(30),
            Some(at) => self.duration(at, "grace")?,
        };
        let watch = table.watch.unwrap_or(false);
        Ok(Gateway { listen, admin, access_log, watch, grace })
    }

    fn function(&self, spanned: &Spanned<FunctionTable>) -> Result<Function, Error> {
        let table = spanned.as_ref();
        let name = table.name.as_ref();
        if let Err(problem) = value::check_name(name) {
            return Err(self.wrong(&table.name, "name", format!("{name:?} {problem}")));
        }
        let number = |at: &Option<Spanned<i64>>, key, least: u32, default: u32| match at {
            None => Ok(default),
            Some(at) => self.number(at, key, least),
        };
        let source = self.source(table)?;
        let limits = self.limits(table)?;
        let max = number(&table.max, "max", 1, 16)?;
        let function = Function {
            name: name.clone(),
            protocol: self.protocol(table)?,
            args: self.strings(&table.args, "args")?,
            env: self.env(table)?,
            dirs: table
                .dirs
                .iter()
                .map(|at| {
                    value::dir(at.as_ref(), self.base)
                        .map_err(|problem| self.wrong(at, "dirs", problem))
                })
                .collect::<Result<_, _>>()?,
            limits,
            warm: number(&table.warm, "warm", 0, processors().min(max))?,
            max,
            queue: number(&table.queue, "queue", 0, 256)?,
            timeout: match &table.timeout {
                None => Duration::from_secs(30),
                Some(at) => self.duration(at, "timeout")?,
            },
            reuse: self.reuse(table)?,
            handler: match &table.handler {
                None => None,
                Some(at) if at.as_ref().is_empty() => {
                    return Err(self.wrong(at, "handler", "is no function's name"));
                }
                Some(at) => Some(at.as_ref().clone()),
            },
            freeze_after: self.idle(&table.freeze_after, "freeze_after", 30)?,
            stop_after: self.idle(&table.stop_after, "stop_after", 600)?,
            keep: self.keep(table)?,
            user: match &table.user {
                None => (65534, 65534),
                Some(at) => {
                    value::user(at.as_ref()).map_err(|problem| self.wrong(at, "user", problem))?
                }
            },
            source,
        };
        if let (Some(at), true) = (&table.warm, function.warm > function.max) {
            let problem = format!("is more than max, which is {}", function.max);
            return Err(self.wrong(at, "warm", problem));
        }
        Ok(function)
    }

    fn source(&self, table: &FunctionTable) -> Result<Source, Error> {
        match (&table.module, &table.bundle) {
            (Some(at), None) => {
                let path = self.host_path(at, "module")?;
                let extension = path.extension().and_then(|extension| extension.to_str());
                match extension {
                    Some("wasm" | "wat") => Ok(Source::Module(path)),
                    _ => Err(self.wrong(at, "module", "is called neither .wasm nor .wat")),
                }
            }
            (None, Some(at)) => self.host_path(at, "bundle").map(Source::Bundle),
            (Some(_), Some(at)) => {
                Err(self.wrong(at, "bundle", "there is a module, too: one of them is it"))
            }
            (None, None) => {
                Err(self.wrong(&table.name, "name", "the function has neither module nor bundle"))
            }
        }
    }

    fn protocol(&self, table: &FunctionTable) -> Result<Option<Protocol>, Error> {
        let Some(at) = &table.protocol else {
            return Ok(table.module.as_ref().map(|_| Protocol::Keeper));
        };
        match at.as_ref().as_str() {
            "keeper" => Ok(Some(Protocol::Keeper)),
            "cgi" => Ok(Some(Protocol::Cgi)),
            other => {
                let problem = format!("{other:?} is neither \"keeper\" nor \"cgi\"");
                Err(self.wrong(at, "protocol", problem))
            }
        }
    }

    fn keep(&self, table: &FunctionTable) -> Result<Keep, Error> {
        let Some(at) = &table.keep else { return Ok(Keep::Nothing) };
        match at.as_ref().as_str() {
            "nothing" => Ok(Keep::Nothing),
            "frozen" => Ok(Keep::Frozen),
            "warm" => Ok(Keep::Warm),
            other => {
                let problem = format!("{other:?} is none of \"nothing\", \"frozen\" and \"warm\"");
                Err(self.wrong(at, "keep", problem))
            }
        }
    }

    fn reuse(&self, table: &FunctionTable) -> Result<Option<Reuse>, Error> {
        let Some(at) = &table.reuse else { return Ok(None) };
        match *at.as_ref() {
            document::Reuse::Whether(false) => Ok(None),
            document::Reuse::Whether(true) => Ok(Some(Reuse::Often)),
            document::Reuse::Times(number) => {
                self.in_range(number, at, "reuse", 1).map(|number| Some(Reuse::Times(number)))
            }
        }
    }

    fn limits(&self, table: &FunctionTable) -> Result<Limits, Error> {
        let limits = table.limits.as_ref();
        let memory = limits.and_then(|limits| limits.memory.as_ref());
        let cpu = limits.and_then(|limits| limits.cpu.as_ref());
        let pids = limits.and_then(|limits| limits.pids.as_ref());
        Ok(Limits {
            memory: memory
                .map(|at| {
                    value::bytes(at.as_ref())
                        .map_err(|problem| self.wrong(at, "limits.memory", problem))
                })
                .transpose()?,
            cpu_milli: cpu
                .map(|at| {
                    value::cpu_milli(*at.as_ref())
                        .map_err(|problem| self.wrong(at, "limits.cpu", problem))
                })
                .transpose()?,
            pids: match pids {
                None => 512,
                Some(at) => self.number(at, "limits.pids", 1)?,
            },
        })
    }

    fn env(&self, table: &FunctionTable) -> Result<Vec<(String, String)>, Error> {
        let mut env = Vec::new();
        for (name, at) in &table.env {
            let value = at.as_ref();
            if name.is_empty() || name.contains(['=', '\0']) {
                let problem = format!("{name:?} is not a variable's name");
                return Err(self.wrong(at, "env", problem));
            }
            if value.contains('\0') {
                return Err(self.wrong(at, &format!("env.{name}"), "has a zero byte in it"));
            }
            env.push((name.clone(), value.clone()));
        }
        Ok(env)
    }

    fn strings(&self, list: &[Spanned<String>], key: &str) -> Result<Vec<String>, Error> {
        let checked = |at: &Spanned<String>| match at.as_ref().contains('\0') {
            true => Err(self.wrong(at, key, "has a zero byte in it")),
            false => Ok(at.as_ref().clone()),
        };
        list.iter().map(checked).collect()
    }

    fn route(&self, table: &RouteTable, functions: &[Function]) -> Result<(Route, String), Error> {
        let name = table.function.as_ref();
        if !functions.iter().any(|function| function.name == *name) {
            let problem = format!("there is no function {name:?}");
            return Err(self.wrong(&table.function, "function", problem));
        }
        let method = match &table.method {
            None => None,
            Some(at) => Some(
                Route::check_method(at.as_ref())
                    .map_err(|problem| self.wrong(at, "method", problem))?,
            ),
        };
        let route = Route::new(method, table.path.as_ref());
        let route = route.map_err(|problem| self.wrong(&table.path, "path", problem))?;
        Ok((route, name.clone()))
    }

    /// `never`, or a duration.
    fn idle(
        &self,
        at: &Option<Spanned<String>>,
        key: &str,
        default: u64,
    ) -> Result<Option<Duration>, Error> {
        match at {
            None => Ok(Some(Duration::from_secs(default))),
            Some(at) if at.as_ref() == "never" => Ok(None),
            Some(at) => self.duration(at, key).map(Some),
        }
    }

    fn duration(&self, at: &Spanned<String>, key: &str) -> Result<Duration, Error> {
        let problem = || format!("{:?} is not a duration such as 30s or 500ms", at.as_ref());
        match humantime::parse_duration(at.as_ref()) {
            // Instants must not overflow.
            Ok(duration) if duration > Duration::from_secs(366 * 86400) => {
                Err(self.wrong(at, key, "is more than a year"))
            }
            Ok(duration) if duration.is_zero() => Err(self.wrong(at, key, "is no time at all")),
            Ok(duration) => Ok(duration),
            Err(_) => Err(self.wrong(at, key, problem())),
        }
    }

    fn number(&self, at: &Spanned<i64>, key: &str, least: u32) -> Result<u32, Error> {
        self.in_range(*at.as_ref(), at, key, least)
    }

    fn in_range<T>(
        &self,
        number: i64,
        at: &Spanned<T>,
        key: &str,
        least: u32,
    ) -> Result<u32, Error> {
        const MOST: i64 = 1_000_000;
        match u32::try_from(number) {
            Ok(number) if number >= least && i64::from(number) <= MOST => Ok(number),
            _ => Err(self.wrong(at, key, format!("{number} is not between {least} and {MOST}"))),
        }
    }

    fn host_path(&self, at: &Spanned<String>, key: &str) -> Result<PathBuf, Error> {
        let text = at.as_ref();
        if text.is_empty() || text.contains('\0') {
            return Err(self.wrong(at, key, format!("{text:?} is not a path")));
        }
        Ok(self.base.join(text))
    }

    fn wrong<T>(&self, at: &Spanned<T>, key: &str, problem: impl Into<String>) -> Error {
        Error::Key {
            path: self.path.to_owned(),
            line: self.line(at.span().start),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        1 + count_lines(before)
    }

    /// What the parser says, which knows the place but not the key.
    fn syntax(&self, error: &toml::de::Error) -> Error {
        let start = error.span().map_or(0, |span| span.start);
        let line = self.line(start);
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        let key = match text.split_once('=') {
            Some((key, _)) => key.trim(),
            None => text.trim(),
        };
        let key = if key.is_empty() { "syntax" } else { key };
        // The parser's messages have lines; ours is one.
        let problem = error.message().replace('\n', ", ");
        Error::Key { path: self.path.to_owned(), line, key: key.to_owned(), problem }
    }
}

/// As many instances are made ahead as can run at once.
fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get().try_into().unwrap_or(1))
}

/// How many ends of lines there are.
pub fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}
