//! The cluster brain: plan, leases, stitching, checks.
