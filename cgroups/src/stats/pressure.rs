//! Pressure stall information, accounting/psi.rst; v2 only.

use serde::Serialize;

use crate::error::Error;
use crate::target::Target;

/// How much tasks waited.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// While at least one of them waited.
    pub some: PressureLine,
    /// While all of them waited.
    pub full: PressureLine,
}

/// One line of a pressure file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PressureLine {
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last minute.
    pub avg60: f64,
    /// Per cent of the last five minutes.
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total: u64,
}

/// None if the kernel does not account it.
pub(super) fn read(target: Target<'_>, file: &str) -> Result<Option<Pressure>, Error> {
    let Some(text) = target.text(file)? else { return Ok(None) };
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let to = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for word in words {
            match word.split_once('=') {
                Some(("avg10", value)) => to.avg10 = text.parse(value)?,
                Some(("avg60", value)) => to.avg60 = text.parse(value)?,
                Some(("avg300", value)) => to.avg300 = text.parse(value)?,
                Some(("total", value)) => to.total = text.parse(value)?,
                Some(_) => {}
                None => return Err(text.malformed(line)),
            }
        }
    }
    Ok(Some(pressure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn lines_are_read() {
        let fake = Fake::new(true, &["cpu"], &[]);
        let target = fake.cgroup.core_target().unwrap();
        assert_eq!(read(target, "cpu.pressure").unwrap(), None);
        let text = "some avg10=1.50 avg60=2.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.10 total=5\nmore\n";
        fake.write("cpu.pressure", text);
        let pressure = read(target, "cpu.pressure").unwrap().unwrap();
        assert_eq!(
            pressure.some,
            PressureLine { avg10: 1.5, avg60: 2.25, avg300: 0.0, total: 123 }
        );
        assert_eq!(pressure.full.total, 5);
        for bad in ["some avg10", "some avg10=x", "full total=-1"] {
            fake.write("cpu.pressure", bad);
            assert!(read(target, "cpu.pressure").is_err(), "{bad}");
        }
    }
}
