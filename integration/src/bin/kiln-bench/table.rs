//! The table: medians, quartiles and ratios.

use std::fmt::Write;
use std::fs;

use crate::measure::Runtime;
use crate::rows::Row;

/// The value below which this share of the samples lies.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The middle one.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The whole report in Markdown.
pub fn markdown(rows: &[Row<'_>], runtimes: &[Runtime]) -> String {
    let mut text = String::new();
    let mut head = String::from("| what |");
    for runtime in runtimes {
        let _ = write!(head, " {} |", runtime.version());
    }
    for other in runtimes.iter().filter(|runtime| runtime.name != "kiln") {
        let _ = write!(head, " kiln / {} |", other.name);
    }
    head += " must / aim |";
    let columns = head.matches('|').count() - 1;
    let _ = writeln!(text, "{head}\n|{}", "---|".repeat(columns));
    for row in rows {
        text += &line(row, runtimes, &rows[0]);
    }
    let rounds = rows[0].samples.values().map(Vec::len).max().unwrap_or(0);
    let slow = rows.iter().flat_map(|row| row.samples.values()).map(Vec::len).min().unwrap_or(0);
    let _ = write!(
        text,
        "\nMedians (quartiles) of {rounds} interleaved rounds, {slow} of the slowest row; {}.\n\
        Wasm rows compare with the others' `run` of true. Peak memory of `create` is ru_maxrss of \
        the command and of what it waited for, the largest process of them; that of init is its \
        VmHWM when `create` has ended.\n",
        machine()
    );
    text
}

fn line(row: &Row<'_>, runtimes: &[Runtime], truth: &Row<'_>) -> String {
    let mut line = format!("| {} |", row.name);
    for runtime in runtimes {
        match row.samples.get(runtime.name) {
            Some(samples) => {
                let (low, high) = (quantile(samples, 0.25), quantile(samples, 0.75));
                let unit = row.unit;
                let _ = write!(line, " {:.2} {unit} ({low:.2}-{high:.2}) |", median(samples));
            }
            None => line += " |",
        }
    }
    for other in runtimes.iter().filter(|runtime| runtime.name != "kiln") {
        let own = row.samples.get("kiln").map(|samples| median(samples));
        // What only kiln can run is held against the others' cheapest container.
        let others = if row.wasm { truth } else { row };
        let theirs = others.samples.get(other.name).map(|samples| median(samples));
        match (own, theirs) {
            (Some(own), Some(theirs)) if !row.slow => {
                let _ = write!(line, " {:.2} |", own / theirs);
            }
            _ => line += " |",
        }
    }
    match row.target {
        Some((must, aim)) => line + &format!(" {must} / {aim} |\n"),
        None => line + " |\n",
    }
}

/// Processor, number of them, kernel and cgroup layout.
pub fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let names: Vec<&str> =
        processors.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
    let kernel = read("/proc/sys/kernel/osrelease");
    let v1 = read("/proc/self/mounts").lines().filter(|line| line.contains(" cgroup rw")).count();
    let layout = if v1 > 0 { format!("{v1} cgroup v1 hierarchies") } else { "cgroup v2".into() };
    let name = names.first().copied().unwrap_or("unknown processor");
    format!("{} x {name}, Linux {}, {layout}", names.len(), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&samples), 2.5);
        assert_eq!(quantile(&samples, 0.0), 1.0);
        assert_eq!(quantile(&samples, 1.0), 4.0);
        assert_eq!(quantile(&samples, 0.25), 1.75);
    }
}
