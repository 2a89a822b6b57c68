//! forged_statement
