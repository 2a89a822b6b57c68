//! The device: one thread that runs one work item at a time, so that engines need no locking and memory is that of one item.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc as std_mpsc};

use tokio::sync::mpsc;

use crate::engine::{Engine, EngineError, WorkOutput, WorkRequest};
use crate::error::NodeError;
use crate::metrics::NodeMetrics;
use crate::trace::run_span;

/// Work items waiting for the device: the coordinator leases one at a time, one more covers a reassignment in flight.
const MAX_WAITING: usize = 2;
/// Events not yet taken by the session: progress is dropped beyond, results wait.
const MAX_EVENTS: usize = 64;

/// A work item with its input bytes.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) epoch: u64,
    pub(super) request: WorkRequest,
    pub(super) inputs: Vec<Vec<u8>>,
}

/// What the device reports.
#[derive(Debug)]
pub(super) enum DeviceEvent {
    Progress { epoch: u64, permille: u32 },
    Finished { epoch: u64, outcome: Result<WorkOutput, EngineError> },
}

/// Handle to the device thread; the thread ends when this is dropped and its current item is done.
#[derive(Debug)]
pub(super) struct Device {
    tasks: std_mpsc::SyncSender<Task>,
    pub(super) events: mpsc::Receiver<DeviceEvent>,
}

impl Device {
    /// Starts the thread; `name` is the node's, for traces.
    pub(super) fn start(engine: Arc<dyn Engine>, metrics: Arc<NodeMetrics>, name: String) -> Result<Self, NodeError> {
        let (tasks, inbox) = std_mpsc::sync_channel::<Task>(MAX_WAITING);
        let (outbox, events) = mpsc::channel(MAX_EVENTS);
        let work = move || {
            while let Ok(task) = inbox.recv() {
                let WorkRequest { job, kind, segment, .. } = &task.request;
                let span = run_span(job, &format!("{}/{segment}", kind.name()), task.epoch, &name);
                let outcome = span.in_scope(|| metrics.work(*kind, || run(engine.as_ref(), &task, &outbox)));
                drop(span);
                let event = DeviceEvent::Finished { epoch: task.epoch, outcome };
                if outbox.blocking_send(event).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("device".to_owned()).spawn(work).map_err(|e| NodeError::Worker(e.to_string()))?;
        Ok(Self { tasks, events })
    }

    /// Queues a work item; `false` when the device cannot take more.
    pub(super) fn submit(&self, task: Task) -> bool {
        self.tasks.try_send(task).is_ok()
    }
}

fn run(engine: &dyn Engine, task: &Task, outbox: &mpsc::Sender<DeviceEvent>) -> Result<WorkOutput, EngineError> {
    let highest = Cell::new(0);
    let progress = |permille: u32| {
        let permille = permille.min(obelysk_protocol::wire::PERMILLE);
        if permille > highest.get() {
            highest.set(permille);
            // A full queue loses this value only: a later one is higher and says the same.
            let _ = outbox.try_send(DeviceEvent::Progress { epoch: task.epoch, permille });
        }
    };
    let attempt = catch_unwind(AssertUnwindSafe(|| engine.run(&task.request, &task.inputs, &progress)));
    attempt.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
        Err(EngineError::Internal(format!("panicked: {}", text.unwrap_or_else(|| "without a message".to_owned()))))
    })
}
