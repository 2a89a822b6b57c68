//! Runs of segments on machines of different speeds, so that the slowest is done as early as possible. Pure, in integers.

/// One machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// Work per time; at least 1 counts.
    pub(super) speed: u64,
    /// Memory; 0 when it is not known, which is taken for enough.
    pub(super) memory: u64,
}

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// Work.
    pub(super) cost: u64,
    /// Memory needed; 0 when it is not known.
    pub(super) memory: u64,
}

/// Whether a machine holds a segment.
pub(super) const fn holds(machine: Machine, load: Load) -> bool {
    machine.memory == 0 || load.memory <= machine.memory
}

/// Gives each segment a machine: contiguous runs in the order of the machines, the slowest finishing as early as that order allows (linear
/// partition by bisection). A segment that a machine cannot hold ends its run; one that no later machine holds goes to the fastest
/// that does, and to nobody (`None`) when there is none.
pub(super) fn partition(loads: &[Load], machines: &[Machine]) -> Vec<Option<usize>> {
    let total = loads.iter().map(|load| u128::from(load.cost)).sum::<u128>();
    // Time in units of 1/2^20, so that small costs on fast machines do not vanish.
    let (mut low, mut high) = (0, (total << 20).max(1));
    while low < high {
        let middle = low + (high - low) / 2;
        if runs(loads, machines, middle).iter().all(Option::is_some) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let mut homes = runs(loads, machines, high);
    for (home, load) in homes.iter_mut().zip(loads).filter(|(home, _)| home.is_none()) {
        let able = machines.iter().enumerate().filter(|(_, machine)| holds(**machine, *load));
        *home = able.max_by_key(|(i, machine)| (machine.speed, usize::MAX - i)).map(|(i, _)| i);
    }
    homes
}

/// Runs in which nobody needs longer than `most`; what is left over is `None`.
fn runs(loads: &[Load], machines: &[Machine], most: u128) -> Vec<Option<usize>> {
    let mut homes = vec![None; loads.len()];
    let mut next = 0;
    for (i, machine) in machines.iter().enumerate() {
        // Beyond what all loads together need there is no difference.
        let room = most.saturating_mul(u128::from(machine.speed.max(1)));
        let mut used: u128 = 0;
        while let Some(load) = loads.get(next) {
            used += u128::from(load.cost) << 20;
            if used > room || !holds(*machine, *load) {
                break;
            }
            homes[next] = Some(i);
            next += 1;
        }
    }
    homes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(costs: &[u64]) -> Vec<Load> {
        costs.iter().map(|&cost| Load { cost, memory: 0 }).collect()
    }

    fn machines(speeds: &[u64]) -> Vec<Machine> {
        speeds.iter().map(|&speed| Machine { speed, memory: 0 }).collect()
    }

    /// Slowest finish, as a fraction.
    fn finish(loads: &[Load], machines: &[Machine], homes: &[Option<usize>]) -> f64 {
        let of = |i: usize| loads.iter().zip(homes).filter(|(_, h)| **h == Some(i)).map(|(l, _)| l.cost).sum::<u64>();
        machines.iter().enumerate().map(|(i, m)| of(i) as f64 / m.speed as f64).fold(0.0, f64::max)
    }

    /// All ways to cut the list, for comparison.
    fn best(loads: &[Load], machines: &[Machine]) -> f64 {
        fn rest(loads: &[Load], machines: &[Machine], from: usize, i: usize) -> f64 {
            if i + 1 == machines.len() {
                return loads[from..].iter().map(|l| l.cost).sum::<u64>() as f64 / machines[i].speed as f64;
            }
            let own = |to: usize| loads[from..to].iter().map(|l| l.cost).sum::<u64>() as f64 / machines[i].speed as f64;
            (from..=loads.len()).map(|to| own(to).max(rest(loads, machines, to, i + 1))).fold(f64::INFINITY, f64::min)
        }
        rest(loads, machines, 0, 0)
    }

    #[test]
    fn runs_are_contiguous_and_the_slowest_is_as_early_as_can_be() {
        let mut state = 7_u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..300 {
            let l = loads(&(0..1 + next(7)).map(|_| 1 + next(50)).collect::<Vec<_>>());
            let m = machines(&(0..1 + next(3)).map(|_| 1 + next(20)).collect::<Vec<_>>());
            let homes = partition(&l, &m);
            assert!(homes.iter().all(Option::is_some) && homes.is_sorted(), "{l:?} {m:?} {homes:?}");
            let (ours, best) = (finish(&l, &m, &homes), best(&l, &m));
            assert!(ours <= best * 1.000_01, "{l:?} {m:?}: {ours} where {best} is possible");
        }
    }

    #[test]
    fn a_slow_machine_gets_little_and_a_small_one_nothing_too_large() {
        let homes = partition(&loads(&[10; 21]), &machines(&[20, 1]));
        assert_eq!(homes.iter().filter(|h| **h == Some(1)).count(), 1);
        let mut l = loads(&[10; 4]);
        l[2].memory = 100;
        let m = [Machine { speed: 10, memory: 50 }, Machine { speed: 1, memory: 200 }];
        assert_eq!(partition(&l, &m)[2], Some(1));
        assert_eq!(partition(&l, &[m[0]])[2], None);
        assert!(partition(&[], &m).is_empty());
        assert_eq!(partition(&loads(&[0, 0]), &machines(&[1, 1])), [Some(0), Some(0)]);
        let huge = partition(&loads(&[u64::MAX; 3]), &machines(&[u64::MAX, 1]));
        assert!(huge.iter().all(Option::is_some));
    }
}
