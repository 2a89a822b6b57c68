//! Conversations: `--chat`, `--system` and messages in a batch, on a checkpoint with a chat template.

use crate::toy::{Place, Ran};
use obelysk_model::import::TextTokenizer;
use obelysk_model::tiny::{self, BOS, Family, Options};
use serde_json::{Value, json};

/// A tiny model, registered as a user does it. Its template and its tokenizer both write the begin token.
fn registered() -> Place {
    let place = Place::empty();
    std::fs::create_dir(place.path("source")).unwrap();
    let options = Options { layers: 1, positions: 128, ..Options::of(Family::Llama) };
    tiny::write(Family::Llama, &place.path("source"), 1, &options).unwrap();
    place.run(&["model", "register", "source", "--name", "tiny"]).expect(0);
    place
}

fn encoded(place: &Place, text: &str) -> Vec<u32> {
    TextTokenizer::read(&place.path("source/tokenizer.json")).unwrap().encode_plain(text).unwrap()
}

/// The prompts' tokens of a result.
fn prompts(result: &Value) -> Vec<Vec<u32>> {
    let ids: Vec<u32> = serde_json::from_value(result["ids"].clone()).unwrap();
    let lengths: Vec<[usize; 2]> = serde_json::from_value(result["sequences"].clone()).unwrap();
    let mut rest = ids.as_slice();
    let cut = |[prompt, completion]: [usize; 2]| {
        let (sequence, after) = rest.split_at(prompt + completion);
        rest = after;
        sequence[..prompt].to_vec()
    };
    lengths.into_iter().map(cut).collect()
}

#[track_caller]
fn says(ran: Ran, parts: &[&str]) {
    let ran = ran.expect(2);
    for part in parts {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
}

const CHAT: [&str; 5] = ["--prompt", "Hi", "--chat", "--system", "Be brief"];
const TEXT: &str = "<s><|system|>\nBe brief<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n";

#[test]
fn a_chat_is_generated_proved_and_verified() {
    let place = registered();
    let model = |command: &str, extra: &[&str]| -> Ran {
        let head = [command, "--model", "tiny", "--max-tokens", "2", "--json"];
        place.run(&[&head[..], extra].concat())
    };
    let expected = encoded(&place, TEXT);
    assert_eq!((expected[0], expected.iter().filter(|&&id| id == BOS).count()), (BOS, 1));
    let made = model("generate", &CHAT).expect(0).json();
    assert_eq!(prompts(&made), std::slice::from_ref(&expected));
    let proved = model("prove", &[&CHAT[..], &["--out", "p.obk"]].concat()).expect(0).json();
    assert_eq!((&proved["ids"], &proved["texts"]), (&made["ids"], &made["texts"]));
    let verify = |extra: &[&str]| place.run(&[&["verify", "p.obk", "--model", "tiny"], extra].concat());
    verify(&CHAT).expect(0);
    for other in [
        &["--prompt", "Hi"][..],
        &["--prompt", "Hi", "--chat"],
        &["--prompt", "Ho", "--chat", "--system", "Be brief"],
        &["--prompt", "Hi", "--chat", "--system", "Be long"],
    ] {
        let ran = verify(other).expect(1);
        assert!(ran.stdout.contains("its prompt is another text"), "{}", ran.stdout);
    }
    says(verify(&["--chat"]), &["--prompt"]);
    verify(&["--prompt", "Hi", "--system", "Be brief"]).expect(2);
}

#[test]
fn a_batch_has_texts_and_conversations() {
    let place = registered();
    let turns = json!([
        { "role": "system", "content": "Be brief" },
        { "role": "user", "content": "Hi" },
        { "role": "assistant", "content": "Yes?" },
        { "role": "user", "content": "Bye" },
    ]);
    let lines = [
        json!({ "messages": turns, "max_tokens": 1 }),
        json!({ "prompt": "Hi" }),
        json!({ "ids": [7, 8] }),
        json!({ "prompt": "Hi", "messages": turns }),
        json!({ "messages": [] }),
        json!({ "messages": [{ "role": "user" }] }),
    ];
    place.write("batch", lines.map(|line| line.to_string()).join("\n").as_bytes());
    let run = |extra: &[&str]| {
        let head = ["generate", "--model", "tiny", "--batch", "batch", "--max-tokens", "2", "--json"];
        place.run(&[&head[..], extra].concat())
    };
    let refused = |made: &Value| -> Vec<u64> {
        made["refused"].as_array().unwrap().iter().map(|line| line["line"].as_u64().unwrap()).collect()
    };
    let talk = "<s><|system|>\nBe brief<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYes?<|end|>\n<|user|>\nBye<|end|>\n\
        <|assistant|>\n";
    let made = run(&[]).expect(0).json();
    assert_eq!(prompts(&made), [encoded(&place, talk), encoded(&place, "<s>Hi"), vec![7, 8]]);
    assert_eq!(refused(&made), [4, 5, 6]);
    // With --chat texts are rendered, conversations stay, ids have no place.
    let made = run(&["--chat", "--system", "Be brief"]).expect(0).json();
    assert_eq!(prompts(&made), [encoded(&place, talk), encoded(&place, TEXT)]);
    assert_eq!(refused(&made), [3, 4, 5, 6]);
}

#[test]
fn chats_without_a_template_or_text_are_refused() {
    let place = registered();
    let generate = |extra: &[&str]| place.run(&[&["generate", "--model", "tiny", "--max-tokens", "1"], extra].concat());
    says(generate(&["--ids", "1,2", "--chat"]), &["token ids", "--prompt", "leave --chat away"]);
    says(generate(&["--prompt", " ", "--chat"]), &["prompt is empty"]);
    // Other files that were registered do not matter to the model's id, so a template can be lost.
    for kept in ["tokenizer_config.json", "generation_config.json"] {
        std::fs::remove_file(place.path("home/models/tiny").join(kept)).unwrap();
    }
    says(generate(&CHAT), &["no chat template", "without --chat", "register the model again"]);
    place.write("batch", br#"{"messages": [{"role": "user", "content": "Hi"}]}"#);
    says(generate(&["--batch", "batch"]), &["line 1", "no chat template"]);
    says(generate(&["--batch", "batch", "--chat"]), &["no chat template"]);
    generate(&["--prompt", "Hi"]).expect(0);
    place.toy("toy", 5);
    let encoder = ["prove", "--model", "toy", "--ids", "1,2", "--chat", "--out", "p.obk"];
    says(place.run(&encoder), &["encoder", "without --chat"]);
}
