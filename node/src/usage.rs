//! What this process has used: processor time of all its threads, and its largest memory.

use std::time::Duration;

/// Processor time of all threads of this process so far.
#[must_use]
pub fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Processor time so far of all threads of another process; zero when it has ended, or where the system does not tell.
#[must_use]
pub fn cpu_time_of(process: u32) -> Duration {
    std::fs::read_to_string(format!("/proc/{process}/stat")).ok().and_then(|stat| ticks(&stat)).unwrap_or_default()
}

/// Linux counts in hundredths of a second wherever programs can see it (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Fields 14 and 15 of proc_pid_stat(5), counted from 1; the name before them may hold spaces and brackets.
fn ticks(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis(user.checked_add(system)?.checked_mul(1000 / TICKS_PER_SECOND)?))
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
        let stat = "7 (a) b) S 1 7 7 0 -1 4 10 20 0 0 130 14 11 12 20 0 1 0 5\n";
        assert_eq!(ticks(stat), Some(Duration::from_millis(1440)));
        assert_eq!(cpu_time_of(u32::MAX), Duration::ZERO);
        assert_eq!(ticks("7 (a) S 1"), None);
        assert_eq!(high_water("VmPeak:\t 1 kB\nVmHWM:\t   2048 kB\n"), Some(2 << 20));
        assert_eq!(high_water("VmPeak:\t 1 kB\n"), None);
    }
}
