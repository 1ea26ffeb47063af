//! What `--containerd` prints: kiln's figure beside another's, a line for each pair.

use std::fmt::Write;

use crate::table::{median, quantile};

/// Samples of one subject.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Whose they are.
    pub name: String,
    /// What was measured.
    pub samples: Vec<f64>,
}

/// What the issue demands.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The ratio to the first of the others: must reach, aim for.
    Ratio(f64, f64),
    /// The figure itself.
    Figure(f64, f64),
}

/// One thing that is measured.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What it is.
    pub what: String,
    /// The unit of the samples.
    pub unit: &'static str,
    /// If the issue has one.
    pub target: Option<Target>,
    /// kiln's.
    pub own: Series,
    /// What it is held against.
    pub others: Vec<Series>,
}

impl Series {
    /// The same under another name.
    pub fn named(mut self, name: impl FnOnce(&str) -> String) -> Self {
        self.name = name(&self.name);
        self
    }
}

impl Comparison {
    /// kiln's figures beside the others'.
    pub fn new(
        what: &str,
        unit: &'static str,
        target: Option<Target>,
        own: Series,
        others: Vec<Series>,
    ) -> Self {
        Comparison { what: what.to_owned(), unit, target, own, others }
    }

    /// The lines of the table: one for each of the others, or one without.
    fn lines(&self) -> String {
        let own = self.cell(&self.own.samples);
        let mut lines = String::new();
        if self.others.is_empty() {
            let _ = writeln!(lines, "| {} | {own} | | | | {} |", self.what, self.target());
        }
        for (at, other) in self.others.iter().enumerate() {
            let (what, own, target) = match at {
                0 => (self.what.as_str(), own.as_str(), self.target()),
                _ => ("", "", String::new()),
            };
            let ratio = median(&self.own.samples) / median(&other.samples);
            let (name, theirs) = (&other.name, self.cell(&other.samples));
            let _ =
                writeln!(lines, "| {what} | {own} | {name} | {theirs} | {ratio:.2} | {target} |");
        }
        lines
    }

    fn cell(&self, samples: &[f64]) -> String {
        let quartile = |share| quantile(samples, share);
        let (low, middle, high) = (quartile(0.25), median(samples), quartile(0.75));
        let unit = self.unit;
        if format!("{low:.2}") == format!("{high:.2}") {
            return format!("{middle:.2} {unit}");
        }
        format!("{middle:.2} {unit} ({low:.2}-{high:.2})")
    }

    fn target(&self) -> String {
        match self.target {
            Some(Target::Ratio(must, aim)) => format!("{must} / {aim}"),
            Some(Target::Figure(must, aim)) => format!("{must} / {aim} {}", self.unit),
            None => String::new(),
        }
    }
}

/// The whole table in Markdown.
pub fn markdown(comparisons: &[Comparison]) -> String {
    let head = "| what | kiln's shim | against | theirs | kiln's / theirs | must / aim |\n";
    let body = comparisons.iter().map(Comparison::lines);
    [head.to_owned(), "|---|---|---|---|---|---|\n".to_owned()].into_iter().chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, samples: &[f64]) -> Series {
        Series { name: name.to_owned(), samples: samples.to_vec() }
    }

    fn comparison(target: Target, others: Vec<Series>) -> Comparison {
        let own = series("kiln", &[1.0, 2.0, 3.0]);
        Comparison { what: "run".to_owned(), unit: "ms", target: Some(target), own, others }
    }

    #[test]
    fn a_line_for_each_of_the_others() {
        let others = vec![series("runc", &[4.0]), series("crun", &[1.0])];
        let lines = comparison(Target::Ratio(0.6, 0.4), others).lines();
        let expected = "| run | 2.00 ms (1.50-2.50) | runc | 4.00 ms | 0.50 | 0.6 / 0.4 |\n\
                        |  |  | crun | 1.00 ms | 2.00 |  |\n";
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_figure_needs_no_other() {
        let table = markdown(&[comparison(Target::Figure(2.5, 1.5), Vec::new())]);
        let last = table.lines().last().unwrap();
        assert_eq!(last, "| run | 2.00 ms (1.50-2.50) | | | | 2.5 / 1.5 ms |");
        let columns = |line: &str| line.matches('|').count();
        assert!(table.lines().all(|line| columns(line) == 7), "{table}");
    }
}
