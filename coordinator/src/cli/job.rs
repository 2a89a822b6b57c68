//! `obelysk job list|show|cancel|logs`: jobs of a cluster, by the administrator's file.

use super::admin::{Desk, one};
use super::cluster::runtime;
use super::exit::Failure;
use super::home::Home;
use super::observe::{event_json, is_over, item_json, job_json, left, moment, percent, plain, short, span, state_name, work};
use super::observe_args::JobCommand;
use super::output::{Out, hex, size};
use obelysk_node::WorkKind;
use obelysk_protocol::wire::{ItemPhase, JobCancel, JobEntry, LogEntry, MAX_PAGE, Message};
use serde_json::json;
use std::time::Duration;

/// Ended jobs listed when not all are asked for.
const LATEST: usize = 20;
/// How often a followed log is asked for more.
const FOLLOW: Duration = Duration::from_millis(500);

/// Runs `job …`.
pub fn run(out: &Out, home: &Home, command: JobCommand) -> Result<(), Failure> {
    runtime()?.block_on(async {
        match command {
            JobCommand::List { all, admin } => {
                let desk = Desk::open(home, &admin).await?;
                let jobs = desk.jobs().await?;
                desk.close();
                list(out, &jobs, all);
                Ok(())
            }
            JobCommand::Show { id, admin } => {
                let desk = Desk::open(home, &admin).await?;
                let job = find(&desk, &id).await?;
                let shown = show(out, &desk, &job).await;
                desk.close();
                shown
            }
            JobCommand::Cancel { id, admin } => {
                let desk = Desk::open(home, &admin).await?;
                let job = find(&desk, &id).await?.job;
                desk.done(out, Message::JobCancel(JobCancel { job })).await?;
                desk.close();
                Ok(())
            }
            JobCommand::Logs { id, follow, admin } => {
                let desk = Desk::open(home, &admin).await?;
                let job = find(&desk, &id).await?.job;
                let told = logs(out, &desk, job, follow).await;
                desk.close();
                told
            }
        }
    })
}

async fn find(desk: &Desk, id: &str) -> Result<JobEntry, Failure> {
    let jobs = desk.jobs().await?;
    let job = one("job", id, jobs.iter().map(|j| (j.job, hex(&j.job))))?;
    jobs.into_iter().find(|j| j.job == job).ok_or_else(|| Failure::input("the job is gone"))
}

fn list(out: &Out, jobs: &[JobEntry], all: bool) {
    out.json(&jobs.iter().map(job_json).collect::<Vec<_>>());
    if jobs.is_empty() {
        out.line("no jobs yet; submit one with `obelysk prove --coordinator ADDRESS`");
        return;
    }
    let mut ended = 0;
    for job in jobs {
        ended += usize::from(is_over(job));
        if ended > LATEST && !all {
            out.line("older ones with --all");
            return;
        }
        let when = if job.submitted_unix_s > 0 { moment(job.submitted_unix_s * 1000) } else { "-".to_owned() };
        let when = when.split('.').next().unwrap_or_default();
        out.line(format_args!("{}  {:9} {when}  {}", short(&job.job), state_name(job), summary(job)));
    }
}

fn summary(job: &JobEntry) -> String {
    if !is_over(job) {
        return format!("{} % of {} segments, {} left", percent(job), job.segments, left(job));
    }
    if !job.reason.is_empty() {
        return plain(&job.reason);
    }
    let took = span(job.ended_unix_s.saturating_sub(job.submitted_unix_s) * 1000);
    format!("{} segments in {took}, proof of {}", job.segments, size(job.proof.length))
}

/// All events of a job that are kept.
async fn events(desk: &Desk, job: [u8; 32]) -> Result<Vec<LogEntry>, Failure> {
    let mut all: Vec<LogEntry> = Vec::new();
    loop {
        let page = desk.log(job, all.last().map_or(0, |e| e.number)).await?.events;
        let last = page.len() < MAX_PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

async fn show(out: &Out, desk: &Desk, job: &JobEntry) -> Result<(), Failure> {
    let items = desk.items(job).await?;
    // Of a job that ended, the log knows who made what.
    let log = if is_over(job) { events(desk, job.job).await.unwrap_or_default() } else { Vec::new() };
    let made = standing(&log);
    let mut value = job_json(job);
    value["items"] = items.iter().map(item_json).collect();
    value["pieces"] = made.iter().map(|e| json!({ "work": e.work, "node": e.node, "digest": hex(&e.digest.digest) })).collect();
    out.json(&value);
    out.field("job", hex(&job.job));
    out.field("model", hex(&job.model));
    out.field("state", state_name(job));
    out.field("", summary(job));
    for (kind, (done, us)) in WorkKind::ALL.into_iter().zip(job.accepted.into_iter().zip(job.core_us)) {
        out.field(kind.name(), format_args!("{done} of {}, {:.2} s processor", job.segments, us as f64 / 1e6));
    }
    for item in items.iter().filter(|item| item.phase != ItemPhase::Blocked as u8) {
        let phase = ItemPhase::from_code(item.phase).map_or("unknown", ItemPhase::name);
        let far = if item.phase == ItemPhase::Leased as u8 { format!(" {} %", item.permille / 10) } else { String::new() };
        let node = if item.node > 0 { format!(" node {}", item.node) } else { String::new() };
        let tries = if item.tries > 0 { format!(", {} tries before", item.tries) } else { String::new() };
        let doubt = if item.disputed { ", disputed" } else { "" };
        out.line(format_args!("  {:12} {phase}{node}{far}{tries}{doubt}", work(item.kind, item.segment)));
    }
    for piece in &made {
        out.line(format_args!("  {:12} {} {}", piece.work, short(&piece.digest.digest), piece.node));
    }
    Ok(())
}

/// The acceptances that still stand after all events, in their order.
fn standing(log: &[LogEntry]) -> Vec<&LogEntry> {
    let mut made: Vec<&LogEntry> = Vec::new();
    for entry in log {
        match entry.event.as_str() {
            "accepted" => made.push(entry),
            "redo" => made.retain(|e| e.work != entry.work),
            // An opening of all segments that begins anew leaves nothing of the one before.
            "joining" if entry.text == "joint step 0" => made.retain(|e| !e.work.starts_with("joint/")),
            _ => {}
        }
    }
    made
}

async fn logs(out: &Out, desk: &Desk, job: [u8; 32], follow: bool) -> Result<(), Failure> {
    let mut last = 0;
    loop {
        let page = desk.log(job, last).await?;
        for event in &page.events {
            if last > 0 && event.number > last + 1 {
                out.note(&format!("{} events are missing here", event.number - last - 1));
            }
            last = event.number;
            out.json(&event_json(event));
            out.line(line(event));
        }
        let more = page.events.len() >= MAX_PAGE;
        if page.ended || !(follow || more) {
            return Ok(());
        }
        if !more {
            tokio::time::sleep(FOLLOW).await;
        }
    }
}

fn line(event: &LogEntry) -> String {
    let mut text = format!("{}  {:11} {:12}", moment(event.unix_ms), event.event, event.work);
    if !event.node.is_empty() {
        text += &format!(" {}", event.node);
    }
    if event.digest.length > 0 {
        text += &format!("  {} {}", short(&event.digest.digest), size(event.digest.length));
    }
    if !event.text.is_empty() {
        text += &format!("  {}", plain(&event.text));
    }
    text
}
