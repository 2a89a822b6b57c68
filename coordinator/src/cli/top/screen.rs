//! A look drawn: sums, nodes, and for each job a grid of its pieces, one row for each kind of work and one column for each segment.

use super::super::observe::{left, node_state, percent, plain, short, span, state_name, work};
use super::super::output::size;
use super::super::status::counts;
use super::{Look, Watch};
use obelysk_node::WorkKind;
use obelysk_protocol::wire::{ItemEntry, ItemPhase, JobEntry, JobState, NodeState, WorkerEntry};
use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};
use ratatui::{Frame, Terminal};

/// Columns of a page where there is no terminal to ask.
const PAGE_WIDTH: u16 = 100;
/// Most lines of such a page.
const PAGE_HEIGHT: u16 = 200;
/// Lines of sums at the top.
const SUMS: u16 = 4;
/// Columns before a grid.
const MARGIN: u16 = 9;
/// Cells of a lease's bar.
const BAR: u32 = 10;

/// Draws a look, or says why there is none.
pub fn draw(frame: &mut Frame<'_>, watch: &Watch) {
    let area = frame.area();
    let Some(now) = &watch.now else {
        let text = watch.trouble.clone().unwrap_or_else(|| "connecting".to_owned());
        frame.render_widget(Paragraph::new(plain(&text)), area);
        return;
    };
    let grids = jobs(now, area.width);
    let nodes = u16::try_from(now.workers.len()).unwrap_or(u16::MAX).saturating_add(2);
    // Jobs keep half of the screen when there are many nodes.
    let room = area.height.saturating_sub(SUMS + 1);
    let wanted = u16::try_from(grids.len()).unwrap_or(u16::MAX);
    let nodes = nodes.min(room.saturating_sub(wanted.min(room / 2)));
    let parts = [Constraint::Length(SUMS), Constraint::Length(nodes), Constraint::Min(0), Constraint::Length(1)];
    let [top, middle, rest, bottom] = Layout::vertical(parts).areas(area);
    frame.render_widget(Paragraph::new(sums(watch, now)), top);
    workers(frame, middle, &now.workers);
    frame.render_widget(Paragraph::new(grids), rest);
    frame.render_widget(Paragraph::new(legend(watch)), bottom);
}

/// The same as text, without what is left empty.
pub fn page(watch: &Watch) -> String {
    let lines = watch.now.as_ref().map_or(1, |now| 10 + now.workers.len() + jobs(now, PAGE_WIDTH).len());
    let height = u16::try_from(lines).unwrap_or(PAGE_HEIGHT).min(PAGE_HEIGHT);
    let Ok(mut terminal) = Terminal::new(TestBackend::new(PAGE_WIDTH, height));
    let Ok(_) = terminal.draw(|frame| draw(frame, watch));
    let buffer = terminal.backend().buffer();
    let row = |y| (0..PAGE_WIDTH).map(|x| buffer.cell((x, y)).map_or(" ", |cell| cell.symbol())).collect::<String>();
    let rows: Vec<String> = (0..height).map(|y| row(y).trim_end().to_owned()).filter(|row| !row.is_empty()).collect();
    rows.join("\n") + "\n"
}

fn bold(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::BOLD))
}

fn dim(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::DIM))
}

fn sums(watch: &Watch, now: &Look) -> Vec<Line<'static>> {
    let (s, rates) = (&now.status, watch.rates());
    let troubles: Vec<u64> = s.events[1..].to_vec();
    let names = ["redone", "rejected", "disputed", "failed", "lost", "quarantined"];
    vec![
        Line::from(vec![bold(format!("cluster {}", short(&s.cluster))), dim(format!("  up {}", span(s.uptime_ms)))]),
        Line::from(format!(
            "nodes {} · {} cores · {} wanted · {:.1} core-seconds wait",
            counts(NodeState::ALL.map(NodeState::name), &s.nodes),
            s.cores,
            s.desired_nodes,
            s.queued_core_us as f64 / 1e6
        )),
        Line::from(format!(
            "jobs {} · items {} accepted, {}",
            counts(JobState::ALL.map(JobState::name), &s.jobs),
            s.events[0],
            counts(names, &troubles).replace("none", "no trouble")
        )),
        Line::from(format!(
            "{:.1} items/s · {:.1} cores busy · {}/s in, {}/s out · blobs {} of {}",
            rates.items,
            rates.cores,
            size(rates.received as u64),
            size(rates.sent as u64),
            size(s.store_bytes[0]),
            size(s.store_bytes[1])
        )),
    ]
}

fn workers(frame: &mut Frame<'_>, area: Rect, workers: &[WorkerEntry]) {
    let head = Row::new(["node", "name", "state", "cores", "job", "work", "progress", "done", "core-s"]);
    let mut sorted: Vec<&WorkerEntry> = workers.iter().collect();
    // Who works comes first: the list may be longer than the screen.
    sorted.sort_by_key(|w| (!w.busy, w.state != NodeState::Here as u8, w.node));
    let rows = sorted.into_iter().map(|w| {
        let (job, doing, bar) = if w.busy {
            (short(&w.job), work(w.kind, w.segment), bar(w.permille))
        } else {
            (String::new(), String::new(), String::new())
        };
        let seconds = format!("{:.1}", w.core_us as f64 / 1e6);
        let cells = [w.node.to_string(), plain(&w.name), node_state(w).to_owned(), w.cores.to_string(), job, doing, bar];
        let style = Style::new().fg(match NodeState::from_code(w.state) {
            Some(NodeState::Here) => Color::Reset,
            Some(NodeState::Quarantined | NodeState::Evicted) => Color::Red,
            _ => Color::Yellow,
        });
        Row::new(cells.into_iter().chain([w.accepted.to_string(), seconds])).style(style)
    });
    let widths = [5, 16, 11, 5, 8, 12, BAR as u16 + 6, 6, 9].map(Constraint::Length);
    let head = head.style(Style::new().add_modifier(Modifier::DIM));
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn bar(permille: u32) -> String {
    let full = (permille * BAR / 1000).min(BAR) as usize;
    format!("{}{} {:>3} %", "█".repeat(full), "·".repeat(BAR as usize - full), permille / 10)
}

fn jobs(now: &Look, width: u16) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for (job, items) in &now.jobs {
        lines.push(Line::from(vec![
            bold(format!("job {}", short(&job.job))),
            Span::raw(format!("  {}  {} %  {} left", state_name(job), percent(job), left(job))),
            dim(format!("  model {}, {} segments", short(&job.model), job.segments)),
        ]));
        lines.extend(grid(job, items, width));
    }
    if let Some(job) = &now.ended {
        let what = if job.state == JobState::Done as u8 { "proved" } else { "failed" };
        let took = span(job.ended_unix_s.saturating_sub(job.submitted_unix_s) * 1000);
        lines.push(Line::from(dim(format!("last: job {} {what} after {took}  {}", short(&job.job), plain(&job.reason)))));
    }
    if now.jobs.is_empty() && now.ended.is_none() {
        lines.push(Line::from(dim("no jobs yet")));
    }
    lines
}

/// One row for each kind; wide jobs go on below.
fn grid(job: &JobEntry, items: &[ItemEntry], width: u16) -> Vec<Line<'static>> {
    let columns = u32::from(width.saturating_sub(MARGIN).max(1));
    let mut lines = Vec::new();
    let mut from = 0;
    while from < job.segments && !items.is_empty() {
        let until = job.segments.min(from.saturating_add(columns));
        for kind in WorkKind::ALL {
            let mut cells = vec![dim(format!("{:<w$}", kind.name(), w = usize::from(MARGIN)))];
            let row = items.iter().filter(|i| i.kind == kind.code() && (from..until).contains(&i.segment));
            cells.extend(row.map(cell));
            lines.push(Line::from(cells));
        }
        from = until;
    }
    lines
}

fn cell(item: &ItemEntry) -> Span<'static> {
    let phase = ItemPhase::from_code(item.phase).unwrap_or(ItemPhase::Blocked);
    let (sign, color) = match phase {
        _ if item.disputed => ('!', Color::Red),
        ItemPhase::Blocked => ('·', Color::DarkGray),
        ItemPhase::Ready if item.tries > 0 => ('o', Color::Yellow),
        ItemPhase::Ready => ('o', Color::Reset),
        ItemPhase::Leased => (char::from_digit((item.permille / 100).min(9), 10).unwrap_or('9'), Color::Cyan),
        ItemPhase::Checking => ('?', Color::Blue),
        ItemPhase::Accepted => ('█', Color::Green),
    };
    Span::styled(sign.to_string(), Style::new().fg(color))
}

fn legend(watch: &Watch) -> Line<'static> {
    match &watch.trouble {
        Some(trouble) => Line::from(Span::styled(format!("trying again: {}", plain(trouble)), Style::new().fg(Color::Red))),
        None => Line::from(dim("· blocked  o ready  0-9 running, tenths  ? checked  █ accepted  ! disputed   q ends")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use obelysk_protocol::wire::{BlobRef, Status};
    use std::time::{Duration, Instant};

    fn status(accepted: u64) -> Status {
        Status {
            cluster: [0xc1; 16],
            release: "0.1.0".to_owned(),
            unix_s: 0,
            uptime_ms: 61_000,
            nodes: [1, 2, 0, 1, 0],
            cores: 8,
            jobs: [1, 0, 0, 3, 0],
            items: [1, 1, 1, 1, 1],
            events: [accepted, 1, 0, 0, 0, 2, 1],
            core_us: [accepted * 1_500_000, 0, 0, 0],
            queued_core_us: 12_500_000,
            desired_nodes: 4,
            received_bytes: 2048,
            sent_bytes: 0,
            store_bytes: [1 << 20, 8 << 30],
        }
    }

    fn worker(node: u32, busy: bool, state: NodeState) -> WorkerEntry {
        WorkerEntry {
            node,
            id: [1; 32],
            name: format!("rack\u{1b}-{node}"),
            state: state as u8,
            cores: 4,
            accepted: 7,
            core_us: 2_500_000,
            busy,
            epoch: 1,
            job: [0xab; 32],
            kind: WorkKind::Prove.code(),
            segment: 1,
            permille: 450,
        }
    }

    fn job(segments: u32) -> (JobEntry, Vec<ItemEntry>) {
        let entry = JobEntry {
            job: [0xab; 32],
            model: [2; 32],
            segments,
            state: JobState::Running as u8,
            submitted_unix_s: 1,
            ended_unix_s: 0,
            accepted: [segments, segments, 1, 0],
            core_us: [0; 4],
            left_ms: 95_000,
            proof: BlobRef::of(&[]),
            reason: String::new(),
        };
        let item = |kind: WorkKind, segment, phase: ItemPhase, permille| ItemEntry {
            kind: kind.code(),
            segment,
            phase: phase as u8,
            node: 1,
            permille,
            disputed: kind == WorkKind::Prove && segment == 3,
            tries: 0,
        };
        let items = (0..segments).flat_map(|l| {
            let prove = match l {
                0 => (ItemPhase::Accepted, 0),
                1 => (ItemPhase::Leased, 450),
                2 => (ItemPhase::Checking, 0),
                _ => (ItemPhase::Ready, 0),
            };
            [
                item(WorkKind::Forward, l, ItemPhase::Accepted, 0),
                item(WorkKind::Commit, l, ItemPhase::Accepted, 0),
                item(WorkKind::Prove, l, prove.0, prove.1),
                item(WorkKind::Open, l, ItemPhase::Blocked, 0),
            ]
        });
        (entry, items.collect())
    }

    fn watch(segments: u32) -> Watch {
        let at = Instant::now();
        let look = |at, accepted| Look {
            at,
            status: status(accepted),
            workers: vec![worker(1, false, NodeState::Quarantined), worker(2, true, NodeState::Here)],
            jobs: vec![job(segments)],
            ended: None,
        };
        Watch { now: Some(look(at + Duration::from_secs(2), 14)), before: Some(look(at, 10)), trouble: None }
    }

    #[test]
    fn a_look_shows_nodes_pieces_rates_and_time_left() {
        let text = page(&watch(5));
        for part in [
            "cluster c1c1c1c1",
            "1 away, 2 here, 1 quarantined",
            "4 wanted",
            "12.5 core-seconds wait",
            "14 accepted, 1 redone, 2 lost, 1 quarantined",
            "2.0 items/s · 3.0 cores busy",
            "job abababab  running  55 %  1 min 35 s left",
            "forward  █████",
            "prove    █4?!o",
            "open     ·····",
            "rack -2",
            "prove/1",
            "████······  45 %",
        ] {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
        let (busy, out) = (text.find("rack -2"), text.find("rack -1"));
        assert!(busy < out, "who works comes first:\n{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn wide_jobs_go_on_below_and_small_screens_do_not_break() {
        let text = page(&watch(150));
        assert_eq!(text.matches("forward").count(), 2, "{text}");
        for (width, height) in [(1, 1), (20, 3), (300, 80)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("made");
            terminal.draw(|frame| draw(frame, &watch(150))).expect("drawn");
        }
    }

    #[test]
    fn trouble_stays_on_the_screen_with_the_last_look() {
        let mut watch = watch(5);
        watch.trouble = Some("no answer".to_owned());
        let text = page(&watch);
        assert!(text.contains("trying again: no answer") && text.contains("cluster c1c1c1c1"), "{text}");
        let text = page(&Watch { trouble: Some("no answer".to_owned()), ..Watch::default() });
        assert_eq!(text.trim(), "no answer");
    }
}
