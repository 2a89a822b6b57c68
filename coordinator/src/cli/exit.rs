//! Exit codes and the error type that carries one.

/// Why a command did not succeed, as the process says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The proof was read and is not accepted; `model validate`: a check failed.
    Rejected = 1,
    /// Bad usage, input text, or files.
    Input = 2,
    /// The cluster, a node or the network failed.
    Cluster = 3,
    /// A defect of this program.
    Internal = 4,
}

/// Shown below the help of every command.
pub const EXIT_CODES: &str = "Exit codes: 0 done (verify: accepted), 1 proof rejected (model validate: a check failed), 2 bad usage, input or files, \
3 cluster or network failed, 4 internal error.";

/// An error with its exit code. Errors of libraries are of input or files unless said otherwise.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: Code,
    /// What happened and what to do.
    pub error: anyhow::Error,
}

impl Failure {
    /// Bad usage, input or files.
    pub fn input(text: impl std::fmt::Display) -> Self {
        Self { code: Code::Input, error: anyhow::anyhow!("{text}") }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: Code::Input, error: error.into() }
    }
}

/// Gives an error another code than that of input.
pub trait Coded<T> {
    /// With this code.
    fn code(self, code: Code) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> Coded<T> for Result<T, E> {
    fn code(self, code: Code) -> Result<T, Failure> {
        self.map_err(|error| Failure { code, error: error.into() })
    }
}
