//! Prints how fast int8 weights are folded by each kind of instructions, beside a plain read of the same memory, on one
//! thread and on two: `fold [MEBIBYTES]`. Rates are per second of processor time, and per second of wall time.
use obelysk_shard::ceilings::fold_rates;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Memory read by default: more than the caches of a server hold.
const MEBIBYTES: usize = 1024;

fn time(clock: ClockId) -> Duration {
    let t = clock_gettime(clock);
    Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_nanos(t.tv_nsec.unsigned_abs())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mebibytes: usize = std::env::args().nth(1).map_or(Ok(MEBIBYTES), |a| a.parse())?;
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        for (name, clock) in [("processor", ClockId::ProcessCPUTime), ("wall", ClockId::Monotonic)] {
            let rates = pool.install(|| fold_rates(mebibytes << 20, &|| time(clock)));
            println!("{threads} threads, {name} time: read {:.2} GB/s", rates.stream / 1e9);
            for p in rates.paths {
                let [combine, partials] = [p.combine, p.partials].map(|r| (r / 1e9, 100.0 * r / rates.stream));
                println!(
                    "  {:12} combine {:6.2} G weights/s ({:3.0} % of the read), partials {:6.2} ({:3.0} %)",
                    p.path, combine.0, combine.1, partials.0, partials.1
                );
            }
        }
    }
    Ok(())
}
