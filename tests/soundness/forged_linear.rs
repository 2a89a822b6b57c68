//! forged_linear
