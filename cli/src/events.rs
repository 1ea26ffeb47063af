//! `kiln events`.

use std::io::{ErrorKind, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kiln_runtime::events::{Event, Observed};

use crate::global::Global;

#[derive(Args, Debug)]
pub struct Events {
    /// Print the statistics once
    #[arg(long)]
    stats: bool,
    /// Time between two statistics, such as 500ms, 5s or 1m30s
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
    interval: Duration,
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

impl Events {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        if self.interval.is_zero() {
            bail!("duration interval must be greater than 0");
        }
        let (_, container) = global.find(&self.id)?;
        let observed = Observed::new(&container)?;
        if self.stats {
            print(&observed.stats()?)?;
        } else {
            observed.watch(self.interval, print)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One line, at once; false if nobody reads any more.
fn print(event: &Event) -> Result<bool> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut out = stdout().lock();
    match out.write_all(&line).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.context("print an event").map(|()| true),
    }
}

/// The longest that Go's syntax can say: some 292 years.
const LONGEST: Duration = Duration::from_nanos(i64::MAX.cast_unsigned());

/// Go's syntax: numbers with fractions, each with its unit, one after another.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be numbers with units (ns, us, ms, s, m, h), such as 1m30s".to_owned();
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).filter(|total| *total <= LONGEST).ok_or_else(wrong)?;
        rest = after;
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("5s", 5000),
            ("0", 0),
            ("0s", 0),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("+.5s", 500),
            ("2000us", 2),
            ("2000\u{b5}s", 2),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in
            ["", "5", "s", "-5s", "5 s", "5d", "1.2.3s", ".s", "1e3s", "9999999999999999999999h"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
        // Beyond it an Instant would overflow.
        assert!(duration("2562047h").is_ok() && duration("5000000000000000h").is_err());
    }
}
