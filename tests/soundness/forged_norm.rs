//! forged_norm
