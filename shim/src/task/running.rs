//! What is asked of a container while it runs: Exec, State, Pids, Stats, Pause, Update, Checkpoint,
//! its terminal.

use std::path::PathBuf;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, ExecProcessRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest,
};
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim::oci;
use kiln_runtime::checkpoint::{self, CgroupsMode};
use kiln_runtime::{pause, update};
use oci_spec::runtime::LinuxResources;

use super::{After, Reply, empty, encode, encoded, first};
use crate::container::{Awaited, Io, Process, Stage};
use crate::error::{Context, Error};
use crate::events::any;
use crate::options;
use crate::server::{Call, Server};
use crate::stats;

impl Server {
    pub(super) fn exec(&mut self, request: ExecProcessRequest) -> Reply {
        let container = self.container_mut(&request.id)?;
        if request.exec_id.is_empty() {
            return Err(Error::Request { field: "exec_id", problem: "is empty".to_owned() });
        }
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::Exists(format!("process {}", request.exec_id)));
        }
        let io = Io {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let mut process = Process::new(io, Stage::Created);
        let spec = request.spec.into_option().unwrap_or_default().value;
        process.spec = String::from_utf8(spec)
            .map_err(|_| Error::Request { field: "spec", problem: "is not UTF-8".to_owned() })?;
        container.execs.insert(request.exec_id.clone(), process);
        let mut event = task::TaskExecAdded::new();
        (event.container_id, event.exec_id) = (request.id, request.exec_id);
        self.publisher.publish(&event);
        empty()
    }

    pub(super) fn state(&self, request: &StateRequest) -> Reply {
        let container = self.container(&request.id)?;
        let process = self.process(&request.id, &request.exec_id)?;
        let mut response = StateResponse::new();
        response.id.clone_from(&request.id);
        response.exec_id.clone_from(&request.exec_id);
        response.bundle = container.bundle.to_string_lossy().into_owned();
        response.pid = process.pid.cast_unsigned();
        response.status = EnumOrUnknown::new(container.status(process));
        response.stdin.clone_from(&process.io.stdin);
        response.stdout.clone_from(&process.io.stdout);
        response.stderr.clone_from(&process.io.stderr);
        response.terminal = process.io.terminal;
        if let Some(exit) = process.exit() {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(exit.at.clone());
        }
        encode(&response)
    }

    /// What containerd asks first after its restart. It forgets a container of which it hears
    /// nothing good, and has `delete` remove what is left; so of one that is being made or removed
    /// it hears only when it is known what becomes of it.
    pub(super) fn connect(&mut self, call: Call, request: &ConnectRequest) -> Reply {
        if self.is_awaited(&request.id, call, Awaited::Connect)? {
            return Ok(None);
        }
        self.connect_response(&request.id).map(Some)
    }

    pub(super) fn connect_response(&self, id: &str) -> Result<Vec<u8>, Error> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = self.process(id, "")?.pid.cast_unsigned();
        env!("CARGO_PKG_VERSION").clone_into(&mut response.version);
        Ok(encoded(&response))
    }

    /// Whether the container is being made or removed; the call is answered then when it is.
    fn is_awaited(&mut self, id: &str, call: Call, awaited: Awaited) -> Result<bool, Error> {
        let container = self.container_mut(id)?;
        let changes = container.leaving || container.init.stage == Stage::Making;
        if changes {
            container.awaited.push((call, awaited));
        }
        Ok(changes)
    }

    pub(super) fn pids(&mut self, call: Call, request: &PidsRequest) -> Reply {
        if self.is_awaited(&request.id, call, Awaited::Pids)? {
            return Ok(None);
        }
        self.pids_response(&request.id).map(Some)
    }

    /// Of a container that has ended, which was init: from 1.7 on a restarted containerd forgets a
    /// task without a process, and its exit status with it.
    pub(super) fn pids_response(&self, id: &str) -> Result<Vec<u8>, Error> {
        let container = self.container(id)?;
        let mut pids = self.cgroup(id)?.pids().map_err(kiln_runtime::Error::from)?;
        if pids.is_empty() && container.init.exit().is_some() {
            pids.push(container.init.pid);
        }
        let mut response = PidsResponse::new();
        for pid in pids {
            let mut info = ProcessInfo::new();
            info.pid = pid.cast_unsigned();
            let mut execs = container.execs.iter();
            let exec = execs.find(|(_, exec)| exec.pid == pid && exec.exit().is_none());
            if let Some((exec_id, _)) = exec {
                let mut details = oci::ProcessDetails::new();
                details.exec_id.clone_from(exec_id);
                info.info = MessageField::some(any("containerd.runc.v1.ProcessDetails", &details));
            }
            response.processes.push(info);
        }
        Ok(encoded(&response))
    }

    pub(super) fn stats(&self, request: &StatsRequest) -> Reply {
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(stats::metrics(&self.cgroup(&request.id)?)?);
        encode(&response)
    }

    pub(super) fn pause(&mut self, call: Call, request: &PauseRequest) -> Reply {
        let job = self.with_state(&request.id, |_, dir| Ok(pause::pause(&dir)?))?;
        self.expect(job, After::Freeze { call, id: request.id.clone(), frozen: true });
        Ok(None)
    }

    pub(super) fn resume(&mut self, call: Call, request: &ResumeRequest) -> Reply {
        let job = self.with_state(&request.id, |_, dir| Ok(pause::resume(&dir)?))?;
        self.expect(job, After::Freeze { call, id: request.id.clone(), frozen: false });
        Ok(None)
    }

    pub(super) fn frozen(&mut self, id: String, frozen: bool) -> Vec<u8> {
        if let Some(container) = self.containers.get_mut(&id) {
            container.paused = frozen;
        }
        if frozen {
            let mut event = task::TaskPaused::new();
            event.container_id = id;
            self.publisher.publish(&event);
        } else {
            let mut event = task::TaskResumed::new();
            event.container_id = id;
            self.publisher.publish(&event);
        }
        Vec::new()
    }

    pub(super) fn update(&mut self, call: Call, request: &UpdateTaskRequest) -> Reply {
        self.container(&request.id)?;
        let json = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        let resources: LinuxResources = serde_json::from_slice(json)
            .map_err(|error| Error::Request { field: "resources", problem: error.to_string() })?;
        let job = self.with_state(&request.id, |_, dir| Ok(update::update(&dir, &resources)?))?;
        self.expect(job, After::Answer(call));
        Ok(None)
    }

    pub(super) fn checkpoint(&mut self, call: Call, request: &CheckpointTaskRequest) -> Reply {
        let container = self.container(&request.id)?;
        let wanted = options::of_checkpoint(request.options.as_ref())?;
        let leave_running = !wanted.exit;
        let options = &container.options;
        let image_path = first(&wanted.image_path, PathBuf::from(&request.path));
        let work_path =
            first(&wanted.work_path, first(&options.criu_work_path, container.bundle.join("work")));
        let shared = checkpoint::Shared {
            image_path,
            work_path: Some(work_path),
            tcp_established: wanted.open_tcp,
            ext_unix_sk: wanted.external_unix_sockets,
            shell_job: wanted.terminal,
            file_locks: wanted.file_locks,
            cgroups_mode: cgroups_mode(&wanted.cgroups_mode)?,
            ..Default::default()
        };
        let job = self.with_state(&request.id, |root, dir| {
            std::fs::create_dir_all(shared.work_path.as_deref().unwrap_or(&shared.image_path))
                .step("make CRIU's working directory")?;
            let options = checkpoint::Checkpoint { shared, leave_running, ..Default::default() };
            Ok(checkpoint::checkpoint(&root, &dir, options)?)
        })?;
        let (id, path) = (request.id.clone(), request.path.clone());
        self.expect(job, After::Checkpoint { call, id, path });
        Ok(None)
    }

    pub(super) fn resize_pty(&mut self, request: &ResizePtyRequest) -> Reply {
        let process = self.process(&request.id, &request.exec_id)?;
        // One that is not started yet, or has ended, has none: runc's shim is silent, too.
        let terminal = process.terminal.and_then(|number| self.terminals.get(&number));
        terminal.map_or(Ok(()), |terminal| terminal.resize(request.width, request.height))?;
        empty()
    }

    pub(super) fn close_io(&mut self, request: &CloseIORequest) -> Reply {
        if !request.stdin {
            return empty();
        }
        let process = self.process_mut(&request.id, &request.exec_id)?;
        process.held.stdin = None;
        empty()
    }
}

fn cgroups_mode(mode: &str) -> Result<CgroupsMode, Error> {
    match mode {
        "" => Ok(CgroupsMode::Default),
        "ignore" => Ok(CgroupsMode::Ignore),
        "soft" => Ok(CgroupsMode::Soft),
        "full" => Ok(CgroupsMode::Full),
        "strict" => Ok(CgroupsMode::Strict),
        other => Err(Error::Request {
            field: "options.cgroups_mode",
            problem: format!("{other:?} is not known"),
        }),
    }
}
