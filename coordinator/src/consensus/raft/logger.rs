//! What the raft crate says, said through `tracing`. It asks for a logger of another kind.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record};

/// A logger for one member.
pub(super) fn bridge() -> Logger {
    Logger::root(Bridge, slog::o!())
}

#[derive(Debug)]
struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        // One step lower than the crate thinks: an election is its information, and our detail.
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", record.msg()),
            Level::Warning => tracing::info!(target: "raft", "{}", record.msg()),
            Level::Info => tracing::debug!(target: "raft", "{}", record.msg()),
            Level::Debug | Level::Trace => tracing::trace!(target: "raft", "{}", record.msg()),
        }
        Ok(())
    }
}
