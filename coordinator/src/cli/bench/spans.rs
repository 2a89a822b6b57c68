//! Processor time by span name: a span's own time, without the spans inside it.

use obelysk_node::usage;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::span::Id;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};

#[derive(Default)]
struct Times {
    own: BTreeMap<String, f64>,
    /// Open spans: name, processor time at entry, time spent in children.
    open: Vec<(String, Duration, Duration)>,
}

struct Recorder(Arc<Mutex<Times>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id) {
            let mut t = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            t.open.push((span.name().to_owned(), usage::cpu_time(), Duration::ZERO));
        }
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        let mut t = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((name, start, children)) = t.open.pop() else { return };
        let spent = usage::cpu_time().saturating_sub(start);
        if let Some(parent) = t.open.last_mut() {
            parent.2 += spent;
        }
        *t.own.entry(name).or_insert(0.0) += spent.saturating_sub(children).as_secs_f64();
    }
}

/// Runs `f` on this thread and returns the processor time of all threads by span name.
pub fn record<T>(f: impl FnOnce() -> T) -> (T, BTreeMap<String, f64>) {
    let times = Arc::new(Mutex::new(Times::default()));
    let subscriber = Registry::default().with(Recorder(Arc::clone(&times)));
    let value = tracing::subscriber::with_default(subscriber, f);
    let own = std::mem::take(&mut times.lock().unwrap_or_else(PoisonError::into_inner).own);
    (value, own)
}
