//! A node process: owns a device, dials the coordinator, runs leased work.
