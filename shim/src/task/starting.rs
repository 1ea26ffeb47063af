//! Start: of init, of an exec, and of what was checkpointed.

use std::os::fd::OwnedFd;

use containerd_shim_protos::api::{StartRequest, StartResponse};
use containerd_shim_protos::events::task;
use kiln_runtime::order::{self, Order};
use kiln_runtime::start;

use super::{After, KILLED, Reply, carry_out, encoded};
use crate::container::Stage;
use crate::error::Error;
use crate::exit::Exit;
use crate::jobs::{Done, Job};
use crate::server::{Call, Server};
use crate::stdio;

impl Server {
    pub(super) fn start(&mut self, call: Call, request: &StartRequest) -> Reply {
        let StartRequest { id, exec_id, .. } = request;
        let process = self.process(id, exec_id)?;
        if process.stage != Stage::Created {
            let status = self.container(id)?.status(process);
            let killed = process.exit().is_some_and(|exit| exit.status == KILLED);
            let hint = if killed { ": killed (hint: is the memory limit too small?)" } else { "" };
            return Err(Error::Status(format!("cannot start a process that is {status:?}{hint}")));
        }
        let mut console = None;
        let begun = match exec_id.as_str() {
            "" if self.container(id)?.restore.is_some() => self.restore(id, &mut console),
            "" => self.start_init(id),
            _ => self.execute(id, exec_id, &mut console),
        };
        let job = begun?;
        self.process_mut(id, exec_id)?.stage = Stage::Starting;
        let (id, exec_id) = (id.clone(), exec_id.clone());
        self.expect(job, After::Start { call, id, exec_id, console });
        Ok(None)
    }

    /// Mostly no more than a word to init.
    fn start_init(&self, id: &str) -> Result<Job, Error> {
        match start::begin(self.find(id)?.1)? {
            Some(begun) => Ok(Job::starting(begun)),
            None => self.with_state(id, |_, dir| Ok(start::start(&dir, None)?)),
        }
    }

    fn execute(
        &mut self,
        id: &str,
        exec_id: &str,
        console: &mut Option<OwnedFd>,
    ) -> Result<Job, Error> {
        let streams = self.streams(id, exec_id, console)?;
        let container = self.container(id)?;
        let order = Order::Exec(order::Exec {
            root: container.options.state_root(&self.namespace),
            id: id.to_owned(),
            process: self.process(id, exec_id)?.spec.clone(),
            pid_file: None,
        });
        if container.facts.may_be_wasm() && !container.facts.is_sandbox() {
            return self.warm.order(&order, streams, None);
        }
        carry_out(&order, &streams)
    }

    fn restore(&mut self, id: &str, console: &mut Option<OwnedFd>) -> Result<Job, Error> {
        let streams = self.streams(id, "", console)?;
        let restore = self.container(id)?.restore.clone();
        let missing = || Error::Status("the container is no checkpoint's".to_owned());
        let order = Order::Restore(restore.ok_or_else(missing)?);
        carry_out(&order, &streams)
    }

    pub(super) fn started(
        &mut self,
        id: &str,
        exec_id: &str,
        console: Option<OwnedFd>,
        result: Result<Done, Error>,
    ) -> Result<Vec<u8>, Error> {
        let is_init = exec_id.is_empty();
        let (pid, _) = result.inspect_err(|_| self.start_failed(id, exec_id))?;
        if let Some(console) = &console {
            self.take_terminal(id, exec_id, console)?;
        }
        let process = self.process_mut(id, exec_id)?;
        // A created container has its pid already.
        if process.pid == 0 {
            process.pid = pid;
        }
        let pid = process.pid;
        process.stage = Stage::Running;
        if is_init {
            let mut event = task::TaskStart::new();
            (event.container_id, event.pid) = (id.to_owned(), pid.cast_unsigned());
            self.publisher.publish(&event);
        } else {
            let mut event = task::TaskExecStarted::new();
            (event.container_id, event.exec_id) = (id.to_owned(), exec_id.to_owned());
            event.pid = pid.cast_unsigned();
            self.publisher.publish(&event);
        }
        let mut response = StartResponse::new();
        response.pid = pid.cast_unsigned();
        Ok(encoded(&response))
    }

    /// An exec that could not be started has ended; a container ends by itself.
    fn start_failed(&mut self, id: &str, exec_id: &str) {
        let Ok(process) = self.process_mut(id, exec_id) else { return };
        process.stage = Stage::Created;
        if process.pid == 0 {
            process.stage = Stage::Stopped(Exit::now(255));
            process.held = stdio::Held::default();
            let waiters = std::mem::take(&mut process.waiters);
            self.tell(waiters, id, exec_id);
        }
    }

    pub(super) fn tell_early_exit(&mut self, id: &str, exec_id: &str) {
        let Ok(process) = self.process_mut(id, exec_id) else { return };
        let (pid, early) = (process.pid, process.early_exit.take());
        let running = process.exit().is_none();
        if let Some(exit) = early.or_else(|| self.claim(pid)).filter(|_| running) {
            self.process_ended(id, exec_id, exit);
        }
    }
}
