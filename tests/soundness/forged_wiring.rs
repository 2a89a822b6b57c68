//! forged_wiring
