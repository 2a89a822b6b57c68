//! carried
