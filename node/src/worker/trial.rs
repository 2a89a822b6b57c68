//! Pieces of calibration, done before the welcome on the device that does all work.

use obelysk_protocol::wire::{Message, Trial, TrialDone, TrialFailed, WorkKind};

use super::device::{DeviceEvent, Task};
use super::{Agent, Outcome, clip};
use crate::engine::WorkRequest;

/// Trials have numbers from here on where work has epochs, which all are below.
const FIRST_TRIAL: u64 = u64::MAX / 2;

/// Does a piece of calibration, on the device as any work.
pub(super) async fn attempt(agent: &mut Agent, trial: Trial) -> Message {
    let number = trial.number;
    let failed = |reason: &str| Message::TrialFailed(TrialFailed { number, reason: clip(reason) });
    let Some(kind) = WorkKind::from_code(trial.kind) else { return failed("an unknown kind of work") };
    let Trial { model, segment, spec, extra, inputs, .. } = trial;
    let request = WorkRequest { job: [0; 32], model, kind, segment, spec, extra };
    agent.trials += 1;
    let epoch = FIRST_TRIAL + agent.trials;
    if !agent.device.submit(Task { epoch, request, inputs }) {
        return failed("the device still has work");
    }
    loop {
        match agent.device.events.recv().await {
            Some(DeviceEvent::Finished { epoch: found, outcome }) if found == epoch => {
                return match outcome {
                    Ok(done) => {
                        let (core_us, peak_bytes) = (done.core_us, done.peak_bytes);
                        Message::TrialDone(TrialDone { number, output: done.blob, core_us, peak_bytes })
                    }
                    Err(error) => failed(&error.to_string()),
                };
            }
            Some(DeviceEvent::Finished { epoch, outcome }) if epoch < FIRST_TRIAL => agent.finish(Outcome::new(epoch, outcome)),
            Some(_) => {}
            None => return failed("the device thread has ended"),
        }
    }
}
