//! `kiln update`.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use kiln_runtime::update;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use serde::Deserialize;

use crate::global::Global;

#[derive(Args, Debug)]
pub struct Update {
    /// File with linux.resources as in config.json, or - for stdin; the other options are ignored
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Period that the CPU quota is for, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds; -1 for no limit
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPU time beyond the quota that may be saved up, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_burst: Option<u64>,
    /// CPU shares, relative to other containers
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Period that the realtime runtime is for, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_rt_period: Option<u64>,
    /// Realtime CPU time in each period, in microseconds
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// 1: run only when nobody else wants to; 0: as usual
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Ignored: obsolete
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    kernel_memory: Option<String>,
    /// Ignored: obsolete
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    kernel_memory_tcp: Option<String>,
    /// Memory limit in bytes, or with a unit (64M); -1 for none
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Memory that is kept from being reclaimed while others have more
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory_reservation: Option<i64>,
    /// Limit of memory and swap together; -1 for none on swap
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Number of processes and threads; -1 for no limit, 0 leaves it
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// L3 cache schema of Intel RDT
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Memory bandwidth schema of Intel RDT
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl Update {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        let (_, container) = global.find(&self.id)?;
        let given = |schema: &Option<String>| schema.clone().filter(|schema| !schema.is_empty());
        let (cache, bandwidth) = (given(&self.l3_cache_schema), given(&self.mem_bw_schema));
        let resources = match &self.resources {
            Some(file) => read(file)?,
            None => self.flags(),
        };
        if cache.is_some() || bandwidth.is_some() {
            update::update_rdt(&container, cache.as_deref(), bandwidth.as_deref())?;
        }
        update::update(&container, &resources)?;
        Ok(ExitCode::SUCCESS)
    }

    fn flags(self) -> LinuxResources {
        for (flag, value) in
            [("kernel-memory", &self.kernel_memory), ("kernel-memory-tcp", &self.kernel_memory_tcp)]
        {
            if value.is_some() {
                log::warn!("--{flag} is ignored: kernels do not have it any more");
            }
        }
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(self.cpu_share).set_idle(self.cpu_idle);
        cpu.set_quota(self.cpu_quota).set_period(self.cpu_period).set_burst(self.cpu_burst);
        cpu.set_realtime_runtime(self.cpu_rt_runtime).set_realtime_period(self.cpu_rt_period);
        cpu.set_cpus(self.cpuset_cpus).set_mems(self.cpuset_mems);
        let mut memory = LinuxMemory::default();
        memory.set_limit(self.memory).set_swap(self.memory_swap);
        memory.set_reservation(self.memory_reservation);
        let mut block_io = LinuxBlockIo::default();
        block_io.set_weight(self.blkio_weight);
        let pids = self.pids_limit.map(|limit| *LinuxPids::default().set_limit(limit));
        // What is empty stays absent: only cgroups that something is written to are opened.
        let mut resources = LinuxResources::default();
        resources.set_cpu(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()));
        resources.set_memory(Some(memory).filter(|memory| *memory != LinuxMemory::default()));
        resources.set_block_io(Some(block_io).filter(|io| *io != LinuxBlockIo::default()));
        resources.set_pids(pids);
        resources
    }
}

fn read(file: &Path) -> Result<LinuxResources> {
    if file == "-" {
        return parse(&mut stdin().lock()).context("--resources -");
    }
    let opened = File::open(file).with_context(|| format!("--resources {}", file.display()));
    parse(&mut opened?).with_context(|| format!("--resources {}", file.display()))
}

/// Up to the end of the object: whoever writes it to a pipe need not close that. Tried with what
/// has come so far, because a deserializer that reads by itself is one more of everything, 100 KiB.
pub(crate) fn parse(from: &mut dyn Read) -> Result<LinuxResources> {
    let mut json = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let length = from.read(&mut chunk)?;
        json.extend_from_slice(&chunk[..length]);
        match LinuxResources::deserialize(&mut serde_json::Deserializer::from_slice(&json)) {
            Err(error) if error.is_eof() && length > 0 => {}
            read => return Ok(read?),
        }
    }
}

/// `64M`, `1.5 GiB`, `4096`, `-1`: units are powers of 1024, as runc reads them.
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err("must be a number of bytes, or one with K, M, G, T or P".to_owned()),
    };
    // A whole number stays exact.
    let factor = 1_i64 << (10 * power);
    if let Ok(number) = number.parse::<i64>() {
        return number.checked_mul(factor).ok_or_else(|| "is too large".to_owned());
    }
    match number.parse::<f64>().map(|number| number * factor as f64) {
        Ok(bytes) if (0.0..9e18).contains(&bytes) => Ok(bytes as i64),
        _ => Err("is not a number of bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_may_have_units() {
        for (text, number) in [
            ("-1", -1),
            ("0", 0),
            ("4096", 4096),
            ("9223372036854775807", i64::MAX),
            ("64M", 64 << 20),
            ("64mb", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2b", 2),
        ] {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for bad in [
            "",
            "-2",
            "x",
            "1x",
            "ib",
            "5ib",
            "1..5",
            "8p9",
            "99999p",
            "1e3",
            "9223372036854775808",
        ] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_object_ends_where_it_ends() {
        let resources = parse(&mut &b"{\"pids\": {\"limit\": 5}} and more"[..]).unwrap();
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 5);
        assert!(parse(&mut &b"5"[..]).is_err());
        assert!(parse(&mut &b"{\"pids\""[..]).is_err() && parse(&mut &b""[..]).is_err());
        let mut pieces = (&b"{\"pids\": "[..]).chain(&b"{\"limit\": 6}}"[..]);
        assert_eq!(parse(&mut pieces).unwrap().pids().as_ref().unwrap().limit(), 6);
    }
}
