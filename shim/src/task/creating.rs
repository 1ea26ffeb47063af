//! Create: by a job, or by the warm parent where an engine may be needed.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse};
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::types::mount as api;
use kiln_cgroups::OomWatch;
use kiln_image::containerd::module_of;
use kiln_runtime::delete;
use kiln_runtime::order::{self, Order, RefusalKind};
use kiln_runtime::snapshot::{self, Mount};

use super::ending::delete_response;
use super::{After, Creation, Reply, carry_out, encoded, find, first};
use crate::container::{Awaited, Container, Io, Process, Stage};
use crate::error::{Context, Error};
use crate::facts::Facts;
use crate::jobs::{Done, Job};
use crate::options::Options;
use crate::server::{Call, Server};

/// How long containerd may take to hand a module over.
const LOOKUP_LIMIT: Duration = Duration::from_secs(30);

impl Server {
    pub(super) fn create(&mut self, call: Call, request: CreateTaskRequest) -> Reply {
        let id = request.id.clone();
        if self.containers.contains_key(&id) {
            return Err(Error::Exists(format!("container {id}")));
        }
        if self.is_ending() {
            return Err(Error::Status("the shim is shut down".to_owned()));
        }
        let bundle = PathBuf::from(&request.bundle);
        let options = Options::read(request.options.as_ref())?;
        options.save(&bundle)?;
        let facts = Facts::read(&bundle)?;
        let io = Io {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let order = order::Create {
            root: options.state_root(&self.namespace),
            id: id.clone(),
            bundle: bundle.clone(),
            pid_file: Some(bundle.join("init.pid")),
            pivot: !options.no_pivot_root,
            keyring: !options.no_new_keyring,
            systemd: options.systemd_cgroup,
            snapshot: request.rootfs.iter().map(mount).collect(),
            empty: false,
        };
        let warm = facts.may_be_wasm() && !facts.is_sandbox();
        let restore = (!request.checkpoint.is_empty()).then(|| order::Restore {
            container: order.clone(),
            image_path: PathBuf::from(&request.checkpoint),
            work_path: Some(first(&options.criu_work_path, bundle.join("work"))),
        });
        let container = Container {
            bundle,
            options,
            init: Process::new(io, Stage::Making),
            execs: Default::default(),
            paused: false,
            restore,
            oom: None,
            leaving: false,
            awaited: Vec::new(),
            facts,
        };
        if container.facts.may_be_wasm()
            && let Err(error) = self.warm.start()
        {
            // Of a sandbox: its containers will say it.
            log::warn!("{error}");
        }
        self.containers.insert(id.clone(), container);
        let creation = Creation {
            call,
            request,
            order,
            streams: None,
            console: None,
            warm,
            again: false,
            module: None,
        };
        let begun = self.make(creation).map_err(|(_, error)| error);
        begun.inspect_err(|_| drop(self.forget(&id)))?;
        Ok(None)
    }

    /// Of a container that is no more: whoever waits for something of it is told.
    pub(super) fn forget(&mut self, id: &str) -> Option<Container> {
        let mut container = self.containers.remove(id)?;
        let missing = || Err(Error::NotFound(format!("container {id}")));
        for (call, awaited) in container.awaited.drain(..) {
            let answer = match awaited {
                Awaited::Delete => Ok(encoded(&delete_response(&container.init))),
                Awaited::Connect | Awaited::Pids => missing(),
            };
            self.answer(call, answer);
        }
        for process in container.execs.values_mut().chain([&mut container.init]) {
            self.drop_terminal(process.terminal);
            process.waiters.drain(..).for_each(|call| self.answer(call, missing()));
        }
        Some(container)
    }

    /// Of a container that is there, after all.
    pub(super) fn stays(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.leaving = false;
        for (call, awaited) in std::mem::take(&mut container.awaited) {
            let answer = match awaited {
                Awaited::Connect => self.connect_response(id),
                Awaited::Pids => self.pids_response(id),
                // It was to go before it was there: `created` sees to that.
                Awaited::Delete => continue,
            };
            self.answer(call, answer);
        }
    }

    /// Has a job make the container, or the warm parent where an engine may be needed.
    fn make(&mut self, creation: Creation) -> Result<(), (Box<Creation>, Error)> {
        let mut creation = creation;
        match self.begin(&mut creation) {
            Ok(Some(job)) => self.expect(job, After::Create(creation)),
            // Its process comes with `start`.
            Ok(None) => self.created(creation, Ok((0, None))),
            Err(error) => return Err((Box::new(creation), error)),
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, creation: &mut Creation) -> Result<Option<Job>, Error> {
        let id = creation.order.id.clone();
        if self.container(&id)?.restore.is_some() {
            return Ok(None);
        }
        let streams = match creation.streams.take() {
            Some(streams) => streams,
            None => self.streams(&id, "", &mut creation.console)?,
        };
        let streams = &*creation.streams.insert(streams);
        let order = Order::Create(creation.order.clone());
        if !creation.warm {
            return carry_out(&order, streams).map(Some);
        }
        let streams = streams.try_clone().step("keep the streams")?;
        let module = creation.module.as_ref().map(OwnedFd::try_clone).transpose();
        self.warm.order(&order, streams, module.step("keep the module")?).map(Some)
    }

    /// The same once more, after something has been found out.
    fn make_again(&mut self, creation: Creation) {
        if let Err((creation, error)) = self.make(creation) {
            self.failed(*creation, error);
        }
    }

    /// Looks for the module of a container whose rootfs is empty: its image may be a wasm artifact,
    /// which nobody unpacks.
    fn look_up(&mut self, creation: Creation) {
        let id = creation.order.id.clone();
        let begun = self.container(&id).and_then(|container| {
            let entrypoint = container.facts.entrypoint();
            Job::start(&[], || {
                let (address, limit) = (&self.address, LOOKUP_LIMIT);
                let module = module_of(address, &self.namespace, &id, entrypoint, limit)?;
                Ok((0, module.map(|module| module.file)))
            })
        });
        match begun {
            Ok(job) => self.expect(job, After::LookUp(creation)),
            Err(error) => self.failed(creation, error),
        }
    }

    pub(super) fn looked_up(&mut self, mut creation: Creation, result: Result<Done, Error>) {
        match result {
            Ok((_, module)) => {
                creation.warm |= module.is_some();
                creation.module = module;
                // If there is none, this is a rootfs like any other.
                creation.order.empty = true;
                self.make_again(creation);
            }
            Err(error) => self.failed(creation, error),
        }
    }

    pub(super) fn created(&mut self, mut creation: Creation, result: Result<Done, Error>) {
        let id = creation.order.id.clone();
        let error = match result {
            Ok((pid, _)) => match self.announce(&creation, pid) {
                Ok(answer) => {
                    self.answer(creation.call, Ok(answer));
                    return self.settle(&id);
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        let is = |kind| matches!(&error, Error::Refused(refusal) if refusal.kind == kind);
        if is(RefusalKind::EmptyRootfs) {
            return self.look_up(creation);
        }
        let untouched = find(&creation.order.root, &id).is_err();
        if is(RefusalKind::Died) && creation.warm && !creation.again && untouched {
            // The warm parent died before it began: another does it.
            log::warn!("container {id}: {error}; another warm parent is started");
            self.warm.forget();
            snapshot::unmount_all(&creation.order.bundle);
            creation.again = true;
            return self.make_again(creation);
        }
        self.failed(creation, error);
    }

    fn failed(&mut self, creation: Creation, error: Error) {
        let order::Create { id, root, bundle, .. } = creation.order;
        // What was mounted is unmounted, and what a job that was killed has left is removed. It is
        // answered afterwards: the id is free then, and containerd has the shim end.
        let undone = Job::start(&[], || {
            if let Ok((root, dir)) = find(&root, &id) {
                delete::delete(&root, &dir, true)?;
            }
            snapshot::unmount_all(&bundle);
            Ok((0, None))
        });
        let after = After::Undo { call: creation.call, id, error };
        match undone {
            Ok(job) => self.expect(job, after),
            Err(left) => self.go_on(after, Err(left)),
        }
    }

    fn announce(&mut self, creation: &Creation, pid: i32) -> Result<Vec<u8>, Error> {
        let id = &creation.order.id;
        if self.container(id)?.leaving {
            return Err(Error::Status(format!("container {id} was deleted while it was made")));
        }
        if let Some(console) = &creation.console
            && pid != 0
        {
            self.take_terminal(id, "", console)?;
        }
        let process = self.process_mut(id, "")?;
        process.pid = pid;
        process.stage = Stage::Created;
        let request = &creation.request;
        let mut event = task::TaskCreate::new();
        event.container_id.clone_from(id);
        event.bundle.clone_from(&request.bundle);
        event.checkpoint.clone_from(&request.checkpoint);
        event.pid = pid.cast_unsigned();
        event.rootfs.clone_from(&request.rootfs);
        let mut io = task::TaskIO::new();
        io.stdin.clone_from(&request.stdin);
        io.stdout.clone_from(&request.stdout);
        io.stderr.clone_from(&request.stderr);
        io.terminal = request.terminal;
        event.io = MessageField::some(io);
        self.publisher.publish(&event);
        let mut response = CreateTaskResponse::new();
        response.pid = pid.cast_unsigned();
        Ok(encoded(&response))
    }

    /// What nobody waits for: an end that was seen too early, and the watch on memory.
    fn settle(&mut self, id: &str) {
        let Ok(process) = self.process(id, "") else { return };
        if let Some(exit) = self.claim(process.pid) {
            self.process_ended(id, "", exit);
        }
        let watch = self
            .cgroup_paths(id)
            .and_then(|paths| Ok(OomWatch::at(&paths).map_err(kiln_runtime::Error::from)?));
        let Some(container) = self.containers.get_mut(id) else { return };
        match watch {
            Ok(watch) => container.oom = Some(watch),
            Err(error) => log::info!("container {id}: no OOM events: {error}"),
        }
        self.stays(id);
    }
}

fn mount(mount: &api::Mount) -> Mount {
    let api::Mount { type_, source, options, .. } = mount;
    Mount { kind: type_.clone(), source: source.clone(), options: options.clone() }
}
