//! Conversations to text, by the chat template that a model is published with (`tokenizer_config.json` or
//! `chat_template.jinja`).
//!
//! Templates are programs by strangers: their size, steps and output are bounded, and they see nothing but the messages and
//! the tokenizer's special tokens. Folders without a template give none; no template is made up. The text begins with
//! whatever the template writes, so it is tokenised without the tokenizer's own special tokens
//! ([`TextTokenizer::encode_plain`](crate::import::TextTokenizer::encode_plain)).

mod clock;
mod json;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use thiserror::Error as ThisError;

/// Files that hold a template and its special tokens; whoever copies a tokenizer copies those present too.
pub const FILES: [&str; 2] = [CONFIG, TEMPLATE];

const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Largest file read: published configurations list every added token and reach 2 MiB.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Longest template: published ones, tools included, stay below 32 KiB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Longest rendered text: far beyond any context that can be proven.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Template steps: published templates take some hundreds per message.
const MAX_STEPS: u64 = 2_000_000;
/// Special tokens a template may name.
const TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
const NAME: &str = "chat_template";

/// Why a conversation has no text.
#[derive(Debug, ThisError)]
pub enum ChatError {
    /// A file is there but unreadable.
    #[error("cannot read {path}: {source}; fetch the model again")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// `tokenizer_config.json` does not parse or has fields of another kind.
    #[error("{path}: {reason}; fetch the model again, or use the prompt without a chat template")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The template cannot be compiled or run.
    #[error("the model's chat template fails: {0}; write the prompt as the model expects it and use no chat template")]
    Template(String),
    /// The template refuses the conversation.
    #[error("the model's chat template refuses this conversation: {0}; change its messages (some models take no system text)")]
    Refused(String),
    /// The template does not come to an end.
    #[error("the model's chat template exceeds {limit} {what}; shorten the conversation, or use no chat template")]
    Bound {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`; templates decide what they take.
    pub role: String,
    /// Text.
    pub content: String,
}

/// A compiled template with the tokenizer's special tokens.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<&'static str, String>,
}

impl Message {
    /// A message of a role.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }
}

impl ChatTemplate {
    /// The template of a model's folder, if it has one. `chat_template.jinja` goes before `tokenizer_config.json`; of a list
    /// of named templates the one named `default` is taken.
    ///
    /// # Errors
    /// Files that cannot be read or parsed, templates that do not compile.
    pub fn read(folder: &Path) -> Result<Option<Self>, ChatError> {
        let path = folder.join(CONFIG);
        let config = read(&path)?.map(|text| serde_json::from_str(&text)).transpose();
        let wrong = |reason: String| ChatError::Config { path: path.clone(), reason };
        let config: serde_json::Value = config.map_err(|e| wrong(e.to_string()))?.unwrap_or_default();
        let template = match read(&folder.join(TEMPLATE))? {
            Some(text) => Some(text),
            None => default_template(&config).map_err(&wrong)?,
        };
        let Some(template) = template else { return Ok(None) };
        let mut tokens = BTreeMap::new();
        for name in TOKENS {
            let token = config.get(name).unwrap_or(&serde_json::Value::Null);
            // Either the text or an object that says how the text is matched.
            match token.get("content").unwrap_or(token) {
                serde_json::Value::Null => {}
                serde_json::Value::String(text) => drop(tokens.insert(name, text.clone())),
                other => return Err(wrong(format!("{name} is {other}, not a token"))),
            }
        }
        Self::new(template, tokens).map(Some)
    }

    /// Compiles a template.
    fn new(template: String, tokens: BTreeMap<&'static str, String>) -> Result<Self, ChatError> {
        if template.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::Bound { what: "bytes of template", limit: MAX_TEMPLATE_BYTES as u64 });
        }
        let mut environment = Environment::new();
        // What the publishers' own software sets.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(text)))
        });
        environment.add_function("strftime_now", |format: String| clock::strftime(clock::now(), &format));
        environment.add_template_owned(NAME, template).map_err(failed)?;
        Ok(Self { environment, tokens })
    }

    /// Text of a conversation up to where the model's answer begins.
    ///
    /// # Errors
    /// [`ChatError::Refused`] if the template raises an exception, otherwise what fails in it.
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatError> {
        let mut context: BTreeMap<&str, Value> = self.tokens.iter().map(|(&k, v)| (k, Value::from(v.as_str()))).collect();
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", Value::from(true));
        let mut text = Bounded(Vec::new());
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render_captured_to(Value::from_pairs(context), &mut text).map_err(failed)?;
        String::from_utf8(text.0).map_err(|e| ChatError::Template(e.to_string()))
    }
}

/// Text of a file, or none if it is absent.
fn read(path: &Path) -> Result<Option<String>, ChatError> {
    let failed = |source| ChatError::File { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("it is larger than {MAX_FILE_BYTES} bytes");
        return Err(ChatError::Config { path: path.to_owned(), reason });
    }
    Ok(Some(text))
}

fn default_template(config: &serde_json::Value) -> Result<Option<String>, String> {
    match config.get("chat_template") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(serde_json::Value::Array(list)) => {
            let text = |entry: &serde_json::Value, key: &str| entry.get(key).and_then(|v| v.as_str()).map(str::to_owned);
            let found = list.iter().find(|entry| text(entry, "name").as_deref() == Some("default"));
            let found = found.and_then(|entry| text(entry, "template"));
            found.map(Some).ok_or_else(|| "chat_template is a list without a template named `default`".to_owned())
        }
        Some(other) => Err(format!("chat_template is {other}, not a template")),
    }
}

/// What `raise_exception` carries through the template's machinery.
#[derive(Debug, ThisError)]
#[error("{0}")]
struct Raised(String);

fn failed(error: Error) -> ChatError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(at) = cause {
        if let Some(Raised(text)) = at.downcast_ref() {
            return ChatError::Refused(text.clone());
        }
        match at.downcast_ref::<Error>().map(Error::kind) {
            Some(ErrorKind::OutOfFuel) => return ChatError::Bound { what: "steps", limit: MAX_STEPS },
            // Memory takes every write but the one that is too much.
            Some(ErrorKind::WriteFailure) => return ChatError::Bound { what: "bytes of text", limit: MAX_OUTPUT_BYTES as u64 },
            _ => {}
        }
        cause = at.source();
    }
    ChatError::Template(error.to_string())
}

/// Output that refuses to grow without end.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
