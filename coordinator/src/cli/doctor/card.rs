//! Driver, run-time compiler and cards. A machine without any proves on its processors, so that only a device that was asked for
//! can fail.

use super::Check;
use crate::cli::output::size;
use obelysk_cuda::DeviceError;
use obelysk_cuda::card::compile::{OLDEST, target};
use obelysk_cuda::card::probe::{Found, Report};
use obelysk_node::DeviceChoice;

/// What to do where no card is asked for.
const OPTIONAL: &str = "nothing, if this node is to prove on its processors";

/// Looks at what there is, for `wanted`.
pub fn all(wanted: DeviceChoice, report: &Report) -> Vec<Check> {
    let asked = wanted != DeviceChoice::Cpu;
    let mut checks = Vec::new();
    match &report.driver {
        Ok(version) => checks.push(Check::passed("driver", format_args!("CUDA {}.{}", version / 1000, version % 1000 / 10))),
        Err(DeviceError::NoDriver) if !asked => {
            checks.push(Check::passed("driver", "no NVIDIA driver: this node proves on its processors"));
            return checks;
        }
        Err(DeviceError::NoDevice { .. }) if !asked => {
            checks.push(Check::passed("driver", "an NVIDIA driver without a card: this node proves on its processors"));
            return checks;
        }
        Err(error) => checks.push(problem(asked, "driver", error)),
    }
    match &report.compiler {
        Ok((major, minor)) => checks.push(Check::passed("nvrtc", format_args!("{major}.{minor}"))),
        Err(error) => checks.push(problem(asked, "nvrtc", error)),
    }
    checks.extend(report.cards.iter().enumerate().map(|(ordinal, card)| match card {
        Ok(card) => judge(card, wanted == DeviceChoice::Cuda(ordinal), report.compiler.is_ok()),
        Err(error) => problem(wanted == DeviceChoice::Cuda(ordinal), &format!("cuda:{ordinal}"), error),
    }));
    if let DeviceChoice::Cuda(ordinal) = wanted
        && report.driver.is_ok()
        && ordinal >= report.cards.len()
    {
        checks.push(problem(true, "device", &DeviceError::NoDevice { wanted: ordinal, found: report.cards.len() }));
    }
    checks
}

fn problem(asked: bool, name: &str, error: &DeviceError) -> Check {
    // What to do is the end of every message.
    if asked { Check::failed(name, error, "then look again") } else { Check::warned(name, error, OPTIONAL) }
}

fn judge(card: &Found, asked: bool, compiler: bool) -> Check {
    let name = format!("cuda:{}", card.ordinal);
    if card.architecture < OLDEST {
        let error = DeviceError::Architecture { name: card.name.clone(), found: card.architecture, needed: OLDEST };
        return problem(asked, &name, &error);
    }
    let (free, memory) = (size(card.free as u64), size(card.memory as u64));
    let mut detail = format!("{}, sm_{}, {free} of {memory} free", card.name, card.architecture);
    if compiler {
        match target(card.architecture) {
            Ok(target) => detail += &format!(", compiled for {target}"),
            Err(error) => return problem(asked, &name, &error),
        }
    }
    Check::passed(name, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Outcome;

    fn card(ordinal: usize, architecture: u32) -> Result<Found, DeviceError> {
        Ok(Found { ordinal, name: "some card".to_owned(), architecture, memory: 24 << 30, free: 20 << 30 })
    }

    fn outcomes(wanted: DeviceChoice, report: &Report) -> Vec<(String, Outcome)> {
        all(wanted, report).into_iter().map(|c| (c.name, c.outcome)).collect()
    }

    #[test]
    fn only_what_was_asked_for_fails() {
        let none = Report { driver: Err(DeviceError::NoDriver), compiler: Err(DeviceError::NoCompiler), cards: Vec::new() };
        let line = |name: &str, outcome| (name.to_owned(), outcome);
        assert_eq!(outcomes(DeviceChoice::Cpu, &none), [line("driver", Outcome::Passed)]);
        let failed = [line("driver", Outcome::Failed), line("nvrtc", Outcome::Failed)];
        assert_eq!(outcomes(DeviceChoice::Cuda(0), &none), failed);
        // Two cards, one of them too old, without a compiler.
        let two = Report { driver: Ok(12_080), compiler: Err(DeviceError::NoCompiler), cards: vec![card(0, 90), card(1, 61)] };
        let rest = |second| vec![line("cuda:0", Outcome::Passed), line("cuda:1", second)];
        let expected = |nvrtc, second| [vec![line("driver", Outcome::Passed), line("nvrtc", nvrtc)], rest(second)].concat();
        assert_eq!(outcomes(DeviceChoice::Cpu, &two), expected(Outcome::Warned, Outcome::Warned));
        assert_eq!(outcomes(DeviceChoice::Cuda(1), &two), expected(Outcome::Failed, Outcome::Failed));
        let mut beyond = expected(Outcome::Failed, Outcome::Warned);
        beyond.push(line("device", Outcome::Failed));
        assert_eq!(outcomes(DeviceChoice::Cuda(2), &two), beyond);
    }
}
