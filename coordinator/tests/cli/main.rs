//! The command line as a user runs it: the real binary on a toy model, exit codes, JSON keys, bad input.

mod bucket;
mod cards;
mod chat;
mod commands;
mod determinism;
mod faults;
mod joining;
mod models;
mod nodes;
mod observe;
mod several;
mod toy;
