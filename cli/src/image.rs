//! `kiln image`: wasm modules as images.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use kiln_image::Name;
use kiln_image::pack::{self, Settings};

#[derive(Args, Debug)]
pub struct Image {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an archive of a module, for `ctr image import`, `podman load` and `docker load`
    Pack(Box<Pack>),
}

#[derive(Args, Debug)]
struct Pack {
    /// The module
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// What the image is called, such as example.com/team/hello:1.0
    #[arg(short, long, value_name = "NAME")]
    tag: String,
    /// The archive, or - for stdout
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// An image for every runtime, or an artifact: the module itself, for kiln's shim
    #[arg(long, value_name = "FORMAT", default_value = "compat")]
    format: Format,
    /// Only the artifact, as in a registry; containerd unpacks it from 1.6.25 and 1.7.7 on
    #[arg(long)]
    no_index: bool,
    /// A variable of the module's environment
    #[arg(short, long, value_name = "NAME=VALUE", action = clap::ArgAction::Append)]
    env: Vec<String>,
    /// Its working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Whom it runs as, by number
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// A label of the image
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// An annotation of the image's manifest
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    annotation: Vec<(String, String)>,
    /// Its arguments, unless the container is given others
    #[arg(last = true, value_name = "ARG")]
    args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Format {
    Compat,
    Artifact,
}

impl Image {
    pub fn execute(self) -> Result<ExitCode> {
        match self.command {
            Command::Pack(command) => command.execute()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Pack {
    fn execute(self) -> Result<()> {
        let format = match self.format {
            Format::Compat if self.no_index => bail!("--no-index is for --format artifact"),
            Format::Compat => pack::Format::Compat,
            Format::Artifact => pack::Format::Artifact { index: !self.no_index },
        };
        let name = Name::parse(&self.tag)?;
        let settings = Settings {
            args: self.args,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            labels: self.label.into_iter().collect(),
            annotations: self.annotation.into_iter().collect(),
        };
        let image = pack::pack(&self.file, &name, format, &settings)?;
        if self.output != Path::new("-") {
            image.save(&self.output)?;
            return crate::print::print(&format!("{name} {}\n", image.digest()));
        }
        let out = std::io::stdout();
        if out.is_terminal() {
            bail!("--output -: stdout is a terminal");
        }
        image.write(out.lock()).context("write to stdout")
    }
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("not NAME=VALUE"),
    }
}
