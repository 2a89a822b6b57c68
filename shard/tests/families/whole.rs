//! The whole way, family by family.

use crate::models::{Made, files, made, options};
use crate::place::{Place, TOY_SECURITY};
use obelysk_model::infer::decoder::decode::Fed;
use obelysk_model::infer::decoder::{Session, generate_batch, run, run_reference};
use obelysk_model::tiny::FAMILIES;
use obelysk_model::toy::{decoder_mut, decoder_of};
use obelysk_model::{IntegerModel, StoredModel};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::transcript::Blake2s;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::registration::register;

#[test]
fn every_family_is_proved_from_its_published_folder() {
    for family in FAMILIES {
        let made = made(family);
        let shards = files(made.folder.path()).iter().filter(|f| f.ends_with(".safetensors")).count();
        assert_eq!(shards, options(family).shards, "{family:?}");
        let (folder, read) = made.stored();
        assert_eq!(read, made.model, "{family:?}: what is read back is not what was written");
        let input = made.input();
        executors_agree(&made, &input);
        windows_matter(&made, &input);
        let k = Simd::default();
        let place = Place::<Blake2s, _>::new(&k, read);
        let stored = StoredModel::open(&folder.path().join("model"), 0).unwrap();
        let again = tempfile::tempdir().unwrap();
        let registered = register::<Blake2s, _>(&k, &stored, TOY_SECURITY, [7; 32], again.path(), &|_| ()).unwrap();
        assert_eq!(registered.write(), place.registered.write(), "{family:?}: the folder registers as another model");
        place.whole(&k, &input);
    }
}

/// The fast executor, the defining one, and the one that keeps keys and values.
fn executors_agree(made: &Made, input: &PublicInput) {
    let (d, family) = (decoder_of(&made.model), made.family);
    let trace = run(&made.model, input).unwrap();
    assert!(trace == run_reference(&made.model, input).unwrap(), "{family:?}: two executors");
    let targets: Vec<u32> = input.checked().iter().map(|c| c.target).collect();
    assert_eq!(trace.head.tokens, targets, "{family:?}: generated, and read in one pass");
    let mut rest = input.ids.as_slice();
    let mut column = 0;
    for s in &input.sequences {
        let (ids, after) = rest.split_at((s.prompt + s.completion) as usize);
        rest = after;
        let mut session = Session::new(d, 1);
        for &id in &ids[..ids.len() - 1] {
            let x = session.feed(&made.model.weights, &[Fed { sequence: 0, id }]).unwrap();
            let whole = trace.entering(d.layers.len() + 1).iter().skip(column).step_by(trace.t_pad);
            assert!(x.iter().eq(whole), "{family:?}: row {column}");
            column += 1;
        }
    }
    // Both prompts in one session, as the command line generates them.
    let prompts = prompts(input);
    let together = generate_batch(d, &made.model.weights, &prompts.each_ref().map(Vec::as_slice), 3, &[]).unwrap();
    for (s, completion) in together.iter().enumerate() {
        let start =
            prompts[s].len() + if s == 0 { 0 } else { (input.sequences[0].prompt + input.sequences[0].completion) as usize };
        assert_eq!(completion[..], input.ids[start..start + 3], "{family:?}");
    }
}

fn prompts(input: &PublicInput) -> [Vec<u32>; 2] {
    let [first, second] = [input.sequences[0], input.sequences[1]];
    let at = (first.prompt + first.completion) as usize;
    [input.ids[..first.prompt as usize].to_vec(), input.ids[at..at + second.prompt as usize].to_vec()]
}

/// Without its window a model continues with other tokens.
fn windows_matter(made: &Made, input: &PublicInput) {
    let windows: Vec<u32> = decoder_of(&made.model).layers.iter().map(|l| l.window).collect();
    let Some(&widest) = windows.iter().max().filter(|&&w| w > 0) else { return };
    assert!(input.sequences.iter().all(|s| s.prompt > widest), "{:?}: {:?}", made.family, input.sequences);
    let mut open = made.model.clone();
    decoder_mut(&mut open).layers.iter_mut().for_each(|l| l.window = 0);
    let tokens = |model: &IntegerModel| run(model, input).unwrap().head.tokens;
    assert_ne!(tokens(&made.model), tokens(&open), "{:?}: the window does not matter", made.family);
}
