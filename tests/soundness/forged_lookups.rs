//! forged_lookups
