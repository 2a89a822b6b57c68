//! The `obelysk` command.
fn main() {}
