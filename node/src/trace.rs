//! One job is one trace, on all machines, without a byte more on the wire: the ids follow from job and lease.
//!
//! Ids as W3C Trace Context has them: 16 bytes for a trace, 8 for a span, none of them all zero.

use tracing::Span;

/// Bits of a span's id that say which part of a lease it is; epochs stay below.
const CHECK: u64 = 1 << 62;
const RUN: u64 = 1 << 63;

/// A job's trace: the first half of its id, which is a hash.
#[must_use]
pub fn trace_id(job: &[u8; 32]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&job[..16]);
    id
}

/// The span of a whole job, parent of its leases.
#[must_use]
pub fn job_span_id(trace: &[u8; 16]) -> u64 {
    trace.first_chunk::<8>().map_or(1, |bytes| u64::from_be_bytes(*bytes)).max(1)
}

/// Which part of a lease a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// From assignment to report, on the coordinator.
    Lease,
    /// The work, on the node; its parent is the lease.
    Run,
    /// The check of the result, on the coordinator; its parent is the lease.
    Check,
}

impl Part {
    /// The part whose span has this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Lease, Self::Run, Self::Check].into_iter().find(|part| part.name() == name)
    }

    /// Name of its span.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Run => "run",
            Self::Check => "check",
        }
    }

    /// Id of the span of this part of a lease.
    #[must_use]
    pub const fn span_id(self, epoch: u64) -> u64 {
        match self {
            Self::Lease => epoch,
            Self::Run => epoch | RUN,
            Self::Check => epoch | CHECK,
        }
    }
}

/// Lowercase hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// The span of work on a node. `work` is `kind/segment`.
#[must_use]
pub fn run_span(job: &[u8; 32], work: &str, epoch: u64, node: &str) -> Span {
    let trace = hex(&trace_id(job));
    tracing::info_span!(parent: None, "run", job = trace.get(..8), trace, work, epoch, node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_zero_and_never_meet() {
        let job = [9; 32];
        assert_eq!(trace_id(&job), [9; 16]);
        assert_eq!(job_span_id(&trace_id(&[0; 32])), 1);
        let ids = [Part::Lease, Part::Run, Part::Check].map(|part| part.span_id(1));
        assert_eq!(ids, [1, 0x8000_0000_0000_0001, 0x4000_0000_0000_0001]);
        for part in [Part::Lease, Part::Run, Part::Check] {
            assert_eq!(Part::named(part.name()), Some(part));
        }
        assert_eq!(Part::named("job"), None);
    }
}
