//! Rounds of samples, each in an order of its own, so that what one leaves to be done after its end
//! falls on all.

use std::time::Duration;

use crate::comparison::Series;

/// What a sample leaves to be done, such as to remove a snapshot, is over after this, mostly.
const PAUSE: Duration = Duration::from_millis(100);

/// Times of one thing, of one subject.
pub struct Timed<'a> {
    series: Series,
    sample: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Timed<'a> {
    /// Not sampled yet.
    pub fn new(name: &str, sample: impl FnMut() -> f64 + 'a) -> Self {
        let series = Series { name: name.to_owned(), samples: Vec::new() };
        Timed { series, sample: Box::new(sample) }
    }
}

/// One round to warm up, then those that count.
pub fn take(mut timed: Vec<Timed<'_>>, rounds: usize) -> Vec<Series> {
    for round in 0..=rounds {
        for at in order(timed.len(), round) {
            let Timed { series, sample } = &mut timed[at];
            let figure = sample();
            if round > 0 {
                series.samples.push(figure);
            }
            std::thread::sleep(PAUSE);
        }
    }
    timed.into_iter().map(|timed| timed.series).collect()
}

/// The first, which is kiln's, and the others.
pub fn split(mut all: Vec<Series>) -> (Series, Vec<Series>) {
    let own = all.remove(0);
    (own, all)
}

/// The numbers below `count` in an order that is another in each round, neighbours included.
fn order(count: usize, round: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).collect();
    // Fisher-Yates with Knuth's MMIX generator: the same in every run of the benchmark.
    let mut state = round as u64;
    for last in (1..count).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        places.swap(last, (state >> 33) as usize % (last + 1));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_all_in_its_own_order() {
        let (one, other) = (order(12, 1), order(12, 2));
        assert_ne!(one, other);
        for mut places in [one, other] {
            places.sort_unstable();
            assert_eq!(places, (0..12).collect::<Vec<_>>());
        }
        // Whoever comes first takes turns.
        let first: std::collections::BTreeSet<_> =
            (0..60).map(|round| order(4, round)[0]).collect();
        assert_eq!(first.len(), 4);
    }

    #[test]
    fn rounds_are_counted_after_the_first() {
        let mut calls = 0;
        let timed = Timed::new("all", || {
            calls += 1;
            f64::from(calls)
        });
        let series = take(vec![timed], 3);
        assert_eq!(series[0].samples, [2.0, 3.0, 4.0]);
    }
}
