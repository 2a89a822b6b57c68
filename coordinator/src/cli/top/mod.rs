//! `obelysk top`: a cluster at work, once a second. On a terminal it draws; elsewhere it writes text, or JSON lines.

mod screen;

use super::admin::Desk;
use super::cluster::runtime;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::observe::{is_over, item_json, job_json, status_json, worker_json};
use super::observe_args::TopArgs;
use super::output::Out;
use anyhow::anyhow;
use obelysk_protocol::wire::{ItemEntry, JobEntry, Status, WorkerEntry};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Jobs whose pieces are fetched: more do not fit a screen.
const MAX_SHOWN: usize = 4;
/// Time for one look; beyond, the coordinator counts as away.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a key is noticed.
const KEY: Duration = Duration::from_millis(100);

/// What one look saw.
#[derive(Debug)]
pub struct Look {
    at: Instant,
    status: Status,
    workers: Vec<WorkerEntry>,
    /// Jobs in progress, those shown with their pieces.
    jobs: Vec<(JobEntry, Vec<ItemEntry>)>,
    /// The last one that ended.
    ended: Option<JobEntry>,
}

/// The newest look, what it is compared with, and why there is no newer one.
#[derive(Debug, Default)]
pub struct Watch {
    now: Option<Look>,
    before: Option<Look>,
    trouble: Option<String>,
}

/// Runs `top`.
pub fn run(out: &Out, home: &Home, args: &TopArgs) -> Result<(), Failure> {
    let draw = std::io::stdout().is_terminal() && !out.json;
    let runtime = runtime()?;
    // Bad files are errors before the screen is taken over; a coordinator that goes away later is shown and awaited.
    let mut desk = Some(runtime.block_on(Desk::open(home, &args.admin))?);
    let mut terminal = draw.then(ratatui::try_init).transpose().code(Code::Internal)?;
    let mut watch = Watch::default();
    let mut looks = 0;
    let outcome = loop {
        let started = Instant::now();
        runtime.block_on(look(&mut watch, &mut desk, home, args));
        looks += 1;
        let shown = match &mut terminal {
            Some(terminal) => terminal.draw(|frame| screen::draw(frame, &watch)).map(|_| ()).code(Code::Internal),
            None => write(out, &watch),
        };
        let last = args.count.is_some_and(|count| looks >= count);
        if shown.is_err() || last || pause(terminal.is_some(), started + Duration::from_secs(args.interval)) {
            break shown;
        }
    };
    if terminal.is_some() {
        ratatui::restore();
    }
    if let Some(desk) = desk {
        desk.close();
    }
    outcome
}

/// Waits for the next look; whether to end instead.
fn pause(keys: bool, until: Instant) -> bool {
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if !keys {
            std::thread::sleep(left);
            return false;
        }
        match event::poll(left.min(KEY)).and_then(|ready| ready.then(event::read).transpose()) {
            Ok(Some(Event::Key(key))) if ends(key) => return true,
            Ok(Some(Event::Resize(..))) => return false,
            Ok(_) => {}
            // A terminal that is gone.
            Err(_) => return true,
        }
    }
    false
}

fn ends(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release && (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// Looks once; what goes wrong is shown, and the connection made anew next time.
async fn look(watch: &mut Watch, desk: &mut Option<Desk>, home: &Home, args: &TopArgs) {
    let once = async {
        let open = match desk.take() {
            Some(open) => open,
            None => Desk::open(home, &args.admin).await?,
        };
        let seen = see(&open).await?;
        *desk = Some(open);
        Ok::<_, Failure>(seen)
    };
    let seen = tokio::time::timeout(PATIENCE, once).await;
    match seen.unwrap_or_else(|_| Err(Failure { code: Code::Cluster, error: anyhow!("no answer") })) {
        Ok(seen) => {
            watch.before = watch.now.replace(seen);
            watch.trouble = None;
        }
        Err(failure) => watch.trouble = Some(failure.error.to_string()),
    }
}

async fn see(desk: &Desk) -> Result<Look, Failure> {
    let (status, workers, all) = (desk.status().await?, desk.workers().await?, desk.jobs().await?);
    let mut jobs = Vec::new();
    let mut ended = None;
    for job in all {
        if is_over(&job) {
            let newer = ended.as_ref().is_none_or(|last: &JobEntry| last.ended_unix_s < job.ended_unix_s);
            ended = if newer { Some(job) } else { ended };
            continue;
        }
        let items = if jobs.len() < MAX_SHOWN { desk.items(&job).await? } else { Vec::new() };
        jobs.push((job, items));
    }
    Ok(Look { at: Instant::now(), status, workers, jobs, ended })
}

/// What is done per second, between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Rates {
    items: f64,
    cores: f64,
    received: f64,
    sent: f64,
}

impl Watch {
    fn rates(&self) -> Rates {
        let (Some(now), Some(before)) = (&self.now, &self.before) else { return Rates::default() };
        let seconds = now.at.duration_since(before.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let rate = |of: &dyn Fn(&Status) -> u64| of(&now.status).saturating_sub(of(&before.status)) as f64 / seconds;
        Rates {
            items: rate(&|s| s.events[0]),
            cores: rate(&|s| s.core_us.iter().sum()) / 1e6,
            received: rate(&|s| s.received_bytes),
            sent: rate(&|s| s.sent_bytes),
        }
    }
}

/// The look as text, by drawing it on a page instead of a screen; or as a JSON line.
fn write(out: &Out, watch: &Watch) -> Result<(), Failure> {
    if let Some(trouble) = &watch.trouble {
        out.json(&json!({ "error": trouble }));
        out.note(trouble);
        return Ok(());
    }
    let Some(now) = &watch.now else { return Ok(()) };
    let job = |(job, items): &(JobEntry, Vec<ItemEntry>)| {
        let mut value = job_json(job);
        value["items"] = items.iter().map(item_json).collect();
        value
    };
    let rates = watch.rates();
    out.json(&json!({
        "status": status_json(&now.status), "nodes": now.workers.iter().map(worker_json).collect::<Vec<Value>>(),
        "jobs": now.jobs.iter().map(job).collect::<Vec<Value>>(),
        "rates": { "items": rates.items, "cores": rates.cores, "received_bytes": rates.received, "sent_bytes": rates.sent },
    }));
    out.line(screen::page(watch));
    Ok(())
}
