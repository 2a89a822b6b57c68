//! What this process has used: processor time of all its threads, and its largest memory.

use std::time::Duration;

/// Processor time of all threads of this process so far.
#[must_use]
pub fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Largest resident memory of this process so far; 0 where the system does not tell.
#[must_use]
pub fn peak_memory_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|status| high_water(&status)).unwrap_or(0)
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_memory_grow() {
        let before = cpu_time();
        let sum = std::hint::black_box((0..5_000_000u64).fold(0, |a, b| a ^ b.wrapping_mul(3)));
        assert!(cpu_time() > before, "{sum}");
        assert_eq!(high_water("VmPeak:\t 1 kB\nVmHWM:\t   2048 kB\n"), Some(2 << 20));
        assert_eq!(high_water("VmPeak:\t 1 kB\n"), None);
    }
}
