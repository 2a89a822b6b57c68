//! `obelysk prove`: in this process, on child processes, or at a running coordinator. The proof is the same bytes.

use super::args::{DeviceArgs, ProveArgs};
use super::exit::{Code, Coded as _, Failure};
use super::generate::{generate, pairs, tell};
use super::home::{Home, write_whole};
use super::output::{Out, hex, size};
use super::prompts::Asked;
use super::{cluster, device};
use obelysk_coordinator::JobResult;
use obelysk_coordinator::checker::admit;
use obelysk_cuda::{CudaBackend, DeviceError, attempt};
use obelysk_model::IntegerModel;
use obelysk_model::infer::InferError;
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, usage};
use obelysk_protocol::circuit::descriptor::{Descriptor, MAX_TOKENS};
use obelysk_protocol::circuit::segment_count;
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_shard::job::Backend;
use obelysk_shard::local;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Time of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseTime {
    /// Name.
    pub name: String,
    /// Wall time; phases of a cluster overlap.
    pub seconds: f64,
    /// Processor time over all nodes, where it is known by phase.
    pub core_seconds: Option<f64>,
}

/// A proof and what it took.
#[derive(Debug)]
pub struct Proved {
    /// Proof bytes, verified.
    pub proof: Vec<u8>,
    /// Wall time from loaded model or running nodes to verified proof.
    pub seconds: f64,
    /// Processor time of this process and all nodes.
    pub core_seconds: f64,
    /// Largest resident memory of any one process.
    pub peak_memory_bytes: u64,
    /// Nodes with a part in it; 0 in this process.
    pub nodes: usize,
    /// Times.
    pub phases: Vec<PhaseTime>,
}

/// Runs `prove`.
pub fn run(out: &Out, home: &Home, args: &ProveArgs) -> Result<(), Failure> {
    let mode = mode(args.mode, args.nodes > 0 || args.coordinator.is_some())?;
    if args.device.device.is_some() && (args.nodes > 0 || args.coordinator.is_some()) {
        return Err(Failure::input("--device is for a proof in this process: leave it out, and give it to `node join`"));
    }
    let model = home.open(&args.model)?;
    let (ids, sequences, refused) = match model.registered.descriptor {
        Descriptor::Encoder(_) if args.chat.chat => {
            return Err(Failure::input("this model is an encoder, it takes part in no chat: give --text without --chat"));
        }
        Descriptor::Encoder(_) => (text_ids(&model, args)?, Vec::new(), Vec::new()),
        Descriptor::Decoder(_) if args.text.is_some() => {
            return Err(Failure::input("this model is a decoder: give --prompt instead of --text"));
        }
        Descriptor::Decoder(_) => {
            let made = generate(out, &model, &Asked::from(args))?;
            (made.ids, made.sequences, made.refused)
        }
    };
    let spec = JobSpec { model: model.id, mode: mode as u8, ids, sequences };
    admit::<NodeSuite>(&model.registered, &spec)?;
    let told = tell(&model, &spec.ids, &spec.sequences);
    let proved = match &args.coordinator {
        Some(address) => at_coordinator(out, &model, &spec, (address, args.priority))?,
        None if args.nodes == 0 => on(out, home, &model, &spec, &args.device)?,
        None => on_nodes(out, home, &model, &spec, args.nodes)?,
    };
    write_whole(&args.out, &proved.proof)?;
    out.json(&serde_json::json!({
        "seconds": proved.seconds, "core_seconds": proved.core_seconds, "peak_memory_bytes": proved.peak_memory_bytes,
        "proof_bytes": proved.proof.len(), "nodes": proved.nodes, "phases": proved.phases,
        "mode": spec.mode, "tokens": spec.ids.len(), "model_id": hex(&model.id), "proof": args.out,
        "ids": spec.ids, "sequences": pairs(&spec.sequences), "texts": told, "refused": refused,
    }));
    super::generate::print(out, &told);
    out.field("proof", args.out.display());
    print(out, &spec, &proved);
    out.field("check it", format_args!("obelysk verify {} --model {}", args.out.display(), args.model));
    Ok(())
}

/// The mode with this number; a cluster has no work in mode 0, where each segment waits for the one before, and proving here instead
/// would be a surprise.
pub fn mode(number: u8, cluster: bool) -> Result<Mode, Failure> {
    let mode = Mode::of(number).ok_or_else(|| Failure::input(format!("there is no mode {number}: give 0, 1 or 2")))?;
    if cluster && mode == Mode::Sequential {
        let text = "a cluster proves in modes 1 and 2: leave --nodes and --coordinator away, or give one of those";
        return Err(Failure::input(format!("mode {number} is proved in one process; {text}")));
    }
    Ok(mode)
}

/// Prints what a proof took.
pub fn print(out: &Out, spec: &JobSpec, proved: &Proved) {
    out.field("tokens", spec.ids.len());
    out.field("mode", spec.mode);
    out.field("proof size", size(proved.proof.len() as u64));
    out.field("time", format_args!("{:.2} s wall, {:.2} s processor", proved.seconds, proved.core_seconds));
    out.field("peak memory", size(proved.peak_memory_bytes));
    if proved.nodes > 0 {
        out.field("nodes", proved.nodes);
    }
    for phase in &proved.phases {
        let cores = phase.core_seconds.map(|s| format!(", {s:.2} s processor")).unwrap_or_default();
        out.field(&format!("  {}", phase.name), format_args!("{:.2} s{cores}", phase.seconds));
    }
}

/// An encoder's input.
fn text_ids(model: &ModelFolder, args: &ProveArgs) -> Result<Vec<u32>, Failure> {
    let ids = match (&args.text, &args.ids) {
        (Some(text), _) => tokens(model, text)?,
        (None, Some(ids)) => ids.clone(),
        (None, None) => return Err(Failure::input("this model is an encoder: give --text or --ids, it completes no prompts")),
    };
    check_ids(model, &ids)?;
    Ok(ids)
}

/// Token ids of a text by the model's tokenizer.
pub fn tokens(model: &ModelFolder, text: &str) -> Result<Vec<u32>, Failure> {
    if !model.path.join("tokenizer.json").is_file() {
        let text = format!("{} has no tokenizer.json: give token ids with --ids", model.path.display());
        return Err(Failure::input(text));
    }
    Ok(IntegerModel::load_tokenizer(&model.path)?.encode(text)?)
}

/// Refuses ids that the model does not take, before any work.
fn check_ids(model: &ModelFolder, ids: &[u32]) -> Result<(), Failure> {
    let d = &model.registered.descriptor;
    let max = MAX_TOKENS.min(d.positions() as usize);
    let outside = ids.iter().enumerate().find(|&(_, &id)| id >= d.vocab());
    Err(match outside {
        _ if ids.is_empty() => InferError::Empty.into(),
        _ if ids.len() > max => InferError::TooLong { tokens: ids.len(), max }.into(),
        Some((position, &id)) => InferError::Vocabulary { id, position, vocab: d.vocab() }.into(),
        None => return Ok(()),
    })
}

/// In this process, on a device.
fn on(out: &Out, home: &Home, model: &ModelFolder, spec: &JobSpec, args: &DeviceArgs) -> Result<Proved, Failure> {
    let Some(card) = device::open(home, device::chosen(args)?)? else { return here(out, model, spec) };
    device::tell(out, Some(&card));
    let on_card = attempt(|| with(out, model, spec, &CudaBackend::new(card)));
    settled(on_card, args.gpu_only, |error| {
        out.note(&format!("the card did not get through, proving on the CPU: {error}"));
        here(out, model, spec)
    })
}

/// What a card proved, or else what the processors prove: also after a proof that this program does not accept itself, because a card that
/// computes wrongly says so nowhere else. What is wrong with the input is said again by the processors.
fn settled<T>(
    on_card: Result<Result<T, Failure>, DeviceError>,
    gpu_only: bool,
    fallback: impl FnOnce(String) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match on_card {
        Ok(Ok(proved)) => Ok(proved),
        Ok(Err(failure)) if gpu_only => Err(failure),
        Ok(Err(failure)) => fallback(format!("{:#}", failure.error)),
        Err(error) if gpu_only => {
            // A card that is full is no defect: another card, or a shorter text, fits.
            let code = if error.is_full() { Code::Input } else { Code::Internal };
            Err(Failure { code, error: error.into() })
        }
        Err(error) => fallback(error.to_string()),
    }
}

/// On the processors of this machine, in this process, in any mode.
pub fn here(out: &Out, model: &ModelFolder, spec: &JobSpec) -> Result<Proved, Failure> {
    with(out, model, spec, &NodeBackend::default())
}

fn with<B: Backend>(out: &Out, model: &ModelFolder, spec: &JobSpec, backend: &B) -> Result<Proved, Failure> {
    let mode = mode(spec.mode, false)?;
    let spinner = out.spinner("loading weights");
    let loaded = model.load::<NodeSuite, B>();
    spinner.finish_and_clear();
    let loaded = loaded?;
    let (started, cpu) = (Instant::now(), usage::cpu_time());
    let segments = segment_count(&model.registered.descriptor);
    let bar = out.bar(2 * segments, "commit");
    let progress = |phase: &'static str, _: usize, _: usize| {
        bar.set_message(phase);
        bar.inc(1);
    };
    let outcome = local::prove_in(backend, &loaded, (&spec.input(), mode), &progress);
    bar.finish_and_clear();
    let (proof, phases) = outcome?;
    let bytes = proof.write();
    let checked = Instant::now();
    verify_bytes::<NodeSuite>(&model.registered, &bytes).code(Code::Internal)?;
    let times = phases.0.into_iter().chain([("verify", checked.elapsed())]);
    let time = |(name, t): (&str, Duration)| PhaseTime { name: name.into(), seconds: t.as_secs_f64(), core_seconds: None };
    Ok(Proved {
        proof: bytes,
        seconds: started.elapsed().as_secs_f64(),
        core_seconds: (usage::cpu_time() - cpu).as_secs_f64(),
        peak_memory_bytes: usage::peak_memory_bytes(),
        nodes: 0,
        phases: times.map(time).collect(),
    })
}

/// On child processes of this machine.
pub fn on_nodes(out: &Out, home: &Home, model: &ModelFolder, spec: &JobSpec, nodes: u32) -> Result<Proved, Failure> {
    let cpu = usage::cpu_time();
    let result = cluster::prove(out, home, model, spec, nodes)?;
    let own = (usage::cpu_time() - cpu).as_secs_f64();
    Ok(proved(result, own))
}

fn at_coordinator(out: &Out, model: &ModelFolder, spec: &JobSpec, (address, priority): (&str, u8)) -> Result<Proved, Failure> {
    let result = cluster::submit(out, address, spec, (segment_count(&model.registered.descriptor), priority))?;
    // Bytes of a peer: believed when they verify, for the input asked for.
    let accepted = verify_bytes::<NodeSuite>(&model.registered, &result.proof).code(Code::Cluster)?;
    if (&accepted.ids, &accepted.sequences) != (&spec.ids, &spec.sequences) {
        let text = "the coordinator returned a proof for another input; do not use this coordinator";
        return Err(Failure { code: Code::Cluster, error: anyhow::anyhow!(text) });
    }
    Ok(proved(result, 0.0))
}

fn proved(result: JobResult, own_core_seconds: f64) -> Proved {
    let total = result.phases.iter().find(|p| p.name == "total");
    let (seconds, cores) = total.map_or((0.0, 0.0), |p| (p.wall_s, p.core_s));
    let time = |p: &obelysk_coordinator::Phase| PhaseTime {
        name: p.name.clone(),
        seconds: p.wall_s,
        core_seconds: (p.core_s > 0.0).then_some(p.core_s),
    };
    Proved {
        seconds,
        core_seconds: cores + own_core_seconds,
        peak_memory_bytes: result.peak_memory_bytes.max(usage::peak_memory_bytes()),
        nodes: result.nodes.len(),
        phases: result.phases.iter().filter(|p| p.name != "total").map(time).collect(),
        proof: result.proof,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_fails_or_computes_wrongly_leaves_the_work_to_the_processors() {
        let full = DeviceError::Exhausted { at: "upload".to_owned(), reason: String::new() };
        let lost = DeviceError::Failed { at: "upload".to_owned(), reason: String::new() };
        let wrong = || Ok(Err(Failure { code: Code::Internal, error: anyhow::anyhow!("the proof does not verify") }));
        let code = |on_card| settled::<u8>(on_card, true, |_| panic!("only the card may be used")).map_err(|f| f.code);
        assert_eq!(code(Ok(Ok(1))), Ok(1));
        assert_eq!(code(Err(full.clone())), Err(Code::Input));
        assert_eq!(code(Err(lost.clone())), Err(Code::Internal));
        assert_eq!(code(wrong()), Err(Code::Internal));
        for on_card in [Err(full), Err(lost), wrong()] {
            assert!(matches!(settled(on_card, false, |_| Ok(2)), Ok(2)));
        }
    }
}
