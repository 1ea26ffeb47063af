//! Metrics as Prometheus reads them.

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::front::Body;

/// The upper bounds of [`latency`], in seconds: 0.25 ms is a warm answer, 30 s a timeout.
const LATENCY_SECONDS: [f64; 16] = [
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry whose metrics are called `kiln_...`.
pub fn registry() -> Registry {
    Registry::with_prefix("kiln")
}

/// A histogram for durations in seconds, from 0.25 ms to 30 s. Its name should end in `_seconds`.
pub fn latency() -> Histogram {
    Histogram::new(LATENCY_SECONDS)
}

/// The answer to `GET /metrics`: all of a registry in OpenMetrics's text, which Prometheus reads
/// since 2.5.
pub fn response(registry: &Registry) -> Response<Body> {
    let mut text = String::new();
    if encode(&mut text, registry).is_err() {
        // A string takes everything; a collector may not.
        let mut response = Response::new(Body::full("a metric cannot be shown\n"));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return response;
    }
    let mut response = Response::new(Body::full(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::front;

    #[test]
    fn shows_metrics_as_text() {
        let mut registry = registry();
        let latency = latency();
        registry.register("request_seconds", "Latency", latency.clone());
        latency.observe(0.0003);
        let metrics = front::Metrics::default();
        metrics.register(&mut registry);
        metrics.refused(front::Refusal::Fold.label());
        let response = response(&registry);
        assert_eq!(response.headers()[CONTENT_TYPE], OPENMETRICS);
        let collected = response.into_body().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let text = runtime.block_on(collected).unwrap().to_bytes();
        let text = std::str::from_utf8(&text).unwrap();
        for line in [
            "kiln_request_seconds_bucket{le=\"0.00025\"} 0",
            "kiln_request_seconds_bucket{le=\"0.0005\"} 1",
            "kiln_request_seconds_bucket{le=\"+Inf\"} 1",
            "kiln_http_connections 0",
            "kiln_http_connections_accepted_total 0",
            "kiln_http_refused_total{reason=\"fold\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in:\n{text}");
        }
    }
}
