//! The calls of CRI, one method each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_integration::containerd::Containerd;
use kiln_integration::eventually;
use prost::Message;

use crate::api::{
    AttachRequest, ContainerConfig, ContainerStats, ContainerStatsResponse, ContainerStatus,
    ContainerStatusResponse, CreateContainerRequest, Empty, ExecRequest, ExecSyncRequest,
    ExecSyncResponse, Id, IdResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    LinuxContainerResources, PodSandboxConfig, PodSandboxStatusResponse, RunPodSandboxRequest,
    StatusResponse, StopContainerRequest, UpdateContainerResourcesRequest, UrlResponse,
    VersionResponse,
};
use crate::grpc::{self, Status};
use crate::spdy::{Session, Streams};

/// What a call gives.
pub type Answer<T> = Result<T, Status>;

/// A client of one containerd.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of this containerd, which has CRI.
    pub fn new(containerd: &Containerd) -> Self {
        Client { socket: containerd.socket() }
    }

    #[track_caller]
    fn runtime<R: Message + Default>(&self, method: &str, request: &impl Message) -> Answer<R> {
        grpc::call(&self.socket, &format!("/runtime.v1.RuntimeService/{method}"), request)
    }

    /// Version.
    pub fn version(&self) -> Answer<VersionResponse> {
        self.runtime("Version", &Empty {})
    }

    /// Status.
    pub fn status(&self) -> Answer<StatusResponse> {
        self.runtime("Status", &Empty {})
    }

    /// Waits until CRI has seen an image that was imported.
    #[track_caller]
    pub fn await_image(&self, name: &str) {
        let image = Some(ImageSpec { image: name.to_owned() });
        let request = ImageStatusRequest { image };
        eventually(&format!("image {name}"), || {
            let method = "/runtime.v1.ImageService/ImageStatus";
            let answer: Answer<ImageStatusResponse> = grpc::call(&self.socket, method, &request);
            answer.unwrap().image.is_some()
        });
    }

    /// RunPodSandbox; gives the sandbox's id.
    pub fn run_pod_sandbox(&self, config: &PodSandboxConfig, handler: &str) -> Answer<String> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let answer: IdResponse = self.runtime("RunPodSandbox", &request)?;
        Ok(answer.id)
    }

    /// PodSandboxStatus, with the details.
    pub fn pod_sandbox_status(&self, sandbox: &str) -> Answer<PodSandboxStatusResponse> {
        self.runtime("PodSandboxStatus", &Id { id: sandbox.to_owned(), verbose: true })
    }

    /// StopPodSandbox.
    pub fn stop_pod_sandbox(&self, sandbox: &str) -> Answer<Empty> {
        self.runtime("StopPodSandbox", &id(sandbox))
    }

    /// RemovePodSandbox.
    pub fn remove_pod_sandbox(&self, sandbox: &str) -> Answer<Empty> {
        self.runtime("RemovePodSandbox", &id(sandbox))
    }

    /// CreateContainer; gives the container's id.
    pub fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        sandbox_config: &PodSandboxConfig,
    ) -> Answer<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let answer: IdResponse = self.runtime("CreateContainer", &request)?;
        Ok(answer.id)
    }

    /// StartContainer.
    pub fn start_container(&self, container: &str) -> Answer<Empty> {
        self.runtime("StartContainer", &id(container))
    }

    /// StopContainer: SIGTERM, or the image's signal, and SIGKILL after so many seconds. Gives the
    /// time that it took.
    pub fn stop_container(&self, container: &str, timeout: i64) -> Answer<Duration> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout };
        let since = Instant::now();
        let _: Empty = self.runtime("StopContainer", &request)?;
        Ok(since.elapsed())
    }

    /// RemoveContainer.
    pub fn remove_container(&self, container: &str) -> Answer<Empty> {
        self.runtime("RemoveContainer", &id(container))
    }

    /// ContainerStatus.
    pub fn container_status(&self, container: &str) -> Answer<ContainerStatus> {
        let answer: ContainerStatusResponse = self.runtime("ContainerStatus", &id(container))?;
        Ok(answer.status.unwrap_or_default())
    }

    /// The `info` of ContainerStatus: JSON, with the process id and the runtime's config.
    pub fn container_info(&self, container: &str) -> Answer<serde_json::Value> {
        let request = Id { id: container.to_owned(), verbose: true };
        let answer: ContainerStatusResponse = self.runtime("ContainerStatus", &request)?;
        Ok(serde_json::from_str(&answer.info["info"]).unwrap())
    }

    /// UpdateContainerResources.
    pub fn update(&self, container: &str, linux: LinuxContainerResources) -> Answer<Empty> {
        let container_id = container.to_owned();
        let request = UpdateContainerResourcesRequest { container_id, linux: Some(linux) };
        self.runtime("UpdateContainerResources", &request)
    }

    /// ContainerStats.
    pub fn stats(&self, container: &str) -> Answer<ContainerStats> {
        let answer: ContainerStatsResponse = self.runtime("ContainerStats", &id(container))?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// ExecSync, for at most so many seconds (0: for ever).
    pub fn exec_sync(
        &self,
        container: &str,
        command: &[&str],
        timeout: i64,
    ) -> Answer<ExecSyncResponse> {
        let (container_id, cmd) = (container.to_owned(), words(command));
        self.runtime("ExecSync", &ExecSyncRequest { container_id, cmd, timeout })
    }

    /// Exec, and the session that it offers.
    pub fn exec(&self, container: &str, command: &[&str], streams: Streams) -> Answer<Session> {
        let request = ExecRequest {
            container_id: container.to_owned(),
            cmd: words(command),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: true,
            stderr: !streams.tty,
        };
        let answer: UrlResponse = self.runtime("Exec", &request)?;
        Ok(Session::open(&answer.url, streams))
    }

    /// Attach, and the session that it offers.
    pub fn attach(&self, container: &str, streams: Streams) -> Answer<Session> {
        let request = AttachRequest {
            container_id: container.to_owned(),
            stdin: streams.stdin,
            tty: streams.tty,
            stdout: true,
            stderr: !streams.tty,
        };
        let answer: UrlResponse = self.runtime("Attach", &request)?;
        Ok(Session::open(&answer.url, streams))
    }
}

fn id(id: &str) -> Id {
    Id { id: id.to_owned(), verbose: false }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}
