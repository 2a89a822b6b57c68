//! forged_attention
