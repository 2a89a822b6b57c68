//! Where a token is read from: argument, file, environment, standard input. It is never printed and never logged.

use super::exit::Failure;
use obelysk_node::Token;
use obelysk_node::identity::{MAX_TOKEN_BYTES, read_private};
use std::io::{BufRead as _, Read as _};
use std::path::Path;
use zeroize::Zeroizing;

/// Environment variable with a token.
pub const TOKEN: &str = "OBELYSK_TOKEN";

/// The token given, if one was: by argument (`-`: one line of standard input), else by file, else by environment.
pub fn token(argument: Option<&str>, file: Option<&Path>) -> Result<Option<Token>, Failure> {
    let text = match (argument, file) {
        (Some("-"), _) => {
            let mut line = Zeroizing::new(String::new());
            std::io::stdin().lock().take(MAX_TOKEN_BYTES as u64 + 2).read_line(&mut line)?;
            line
        }
        (Some(text), _) => Zeroizing::new(text.to_owned()),
        (None, Some(path)) => {
            let bytes = read_private(path, MAX_TOKEN_BYTES as u64 + 2)?;
            let bytes = bytes.ok_or_else(|| Failure::input(format!("there is no token file {}", path.display())))?;
            let text = std::str::from_utf8(&bytes).map_err(|_| Failure::input(format!("{} holds no token", path.display())))?;
            Zeroizing::new(text.to_owned())
        }
        (None, None) => match std::env::var(TOKEN) {
            Ok(text) if !text.trim().is_empty() => Zeroizing::new(text),
            _ => return Ok(None),
        },
    };
    Ok(Some(text.parse()?))
}
