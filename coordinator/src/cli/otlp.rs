//! Traces for a collector: OTLP over HTTP, JSON-encoded, to `$OTEL_EXPORTER_OTLP_ENDPOINT/v1/traces`.
//!
//! A job is one trace on all machines: its ids follow from job and lease ([`obelysk_node::trace`]). Only spans of jobs are sent; they hold
//! no input, no name but a node's, and no address. What the collector does not take is dropped: it never holds work up.

use obelysk_node::trace::{Part, hex, job_span_id};
use serde_json::{Value, json};
use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Where collectors listen by the OpenTelemetry specification.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Spans waiting for the collector: some minutes of a busy cluster.
const MAX_WAITING: usize = 4096;
/// Spans of one request: under a megabyte.
const MAX_BATCH: usize = 512;
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The layer, when an endpoint is set.
pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> Option<impl Layer<S>> {
    let endpoint = std::env::var(ENDPOINT).ok().filter(|text| !text.is_empty())?;
    let target = Targets::new().with_target("obelysk_coordinator", Level::INFO).with_target("obelysk_node", Level::INFO);
    Some(Export::to(&endpoint).with_filter(target))
}

/// Hands closed spans to a thread that sends them.
struct Export(mpsc::SyncSender<Record>);

/// A span of a job.
struct Record {
    name: &'static str,
    trace: String,
    epoch: u64,
    attributes: Vec<(&'static str, String)>,
    from: SystemTime,
    until: SystemTime,
}

impl Export {
    fn to(endpoint: &str) -> Self {
        let (records, inbox) = mpsc::sync_channel(MAX_WAITING);
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        // Without the thread everything is dropped, and nothing else happens.
        let _ = std::thread::Builder::new().name("otlp".to_owned()).spawn(move || send(&url, &inbox));
        Self(records)
    }
}

fn send(url: &str, inbox: &mpsc::Receiver<Record>) {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
    let mut complained = false;
    while let Ok(first) = inbox.recv() {
        let batch: Vec<Record> = std::iter::once(first).chain(inbox.try_iter()).take(MAX_BATCH).collect();
        let body = request(&batch).to_string();
        match agent.post(url).content_type("application/json").send(body) {
            Ok(_) => complained = false,
            Err(error) if !complained => {
                tracing::warn!(%error, url, "traces are not taken; they are dropped until they are");
                complained = true;
            }
            Err(_) => {}
        }
    }
}

/// One export request as the OTLP specification writes it in JSON.
fn request(batch: &[Record]) -> Value {
    let service = json!([{ "key": "service.name", "value": { "stringValue": "obelysk" } }]);
    let spans: Vec<Value> = batch.iter().filter_map(Record::json).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": service },
        "scopeSpans": [{ "scope": { "name": "obelysk", "version": env!("CARGO_PKG_VERSION") }, "spans": spans }],
    }] })
}

impl Record {
    fn json(&self) -> Option<Value> {
        let root = job_span_id(&u128::from_str_radix(&self.trace, 16).ok()?.to_be_bytes());
        let (id, parent) = match Part::named(self.name) {
            None => (root, None),
            Some(Part::Lease) => (Part::Lease.span_id(self.epoch), Some(root)),
            Some(part) => (part.span_id(self.epoch), Some(Part::Lease.span_id(self.epoch))),
        };
        let span_id = |id: u64| hex(&id.to_be_bytes());
        let nanos = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        let attribute =
            |(key, value): &(&str, String)| json!({ "key": format!("obelysk.{key}"), "value": { "stringValue": value } });
        Some(json!({
            "traceId": self.trace, "spanId": span_id(id), "parentSpanId": parent.map(span_id).unwrap_or_default(),
            "name": self.name, "kind": 1, "startTimeUnixNano": nanos(self.from), "endTimeUnixNano": nanos(self.until),
            "attributes": self.attributes.iter().map(attribute).collect::<Vec<_>>(),
        }))
    }
}

impl Visit for Record {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "epoch" {
            self.epoch = value;
        }
        self.attributes.push((field.name(), value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "trace" {
            value.clone_into(&mut self.trace);
        } else {
            self.attributes.push((field.name(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.attributes.push((field.name(), format!("{value:?}")));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Export {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let name = attributes.metadata().name();
        let Some(span) = context.span(id).filter(|_| name == "job" || Part::named(name).is_some()) else { return };
        let now = SystemTime::now();
        let mut record = Record { name, trace: String::new(), epoch: 0, attributes: Vec::new(), from: now, until: now };
        attributes.record(&mut record);
        span.extensions_mut().insert(record);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(mut record) = context.span(&id).and_then(|span| span.extensions_mut().remove::<Record>()) else { return };
        record.until = SystemTime::now();
        let _ = self.0.try_send(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use tracing_subscriber::layer::SubscriberExt as _;

    /// A collector that takes one request and gives back its body.
    fn collect(listener: &TcpListener) -> Value {
        let (mut stream, _) = listener.accept().expect("connects");
        let mut got = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&got).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                assert!(head.starts_with("POST /v1/traces ") && head.contains("application/json"), "{head}");
                let length =
                    head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
                if body.len() >= length.expect("a length").parse::<usize>().expect("a number") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").expect("answers");
                    return serde_json::from_str(body).expect("JSON");
                }
            }
            let n = stream.read(&mut chunk).expect("reads");
            got.extend_from_slice(&chunk[..n]);
        }
    }

    #[test]
    fn a_collector_gets_the_parts_of_a_lease_under_their_job() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let endpoint = format!("http://{}/", listener.local_addr().expect("bound"));
        let subscriber = tracing_subscriber::registry().with(Export::to(&endpoint));
        let job = [0xab; 32];
        tracing::subscriber::with_default(subscriber, || {
            drop(tracing::info_span!("unrelated", epoch = 1_u64));
            drop(obelysk_node::trace::run_span(&job, "prove/3", 17, "rack-1"));
        });
        let body = collect(&listener);
        let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(spans.as_array().map(Vec::len), Some(1), "{body}");
        let span = &spans[0];
        assert_eq!(span["traceId"], "ab".repeat(16));
        assert_eq!((&span["spanId"], &span["parentSpanId"]), (&json!("8000000000000011"), &json!("0000000000000011")));
        let attributes = span["attributes"].to_string();
        assert!(attributes.contains("\"obelysk.work\",\"value\":{\"stringValue\":\"prove/3\"}"), "{attributes}");
        assert!(attributes.contains("rack-1") && !attributes.contains("obelysk.trace"), "{attributes}");
    }

    #[test]
    fn a_job_is_the_root_and_the_parent_of_its_leases() {
        let record = |name| Record {
            name,
            trace: "0123456789abcdef".repeat(2),
            epoch: 5,
            attributes: Vec::new(),
            from: UNIX_EPOCH,
            until: UNIX_EPOCH + Duration::from_nanos(7),
        };
        let (job, lease) = (record("job").json().expect("whole"), record("lease").json().expect("whole"));
        assert_eq!((&job["spanId"], &job["parentSpanId"]), (&json!("0123456789abcdef"), &json!("")));
        assert_eq!((&lease["spanId"], &lease["parentSpanId"]), (&json!("0000000000000005"), &job["spanId"]));
        assert_eq!(lease["endTimeUnixNano"], "7");
        assert!(Record { trace: "nonsense".to_owned(), ..record("job") }.json().is_none());
    }
}
