//! What a function's server counts, as Prometheus reads it.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::front::{self, Body};
use crate::memory;
use crate::metrics::{latency, registry, response};
use crate::pool::Pool;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Kind {
    kind: &'static str,
}

/// A function's requests and workers.
#[derive(Debug)]
pub struct Counters {
    registry: Registry,
    /// What the HTTP server counts.
    pub front: front::Metrics,
    requests: Counter,
    errors: Family<Kind, Counter>,
    duration: Histogram,
    queued: Gauge<u64, AtomicU64>,
    warm: Gauge<u64, AtomicU64>,
    busy: Gauge<u64, AtomicU64>,
    cold: Gauge<u64, AtomicU64>,
    started: Gauge<u64, AtomicU64>,
    lost: Gauge<u64, AtomicU64>,
    memory: Gauge<u64, AtomicU64>,
}

impl Default for Counters {
    fn default() -> Self {
        let mut registry = registry();
        let (requests, errors) = (Counter::default(), Family::default());
        let (duration, front) = (latency(), front::Metrics::default());
        front.register(&mut registry);
        registry.register("requests", "Requests answered", requests.clone());
        registry.register("errors", "Requests answered with an error", errors.clone());
        let help = "From a request's head to its answer's";
        registry.register_with_unit("request_duration", help, Unit::Seconds, duration.clone());
        let mut gauge = |name, help| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Counters {
            queued: gauge("queued_requests", "Requests that wait for a worker"),
            warm: gauge("warm_workers", "Workers with an instance that waits for a request"),
            busy: gauge("busy_workers", "Workers at work"),
            cold: gauge("cold_starts", "Workers started because a request waited, so far"),
            started: gauge("started_workers", "Workers started so far"),
            lost: gauge("lost_workers", "Workers killed or lost in a call so far"),
            memory: gauge("memory_bytes", "Resident memory of the server's own process"),
            registry,
            front,
            requests,
            errors,
            duration,
        }
    }
}

impl Counters {
    /// A request was answered after this time, well or with an error of this kind.
    pub fn answered(&self, after: Duration, error: Option<&'static str>) {
        self.requests.inc();
        self.duration.observe(after.as_secs_f64());
        if let Some(kind) = error {
            self.errors.get_or_create(&Kind { kind }).inc();
        }
    }

    /// Requests answered, and those of them with an error of one of these kinds.
    pub fn totals(&self, kinds: &[&'static str]) -> (u64, u64) {
        let count = |kind: &&'static str| self.errors.get(&Kind { kind }).map_or(0, |c| c.get());
        (self.requests.get(), kinds.iter().map(count).sum())
    }

    /// All of them, as Prometheus reads them.
    pub fn answer(&self, pool: &Pool) -> Response<Body> {
        let (idle, alive) = pool.workers();
        let counts = pool.counts();
        self.warm.set(idle as u64);
        self.busy.set(alive.saturating_sub(idle) as u64);
        self.queued.set(pool.queued() as u64);
        self.cold.set(counts.cold.get());
        self.started.set(counts.started.get());
        self.lost.set(counts.lost.get());
        self.memory.set(memory::resident().unwrap_or(0));
        response(&self.registry)
    }
}
