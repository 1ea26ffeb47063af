//! Delete, Kill, Wait and Shutdown.

use std::os::fd::AsFd;

use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::MessageField;
use kiln_runtime::{delete, kill, snapshot, sys};
use rustix::io::Errno;
use rustix::process::PidfdFlags;

use super::{After, KILLED, Reply, empty, encode, encoded, find};
use crate::container::{Awaited, Process, Stage};
use crate::error::{Context, Error};
use crate::exit::Exit;
use crate::jobs::Job;
use crate::server::{Call, Server};

impl Server {
    pub(super) fn delete(&mut self, call: Call, request: &DeleteRequest) -> Reply {
        if self.put_off(call, request) {
            return Ok(None);
        }
        self.delete_now(call, request)
    }

    /// The same, without a look at its output.
    ///
    /// # Errors
    /// It is refused.
    pub fn delete_now(&mut self, call: Call, request: &DeleteRequest) -> Reply {
        let DeleteRequest { id, exec_id, .. } = request;
        let container = self.container(id)?;
        let process = self.process(id, exec_id)?;
        if process.stage == Stage::Making && exec_id.is_empty() {
            return self.delete_unmade(call, id);
        }
        if matches!(process.stage, Stage::Making | Stage::Starting | Stage::Running) {
            let status = container.status(process);
            return Err(Error::Status(format!("cannot delete a process that is {status:?}")));
        }
        if container.leaving {
            return Err(Error::Status(format!("container {id} is being deleted")));
        }
        if !exec_id.is_empty() {
            let response = delete_response(process);
            if let Some(process) = self.container_mut(id)?.execs.remove(exec_id) {
                self.drop_terminal(process.terminal);
                // One that was never started has nobody else to end it.
                self.tell(process.waiters, id, exec_id);
            }
            return encode(&response);
        }
        let bundle = container.bundle.clone();
        let root = container.options.state_root(&self.namespace);
        let job = Job::start(&[], || {
            match find(&root, id) {
                Ok((root, dir)) => delete::delete(&root, &dir, false)?,
                // Never restored, or deleted by hand.
                Err(Error::Runtime(kiln_runtime::Error::NotFound(_))) => {}
                Err(error) => return Err(error),
            }
            snapshot::unmount_all(&bundle);
            Ok((0, None))
        })?;
        self.container_mut(id)?.leaving = true;
        self.expect(job, After::Delete { call, id: id.clone() });
        Ok(None)
    }

    /// One that is being made is what a caller leaves who did not want to wait any more: a hook may
    /// hang. It is told to end; when nobody is at work any more, what has come of it is undone.
    fn delete_unmade(&mut self, call: Call, id: &str) -> Reply {
        let job = self.with_state(id, |root, dir| Ok(delete::delete(&root, &dir, true)?))?;
        let container = self.container_mut(id)?;
        container.leaving = true;
        container.awaited.push((call, Awaited::Delete));
        self.expect(job, After::Nothing);
        Ok(None)
    }

    pub(super) fn deleted(&mut self, id: &str) -> Result<Vec<u8>, Error> {
        let init = &self.container(id)?.init;
        if init.stage == Stage::Created && init.pid != 0 {
            // The job has killed it: its end comes before its removal.
            self.process_ended(id, "", killed());
        }
        let container = self.forget(id);
        let container = container.ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        let response = delete_response(&container.init);
        let mut event = task::TaskDelete::new();
        id.clone_into(&mut event.container_id);
        event.pid = response.pid;
        event.exit_status = response.exit_status;
        event.exited_at.clone_from(&response.exited_at);
        self.publisher.publish(&event);
        Ok(encoded(&response))
    }

    pub(super) fn kill(&mut self, request: &KillRequest) -> Reply {
        let KillRequest { id, exec_id, .. } = request;
        let signal = i32::try_from(request.signal).unwrap_or(-1);
        let process = self.process(id, exec_id)?;
        if process.exit().is_some() && !request.all {
            return Err(Error::Finished);
        }
        if exec_id.is_empty() {
            let (_, dir) = self.find(id)?;
            match kill::kill(&dir, signal, request.all) {
                Err(kiln_runtime::Error::NotRunning) => return Err(Error::Finished),
                killed => killed?,
            }
            return empty();
        }
        let pid = match process.stage {
            Stage::Running => rustix::process::Pid::from_raw(process.pid),
            _ => return Err(Error::Status(format!("process {exec_id} does not run"))),
        };
        // Our child, not reaped: the pid is its.
        let process = pid.ok_or(Error::Finished)?;
        let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).step("find it")?;
        // Not by an enumeration: that has neither 0 nor the real-time ones.
        match sys::pidfd_send_signal(process.as_fd(), signal) {
            Err(Errno::SRCH) => Err(Error::Finished),
            sent => sent.step(format!("send signal {signal}")).and_then(|()| empty()),
        }
    }

    /// SIGKILL to what a shared pid namespace has kept of a container.
    pub fn kill_what_is_left(&mut self, id: &str) {
        let job = self.with_state(id, |_, dir| match kill::kill(&dir, libc::SIGKILL, true) {
            Err(kiln_runtime::Error::NotRunning) => Ok(()),
            killed => Ok(killed?),
        });
        match job {
            Ok(job) => self.expect(job, After::Nothing),
            Err(error) => log::warn!("container {id}: {error}"),
        }
    }

    pub(super) fn wait_for(&mut self, call: Call, request: &WaitRequest) -> Reply {
        let process = self.process_mut(&request.id, &request.exec_id)?;
        if process.exit().is_none() {
            process.waiters.push(call);
            return Ok(None);
        }
        self.wait_response(&request.id, &request.exec_id).map(Some)
    }

    /// Answers those who wait for a process.
    pub fn tell(&mut self, waiters: Vec<Call>, id: &str, exec_id: &str) {
        for call in waiters {
            let answer = self.wait_response(id, exec_id);
            self.answer(call, answer);
        }
    }

    /// How the process has ended, encoded.
    ///
    /// # Errors
    /// It has been deleted.
    pub fn wait_response(&self, id: &str, exec_id: &str) -> Result<Vec<u8>, Error> {
        let mut response = WaitResponse::new();
        if let Some(exit) = self.process(id, exec_id)?.exit() {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(exit.at.clone());
        }
        Ok(encoded(&response))
    }

    pub(super) fn shutdown(&mut self, request: &ShutdownRequest) -> Reply {
        if request.now || self.containers.is_empty() {
            self.end();
        }
        empty()
    }
}

/// The end of what was never started.
fn killed() -> Exit {
    Exit::now(KILLED)
}

pub(super) fn delete_response(process: &Process) -> DeleteResponse {
    let mut response = DeleteResponse::new();
    response.pid = process.pid.cast_unsigned();
    let exit = process.exit().cloned().unwrap_or_else(killed);
    response.exit_status = exit.status;
    response.exited_at = MessageField::some(exit.at);
    response
}
