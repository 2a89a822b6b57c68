//! forging
