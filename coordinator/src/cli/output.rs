//! Results on stdout, for people or as JSON; progress and errors on stderr, bars only on a terminal.

use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::Write as _;
use std::time::Duration;

/// Where a command prints.
#[derive(Debug)]
pub struct Out {
    /// Results as JSON.
    pub json: bool,
}

impl Out {
    /// Prints as JSON or for people.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people; nothing under `--json`. A closed pipe is the reader's choice, not an error.
    pub fn line(&self, text: impl std::fmt::Display) {
        if !self.json {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// A named value for people.
    pub fn field(&self, name: &str, value: impl std::fmt::Display) {
        self.line(format_args!("{} {value}", style(format!("{name:<16}")).dim()));
    }

    /// A heading for people.
    pub fn heading(&self, text: &str) {
        self.line(style(text).bold());
    }

    /// The result as JSON; nothing without `--json`.
    pub fn json(&self, value: &impl Serialize) {
        if self.json {
            let text = serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// An error, on stderr.
    pub fn error(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{} {text}", style("error:").for_stderr().red().bold());
    }

    /// A remark on stderr.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{} {text}", style("note:").for_stderr().yellow());
    }

    /// A bar of known length with the time left; hidden when stderr is not a terminal.
    pub fn bar(&self, len: usize, what: &'static str) -> ProgressBar {
        let bar = ProgressBar::new(len as u64).with_message(what);
        let template = "{spinner} {msg:<22} [{bar:30}] {pos}/{len} {elapsed} left {eta}";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// A bar of bytes with the time left; hidden when stderr is not a terminal.
    pub fn bytes(&self, what: String) -> ProgressBar {
        let bar = ProgressBar::new(0).with_prefix(what);
        let template = "{spinner} {prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} left {eta}  {msg}";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// A spinner for work of unknown length.
    pub fn spinner(&self, what: impl Into<String>) -> ProgressBar {
        let bar = ProgressBar::new_spinner().with_message(what.into());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// A digest in hexadecimal.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes in binary units.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
