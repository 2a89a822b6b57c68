//! From what the user asks to token ids: texts, conversations, ids, and files of them.
//!
//! Every bound is checked before any work. One bad line of a batch is reported with its number; the others go on. A
//! conversation is rendered by the model's own chat template, which writes the special tokens, so none are added to it; a model
//! without a template gets none made up.

use super::args::{ChatArgs, GenerateArgs, ProveArgs};
use super::exit::Failure;
use super::home::read_bounded;
use obelysk_model::IntegerModel;
use obelysk_model::chat::{ChatTemplate, Message};
use obelysk_model::import::TextTokenizer;
use obelysk_model::infer::InferError;
use obelysk_node::ModelFolder;
use obelysk_protocol::circuit::descriptor::{Decoder, MAX_TOKENS};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::path::Path;

/// Largest batch file: prompts of a full proof take a few kilobytes.
const MAX_BATCH_BYTES: u64 = 16 << 20;
/// Most lines of a batch: each has at least one row of the token axis.
const MAX_LINES: usize = MAX_TOKENS;
/// Most messages of a conversation: each takes at least one token.
const MAX_MESSAGES: usize = MAX_TOKENS;

/// A line of a batch that was left out.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// Line number, from 1.
    pub line: usize,
    /// Why.
    pub reason: String,
}

/// One prompt to complete.
pub struct Prompt {
    /// Its tokens, at least one.
    pub ids: Vec<u32>,
    /// Most tokens to generate, at least one.
    pub max_tokens: usize,
}

/// A line of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: Option<String>,
    ids: Option<Vec<u32>>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<usize>,
}

/// Where prompts come from.
pub struct Asked<'a> {
    /// A text.
    pub prompt: Option<&'a str>,
    /// Token ids.
    pub ids: Option<&'a [u32]>,
    /// A file with one JSON object per line.
    pub batch: Option<&'a Path>,
    /// Whether texts are what a user says in a conversation.
    pub chat: Option<Chat<'a>>,
    /// Most tokens to generate per prompt.
    pub max_tokens: usize,
}

/// How a text becomes a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chat<'a> {
    /// A system message before it.
    pub system: Option<&'a str>,
}

impl<'a> Chat<'a> {
    /// What the arguments ask for.
    pub fn asked(args: &'a ChatArgs) -> Option<Self> {
        args.chat.then_some(Self { system: args.system.as_deref() })
    }

    fn messages(self, text: &str) -> Vec<Message> {
        let system = self.system.map(|system| Message::new("system", system));
        system.into_iter().chain([Message::new("user", text)]).collect()
    }
}

impl<'a> From<&'a ProveArgs> for Asked<'a> {
    fn from(args: &'a ProveArgs) -> Self {
        let (prompt, ids, chat) = (args.prompt.as_deref(), args.ids.as_deref(), Chat::asked(&args.chat));
        Self { prompt, ids, batch: args.batch.as_deref(), chat, max_tokens: args.max_tokens }
    }
}

impl<'a> From<&'a GenerateArgs> for Asked<'a> {
    fn from(args: &'a GenerateArgs) -> Self {
        let (prompt, ids, chat) = (args.prompt.as_deref(), args.ids.as_deref(), Chat::asked(&args.chat));
        Self { prompt, ids, batch: args.batch.as_deref(), chat, max_tokens: args.max_tokens }
    }
}

/// A model's tokenizer, and its chat template once it is asked for.
pub struct PromptReader<'a> {
    folder: &'a Path,
    tokenizer: TextTokenizer,
    template: OnceCell<ChatTemplate>,
}

impl<'a> PromptReader<'a> {
    /// Reads the tokenizer in a model's folder.
    pub fn open(folder: &'a Path) -> Result<Self, Failure> {
        if folder.join("tokenizer.json").is_file() {
            let tokenizer = IntegerModel::load_tokenizer(folder)?;
            return Ok(Self { folder, tokenizer, template: OnceCell::new() });
        }
        let text = "has no tokenizer.json, which texts need: register the model again with it, or prove token ids with --ids";
        Err(Failure::input(format!("{} {text}", folder.display())))
    }

    /// Token ids of a prompt, as it is or as a user's message.
    pub fn prompt(&self, text: &str, chat: Option<Chat<'_>>) -> Result<Vec<u32>, Failure> {
        if text.trim().is_empty() {
            return Err(Failure::input("the prompt is empty: give some text"));
        }
        match chat {
            None => Ok(self.tokenizer.encode(text)?),
            Some(chat) => self.conversation(&chat.messages(text)),
        }
    }

    /// Token ids of a conversation up to where the model's answer begins.
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>, Failure> {
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            let text = format!("a conversation of {} messages: give 1 to {MAX_MESSAGES} in \"messages\"", messages.len());
            return Err(Failure::input(text));
        }
        Ok(self.tokenizer.encode_plain(&self.template()?.render(messages)?)?)
    }

    fn template(&self) -> Result<&ChatTemplate, Failure> {
        if let Some(template) = self.template.get() {
            return Ok(template);
        }
        let Some(template) = ChatTemplate::read(self.folder)? else {
            let text = "has no chat template: write the prompt as the model expects it, without --chat and \"messages\", \
                or register the model again with its tokenizer_config.json or chat_template.jinja";
            return Err(Failure::input(format!("{} {text}", self.folder.display())));
        };
        Ok(self.template.get_or_init(|| template))
    }
}

/// All prompts asked for, and the lines of a batch that are none.
pub fn prompts(model: &ModelFolder, d: &Decoder, asked: &Asked<'_>) -> Result<(Vec<Prompt>, Vec<Refused>), Failure> {
    let reader = || PromptReader::open(&model.path);
    if let Some(batch) = asked.batch {
        return lines(d, &reader()?, batch, asked);
    }
    let ids = match (asked.prompt, asked.ids) {
        (Some(text), _) => reader()?.prompt(text, asked.chat)?,
        (None, Some(_)) if asked.chat.is_some() => return Err(ids_in_chat()),
        (None, Some(ids)) => ids.to_vec(),
        (None, None) => return Err(Failure::input("give --prompt, --ids or --batch")),
    };
    Ok((vec![admitted(d, ids, asked.max_tokens)?], Vec::new()))
}

fn ids_in_chat() -> Failure {
    Failure::input("token ids have no place in a chat template: give the text with --prompt, or leave --chat away")
}

fn lines(d: &Decoder, reader: &PromptReader<'_>, path: &Path, asked: &Asked<'_>) -> Result<(Vec<Prompt>, Vec<Refused>), Failure> {
    if asked.chat.is_some() {
        // Missing for all lines or for none.
        reader.template()?;
    }
    let text = String::from_utf8(read_bounded(path, MAX_BATCH_BYTES)?)
        .map_err(|_| Failure::input(format!("{} is not UTF-8", path.display())))?;
    let (mut prompts, mut refused) = (Vec::new(), Vec::new());
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (at, line) in lines.take(MAX_LINES + 1) {
        match one_line(d, reader, line, asked) {
            Ok(prompt) => prompts.push(prompt),
            Err(failure) => refused.push(Refused { line: at + 1, reason: failure.error.to_string() }),
        }
    }
    if prompts.len() + refused.len() > MAX_LINES {
        return Err(Failure::input(format!("{} has more than {MAX_LINES} lines: split it", path.display())));
    }
    Ok((prompts, refused))
}

fn one_line(d: &Decoder, reader: &PromptReader<'_>, line: &str, asked: &Asked<'_>) -> Result<Prompt, Failure> {
    let line: Line = serde_json::from_str(line).map_err(|e| Failure::input(format!("not a request ({e})")))?;
    let ids = match (line.prompt, line.ids, line.messages) {
        (Some(text), None, None) => reader.prompt(&text, asked.chat)?,
        (None, Some(_), None) if asked.chat.is_some() => return Err(ids_in_chat()),
        (None, Some(ids), None) => ids,
        (None, None, Some(messages)) => reader.conversation(&messages)?,
        _ => return Err(Failure::input("give one of \"prompt\", \"ids\" and \"messages\"")),
    };
    admitted(d, ids, line.max_tokens.unwrap_or(asked.max_tokens))
}

/// Refuses what the model cannot complete.
fn admitted(d: &Decoder, ids: Vec<u32>, max_tokens: usize) -> Result<Prompt, Failure> {
    let positions = d.positions as usize;
    if ids.is_empty() {
        return Err(InferError::Empty.into());
    }
    if let Some((position, &id)) = ids.iter().enumerate().find(|&(_, &id)| id >= d.vocab) {
        return Err(InferError::Vocabulary { id, position, vocab: d.vocab }.into());
    }
    if max_tokens == 0 {
        return Err(Failure::input("0 tokens to generate: a proof needs at least one, raise --max-tokens"));
    }
    if ids.len() + max_tokens > positions {
        let text =
            format!("a prompt of {} tokens and up to {max_tokens} to generate; this model's context is {positions}", ids.len());
        return Err(Failure::input(format!("{text}: shorten the prompt or lower --max-tokens")));
    }
    Ok(Prompt { ids, max_tokens })
}

#[cfg(test)]
mod tests {
    use super::*;
    use obelysk_model::tiny::{self, BOS, Family, Options};
    use tempfile::TempDir;

    fn folder(family: Family) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        tiny::write(family, folder.path(), 1, &Options::of(family)).unwrap();
        folder
    }

    fn reason<T>(result: Result<T, Failure>) -> String {
        result.err().unwrap().error.to_string()
    }

    #[test]
    fn a_chat_has_the_special_tokens_of_its_template_and_no_others() {
        for family in tiny::FAMILIES {
            let folder = folder(family);
            let reader = PromptReader::open(folder.path()).unwrap();
            let begins = family != Family::Qwen3 && family != Family::Phi3;
            let plain = reader.prompt("Hello", None).unwrap();
            assert_eq!(plain[0] == BOS, begins, "{family:?}");
            for (system, written) in [(None, ""), (Some("Be brief"), "<|system|>\nBe brief<|end|>\n")] {
                let ids = reader.prompt("Hello", Some(Chat { system })).unwrap();
                let text = format!("{}{written}<|user|>\nHello<|end|>\n<|assistant|>\n", if begins { "<s>" } else { "" });
                assert_eq!(reader.tokenizer.decode(&ids, true).unwrap(), text, "{family:?}");
                assert_eq!(ids.iter().filter(|&&id| id == BOS).count(), usize::from(begins), "{family:?}");
                // Names of roles are single tokens, not the letters of their names.
                assert!(ids.len() < text.len() - 20, "{family:?}: {ids:?}");
            }
        }
    }

    #[test]
    fn a_model_without_a_template_takes_plain_prompts_only() {
        let folder = folder(Family::Mistral);
        std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
        let reader = PromptReader::open(folder.path()).unwrap();
        reader.prompt("Hello", None).unwrap();
        let text = reason(reader.prompt("Hello", Some(Chat { system: None })));
        assert!(text.contains("no chat template") && text.contains("without --chat"), "{text}");
        // The other place of a template.
        std::fs::write(folder.path().join("chat_template.jinja"), "[{{ messages[0].content }}]").unwrap();
        let ids = reader.prompt("Hello", Some(Chat { system: None })).unwrap();
        assert_eq!(reader.tokenizer.decode(&ids, true).unwrap(), "[Hello]");
    }

    #[test]
    fn conversations_are_bounded_and_known() {
        let folder = folder(Family::Gemma2);
        let reader = PromptReader::open(folder.path()).unwrap();
        for many in [0, MAX_MESSAGES + 1] {
            let text = reason(reader.conversation(&vec![Message::new("user", "a"); many]));
            assert!(text.contains(&format!("{many} messages")), "{text}");
        }
        let read = |text: &str| serde_json::from_str::<Line>(text).map(|line| line.messages.map_or(0, |m| m.len()));
        assert_eq!(read(r#"{"messages": [{"role": "user", "content": "a"}]}"#).unwrap(), 1);
        for bad in [r#"{"messages": [{"role": "user"}]}"#, r#"{"messages": "a"}"#, r#"{"message": []}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
        std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        assert!(reason(PromptReader::open(folder.path())).contains("no tokenizer.json"));
    }
}
