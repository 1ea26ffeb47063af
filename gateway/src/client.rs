//! `fn`: the other end of the control socket.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::LocalSet;

use crate::admin::Report;
use crate::args::{Add, Fn, FnCommand};
use crate::state::control_socket;

/// The whole command.
///
/// # Errors
/// No gateway runs with this directory, or it refuses.
pub fn run(command: Fn) -> Result<()> {
    let socket = control_socket(&command.state.state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, execute(&socket, command.command))
}

async fn execute(socket: &Path, command: FnCommand) -> Result<()> {
    match command {
        FnCommand::List { json } => {
            let text = text(call(socket, Method::GET, "/functions", "").await?).await?;
            print(&if json { text + "\n" } else { list(&parse(&text)?) })
        }
        FnCommand::Add(add) => {
            let description = description(&add)?;
            print(&text(call(socket, Method::POST, "/functions", &description).await?).await?)
        }
        FnCommand::Remove { name } => {
            let path = path_of(&name, "")?;
            print(&text(call(socket, Method::DELETE, &path, "").await?).await?)
        }
        FnCommand::Stats { name, json } => {
            let path = match &name {
                Some(name) => path_of(name, "")?,
                None => "/functions".to_owned(),
            };
            let text = text(call(socket, Method::GET, &path, "").await?).await?;
            let one = name.is_some();
            let reports = if one { vec![serde_json::from_str(&text)?] } else { parse(&text)? };
            print(&if json { text + "\n" } else { stats(&reports) })
        }
        FnCommand::Logs { name, follow } => {
            let path = path_of(&name, if follow { "/logs?follow" } else { "/logs" })?;
            let mut body = call(socket, Method::GET, &path, "").await?.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.context("read the log")?;
                let Ok(data) = frame.into_data() else { continue };
                if !write(&data)? {
                    break;
                }
            }
            Ok(())
        }
    }
}

/// A name in a path: nothing else than a name gets there.
fn path_of(name: &str, rest: &str) -> Result<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    match !name.is_empty() && name.bytes().all(allowed) {
        true => Ok(format!("/functions/{name}{rest}")),
        false => bail!("there is no function {name:?}"),
    }
}

async fn call(socket: &Path, method: Method, path: &str, body: &str) -> Result<Response<Incoming>> {
    let hint = || {
        let hint = "(hint: does `kiln serve --config` run? --state names its directory)";
        format!("connect to {} {hint}", socket.display())
    };
    let stream = UnixStream::connect(socket).await.with_context(hint)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "localhost")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?;
    let response = sender.send_request(request).await.context("hear from the gateway")?;
    if !response.status().is_success() {
        let problem = text(response).await?;
        bail!("{}", problem.trim_end());
    }
    Ok(response)
}

async fn text(response: Response<Incoming>) -> Result<String> {
    let bytes = response.into_body().collect().await.context("hear from the gateway")?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse(text: &str) -> Result<Vec<Report>> {
    serde_json::from_str(text).context("understand the gateway")
}

fn list(all: &[Report]) -> String {
    let mut rows = vec![["NAME", "STATE", "REQUESTS", "ROUTES"].map(str::to_owned)];
    rows.extend(all.iter().map(|report| {
        let requests = report.requests.to_string();
        [report.name.clone(), report.state.clone(), requests, report.routes.join(", ")]
    }));
    table(&rows)
}

fn stats(all: &[Report]) -> String {
    let head = [
        "NAME", "STATE", "REQUESTS", "ERRORS", "NOW", "P50", "P99", "MEMORY", "BUSY", "WARM",
        "COLD",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    let millis = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{time:.2}ms"));
    let server = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    rows.extend(all.iter().map(|report| {
        let memory = report.memory_bytes;
        [
            report.name.clone(),
            report.state.clone(),
            report.requests.to_string(),
            report.errors.to_string(),
            report.in_flight.to_string(),
            millis(report.p50_ms),
            millis(report.p99_ms),
            memory.map_or("-".to_owned(), |bytes| format!("{:.1}MiB", bytes as f64 / 1048576.0)),
            server(report.server.as_ref().map(|server| server.busy)),
            server(report.server.as_ref().map(|server| server.warm)),
            report.cold_starts.to_string(),
        ]
    }));
    let mut text = table(&rows);
    for report in all.iter().filter(|report| !report.reason.is_empty()) {
        let _ = writeln!(text, "{}: {}", report.name, report.reason);
    }
    text
}

/// Columns as wide as what is in them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The flags, or the file, as the gateway reads it.
fn description(add: &Add) -> Result<String> {
    if let Some(file) = &add.file {
        if add.name.is_some() {
            bail!("--file has the name in it: no other is needed");
        }
        let mut text = String::new();
        if file.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut text).context("read stdin")?;
        } else {
            text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        }
        return Ok(text);
    }
    let mut text = "[[function]]\n".to_owned();
    let mut key = |name: &str, value: String| {
        let _ = writeln!(text, "{name} = {value}");
    };
    key("name", quoted(add.name.as_deref().unwrap_or_default()));
    if let Some(path) = &add.module {
        key("module", quoted_path(path)?);
    }
    if let Some(path) = &add.bundle {
        key("bundle", quoted_path(path)?);
    }
    let texts = [
        ("protocol", &add.protocol),
        ("timeout", &add.timeout),
        ("freeze_after", &add.freeze_after),
        ("stop_after", &add.stop_after),
        ("keep", &add.keep),
        ("user", &add.user),
        ("handler", &add.handler),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            key(name, quoted(value));
        }
    }
    for (name, value) in [("warm", add.warm), ("max", add.max), ("queue", add.queue)] {
        if let Some(value) = value {
            key(name, value.to_string());
        }
    }
    if let Some(reuse) = &add.reuse {
        // A number or a word; what is neither is refused where it is read.
        let plain = matches!(reuse.as_str(), "true" | "false") || reuse.parse::<u32>().is_ok();
        key("reuse", if plain { reuse.clone() } else { quoted(reuse) });
    }
    let dirs: Vec<String> = add.dirs.iter().map(|dir| absolute_dir(dir)).collect::<Result<_>>()?;
    for (name, list) in [("routes", &add.routes), ("args", &add.args), ("dirs", &dirs)] {
        if !list.is_empty() {
            key(
                name,
                format!("[{}]", list.iter().map(|one| quoted(one)).collect::<Vec<_>>().join(", ")),
            );
        }
    }
    if !add.env.is_empty() {
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) => Ok(format!("{} = {}", quoted(name), quoted(value))),
            None => bail!("--env {text}: is not K=V"),
        };
        let pairs: Vec<_> = add.env.iter().map(pair).collect::<Result<_>>()?;
        key("env", format!("{{ {} }}", pairs.join(", ")));
    }
    let mut limits = Vec::new();
    limits.extend(add.memory.as_ref().map(|memory| format!("memory = {}", quoted(memory))));
    limits.extend(add.cpu.map(|cpu| format!("cpu = {cpu:?}")));
    limits.extend(add.pids.map(|pids| format!("pids = {pids}")));
    if !limits.is_empty() {
        key("limits", format!("{{ {} }}", limits.join(", ")));
    }
    Ok(text)
}

/// As a basic string of TOML's, whose escapes JSON's are among.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn quoted_path(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
    match path.to_str() {
        Some(text) => Ok(quoted(text)),
        None => bail!("{}: is not UTF-8", path.display()),
    }
}

fn absolute_dir(dir: &str) -> Result<String> {
    let Some((host, rest)) = dir.split_once(':') else { return Ok(dir.to_owned()) };
    let host: PathBuf = std::path::absolute(host).with_context(|| format!("--dir {dir}"))?;
    Ok(format!("{}:{rest}", host.display()))
}

fn print(text: &str) -> Result<()> {
    write(text.as_bytes()).map(drop)
}

/// False if nobody reads any more.
fn write(bytes: &[u8]) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("write to stdout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::added::Added;

    #[test]
    fn the_flags_are_a_function() {
        let add = Add {
            name: Some("a".into()),
            module: Some("/m/odd \"name\"\u{7f}.wasm".into()),
            routes: vec!["POST /a".into()],
            env: vec!["K=a \\ b".into()],
            dirs: vec!["/srv:/data:ro".into()],
            memory: Some("64MiB".into()),
            cpu: Some(1.0),
            timeout: Some("2s".into()),
            ..Add::default()
        };
        let added = Added::parse(&description(&add).unwrap()).unwrap();
        let function = &added.config.functions[0];
        assert_eq!(function.env, [("K".to_owned(), "a \\ b".to_owned())]);
        assert_eq!(function.limits.cpu_milli, Some(1000));
        assert!(format!("{:?}", function.source).contains("odd"));
    }

    #[test]
    fn nothing_but_a_name_gets_into_a_path() {
        for name in ["", "a/b", "..", "a?follow", "a b"] {
            assert!(path_of(name, "").is_err(), "{name}");
        }
    }
}
