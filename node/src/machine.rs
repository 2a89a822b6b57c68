//! What this machine has: memory in all and free, as far as this process may use it.

use std::fs::read_to_string;

/// Bytes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it; 0 where the system does not tell.
    pub total: u64,
    /// What a process can have now without anything being swapped out.
    pub free: u64,
}

/// This machine's memory, or what the container this process runs in may use of it.
#[must_use]
pub fn memory() -> Memory {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| from_meminfo(&text)).unwrap_or_default();
    let number = |name: &str| read_to_string(format!("/sys/fs/cgroup/{name}")).ok().and_then(|text| text.trim().parse().ok());
    match (number("memory.max"), number("memory.current")) {
        (Some(limit), used) => within(machine, limit, used.unwrap_or(0)),
        _ => machine,
    }
}

fn from_meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = field("MemTotal")?;
    Some(Memory { total, free: field("MemAvailable").unwrap_or(0).min(total) })
}

fn within(machine: Memory, limit: u64, used: u64) -> Memory {
    let total = if machine.total == 0 { limit } else { machine.total.min(limit) };
    let left = limit.saturating_sub(used);
    Memory { total, free: if machine.total == 0 { left } else { machine.free.min(left) }.min(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_machine_and_container_counts() {
        let machine = from_meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n").expect("read");
        assert_eq!(machine, Memory { total: 2 << 20, free: 1 << 20 });
        assert_eq!(within(machine, 1 << 20, 1 << 19), Memory { total: 1 << 20, free: 1 << 19 });
        assert_eq!(within(machine, 1 << 40, 0), machine);
        assert_eq!(from_meminfo("MemTotal: lots\n"), None);
        let here = memory();
        assert!(here.free <= here.total, "{here:?}");
    }
}
