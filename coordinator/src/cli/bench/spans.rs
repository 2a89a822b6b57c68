//! Time by span name: a span's own time, without the spans inside it.

use obelysk_node::usage;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::span::Id;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// What spans of one name took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Processor time of all threads.
    pub core_seconds: f64,
    /// Wall time.
    pub seconds: f64,
    /// How many there were.
    pub count: usize,
}

/// What a run took, by span name. A name before a dot is the phase that the rest belongs to.
#[derive(Clone, Debug, Default)]
pub struct Spans(BTreeMap<String, Spent>);

impl Spans {
    /// Spans of exactly this name.
    pub fn named(&self, name: &str) -> Spent {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Processor time of a phase with all its parts.
    pub fn phase(&self, phase: &str) -> f64 {
        let part = |name: &str| name == phase || name.strip_prefix(phase).is_some_and(|rest| rest.starts_with('.'));
        self.0.iter().filter(|(name, _)| part(name)).map(|(_, s)| s.core_seconds).sum()
    }
}

#[derive(Default)]
struct Times {
    own: Spans,
    open: Vec<Open>,
}

/// A span under way.
struct Open {
    name: String,
    /// Processor and wall time at entry.
    start: (Duration, Instant),
    /// Both, spent in children.
    children: (Duration, Duration),
}

struct Recorder(Arc<Mutex<Times>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id) {
            let mut t = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (usage::cpu_time(), Instant::now());
            t.open.push(Open { name: span.name().to_owned(), start, children: Default::default() });
        }
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        let mut t = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(span) = t.open.pop() else { return };
        let spent = (usage::cpu_time().saturating_sub(span.start.0), span.start.1.elapsed());
        if let Some(parent) = t.open.last_mut() {
            parent.children = (parent.children.0 + spent.0, parent.children.1 + spent.1);
        }
        let own = t.own.0.entry(span.name).or_default();
        own.core_seconds += spent.0.saturating_sub(span.children.0).as_secs_f64();
        own.seconds += spent.1.saturating_sub(span.children.1).as_secs_f64();
        own.count += 1;
    }
}

/// Runs `f` on this thread and returns what its spans took.
pub fn record<T>(f: impl FnOnce() -> T) -> (T, Spans) {
    let times = Arc::new(Mutex::new(Times::default()));
    let subscriber = Registry::default().with(Recorder(Arc::clone(&times)));
    let value = tracing::subscriber::with_default(subscriber, f);
    let own = std::mem::take(&mut times.lock().unwrap_or_else(PoisonError::into_inner).own);
    (value, own)
}
