//! What is counted: for each function by itself, and for `/metrics`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use kiln_keeper::front;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The last answers, of which a function's latencies are told.
const RECENT: usize = 1024;

/// Why a request was not answered by its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many run and wait as may.
    Busy,
    /// There is no container, and will not be for a while.
    Failed,
    /// The container has gone in the middle.
    Broken,
    /// It took too long.
    Timeout,
}

impl Refused {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Failed => "failed",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
        }
    }
}

/// One function's numbers since the gateway has begun.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Requests that are over.
    pub requests: Cell<u64>,
    /// Of them those with a 5xx, the function's own and ours.
    pub errors: Cell<u64>,
    /// Containers that were created.
    pub cold_starts: Cell<u64>,
    recent: RefCell<VecDeque<u32>>,
}

impl Numbers {
    fn answered(&self, took: Duration) {
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// The time that this part of the last answers took at most; nothing before the first.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let mut recent: Vec<u32> = self.recent.borrow().iter().copied().collect();
        if recent.is_empty() {
            return None;
        }
        recent.sort_unstable();
        let at = ((recent.len() - 1) as f64 * part).round() as usize;
        recent.get(at).map(|&micros| Duration::from_micros(micros.into()))
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfFunction {
    function: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfStatus {
    function: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfKind {
    function: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    function: String,
    state: &'static str,
}

/// The gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    front: front::Metrics,
    requests: Family<OfStatus, Counter>,
    refused: Family<OfKind, Counter>,
    seconds: Family<OfFunction, Histogram>,
    cold_starts: Family<OfFunction, Counter>,
    unrouted: Counter,
    state: Family<OfState, Gauge>,
    in_flight: Family<OfFunction, Gauge>,
    memory: Family<OfFunction, Gauge>,
}

/// What is measured at the time that somebody looks.
#[derive(Debug)]
pub struct Now {
    /// The function.
    pub name: String,
    /// Its state.
    pub state: &'static str,
    /// Requests that run or wait.
    pub in_flight: usize,
    /// Of its container's cgroup.
    pub memory: Option<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram = || Histogram::new(BUCKETS);
        let mut metrics = Self {
            registry: Registry::with_prefix("kiln_gateway"),
            front: front::Metrics::default(),
            requests: Family::default(),
            refused: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            cold_starts: Family::default(),
            unrouted: Counter::default(),
            state: Family::default(),
            in_flight: Family::default(),
            memory: Family::default(),
        };
        let registry = &mut metrics.registry;
        metrics.front.register(registry);
        registry.register("requests", "Answers, by status", metrics.requests.clone());
        registry.register(
            "errors",
            "Answers of the gateway's own, by reason",
            metrics.refused.clone(),
        );
        registry.register_with_unit(
            "request",
            "From the request's head to the answer's end",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register("cold_starts", "Containers created", metrics.cold_starts.clone());
        registry.register("unrouted", "Requests that no route takes", metrics.unrouted.clone());
        registry.register(
            "state",
            "1 for the state that the function is in",
            metrics.state.clone(),
        );
        registry.register("in_flight", "Requests that run or wait", metrics.in_flight.clone());
        registry.register_with_unit(
            "memory",
            "What the container's cgroup has charged",
            Unit::Bytes,
            metrics.memory.clone(),
        );
        metrics
    }
}

const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

impl Metrics {
    /// A request is over.
    pub fn answered(&self, function: &str, numbers: &Numbers, code: u16, took: Duration) {
        numbers.requests.set(numbers.requests.get() + 1);
        if code >= 500 {
            numbers.errors.set(numbers.errors.get() + 1);
        }
        numbers.answered(took);
        let function = function.to_owned();
        self.requests.get_or_create(&OfStatus { function: function.clone(), code }).inc();
        self.seconds.get_or_create(&OfFunction { function }).observe(took.as_secs_f64());
    }

    /// The gateway has answered for a function.
    pub fn refused(&self, function: &str, why: Refused) {
        let label = OfKind { function: function.to_owned(), kind: why.name() };
        self.refused.get_or_create(&label).inc();
    }

    /// A container has been created.
    pub fn cold_start(&self, function: &str, numbers: &Numbers) {
        numbers.cold_starts.set(numbers.cold_starts.get() + 1);
        self.cold_starts.get_or_create(&OfFunction { function: function.to_owned() }).inc();
    }

    /// What the front counts, to be handed to it.
    pub fn front(&self) -> front::Metrics {
        self.front.clone()
    }

    /// No route takes a request.
    pub fn unrouted(&self) {
        self.unrouted.inc();
    }

    /// Prometheus' text.
    pub fn text(&self, now: &[Now]) -> String {
        self.state.clear();
        self.in_flight.clear();
        self.memory.clear();
        for Now { name, state, in_flight, memory } in now {
            let function = || OfFunction { function: name.clone() };
            self.state.get_or_create(&OfState { function: name.clone(), state }).set(1);
            let in_flight = i64::try_from(*in_flight).unwrap_or(i64::MAX);
            self.in_flight.get_or_create(&function()).set(in_flight);
            if let Some(bytes) = memory {
                let bytes = i64::try_from(*bytes).unwrap_or(i64::MAX);
                self.memory.get_or_create(&function()).set(bytes);
            }
        }
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => {
                log::error!("write metrics: {error}");
                String::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_said() {
        let (metrics, numbers) = (Metrics::default(), Numbers::default());
        assert_eq!(numbers.quantile(0.5), None);
        for millis in 1..=100 {
            metrics.answered("sort", &numbers, 200, Duration::from_millis(millis));
        }
        metrics.answered("sort", &numbers, 502, Duration::from_millis(1));
        metrics.refused("sort", Refused::Broken);
        assert_eq!((numbers.requests.get(), numbers.errors.get()), (101, 1));
        assert_eq!(numbers.quantile(0.5), Some(Duration::from_millis(50)));
        let now = Now { name: "sort".into(), state: "frozen", in_flight: 2, memory: Some(4096) };
        let text = metrics.text(&[now]);
        for line in [
            "kiln_gateway_requests_total{function=\"sort\",code=\"200\"} 100",
            "kiln_gateway_errors_total{function=\"sort\",kind=\"broken\"} 1",
            "kiln_gateway_request_seconds_count{function=\"sort\"} 101",
            "kiln_gateway_state{function=\"sort\",state=\"frozen\"} 1",
            "kiln_gateway_memory_bytes{function=\"sort\"} 4096",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
