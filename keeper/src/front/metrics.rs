//! What the front counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Connections, and requests that the front has refused. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) open: Gauge,
    pub(super) accepted: Counter,
    /// Connections that were ended so that others had room.
    pub(super) displaced: Counter,
    refused: Family<Reason, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Metrics {
    /// Shows them as `http_connections`, `http_connections_accepted_total`,
    /// `http_connections_displaced_total` and `http_refused_total{reason="..."}`, the reasons as
    /// [`Refusal::label`](super::Refusal::label) has them, and `parse` for what hyper refuses.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("http_connections", "Open connections", self.open.clone());
        registry.register(
            "http_connections_accepted",
            "Connections that were accepted",
            self.accepted.clone(),
        );
        registry.register(
            "http_connections_displaced",
            "Connections without a request that were closed to make room",
            self.displaced.clone(),
        );
        registry.register(
            "http_refused",
            "Requests that were answered before any function saw them whole, by reason",
            self.refused.clone(),
        );
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}
