//! Machines on one machine: a namespace each, all plugged into one switch by a cable that can be pulled, blocked or slowed down.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The switch and the machines; gone when dropped.
pub struct Lab {
    tag: String,
    machines: u32,
}

/// One machine of a lab, numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine(pub u32);

/// Labs of this process so far: tests run side by side and must not share names.
static LABS: AtomicU32 = AtomicU32::new(0);

fn ip(args: &[&str]) -> bool {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Lab {
    /// A lab of so many machines; `None`, said aloud, where namespaces cannot be made.
    pub fn open(machines: u32) -> Option<Self> {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Self { tag: format!("obk{}x{number}", std::process::id()), machines };
        if !ip(&["netns", "add", &lab.switch()]) {
            eprintln!("SKIPPED: network namespaces need root and iproute2, and one of them is missing here");
            return None;
        }
        let built = ip(&["-n", &lab.switch(), "link", "add", "bridge", "type", "bridge"])
            && ip(&["-n", &lab.switch(), "link", "set", "bridge", "up"])
            && (1..=machines).all(|i| lab.plug_in(Machine(i)));
        assert!(built, "a namespace could be made, but no bridge with cables in it");
        Some(lab)
    }

    fn switch(&self) -> String {
        format!("{}s", self.tag)
    }

    /// The namespace of a machine.
    pub fn namespace(&self, machine: Machine) -> String {
        format!("{}m{}", self.tag, machine.0)
    }

    /// The address of a machine.
    pub fn address(machine: Machine) -> String {
        format!("10.77.0.{}", machine.0)
    }

    fn plug_in(&self, machine: Machine) -> bool {
        let (switch, namespace, port) = (self.switch(), self.namespace(machine), port(machine));
        let address = format!("{}/24", Self::address(machine));
        ip(&["netns", "add", &namespace])
            && ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "cable", "netns", &namespace])
            && ip(&["-n", &switch, "link", "set", &port, "master", "bridge"])
            && ip(&["-n", &switch, "link", "set", &port, "up"])
            && ip(&["-n", &namespace, "address", "add", &address, "dev", "cable"])
            && ip(&["-n", &namespace, "link", "set", "lo", "up"])
            && ip(&["-n", &namespace, "link", "set", "cable", "up"])
    }

    /// Pulls a machine's cable at the switch, or plugs it in again.
    pub fn cable(&self, machine: Machine, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        assert!(ip(&["-n", &self.switch(), "link", "set", &port(machine), state]), "the cable's state changes");
    }

    /// From now on, or no longer, whatever `from` sends to `to` is lost on the way; the other direction works.
    pub fn lose(&self, from: Machine, to: Machine, lost: bool) {
        let (namespace, target) = (self.namespace(from), format!("{}/32", Self::address(to)));
        let verb = if lost { "add" } else { "del" };
        assert!(ip(&["-n", &namespace, "route", verb, "blackhole", &target]), "the route changes");
    }

    /// What a machine sends gets through at this rate from now on, for example `2mbit`.
    pub fn slow_down(&self, machine: Machine, rate: &str) {
        let args = ["qdisc", "replace", "dev", "cable", "root", "tbf", "rate", rate, "burst", "32kb", "latency", "200ms"];
        let namespace = self.namespace(machine);
        assert!(run("tc", &[&["-n", namespace.as_str()], &args[..]].concat()), "the rate changes");
    }

    /// A command that runs on a machine. Its process is the command itself, so signals reach it.
    pub fn command(&self, machine: Machine, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine), program]);
        command
    }
}

/// The switch's end of a machine's cable.
fn port(machine: Machine) -> String {
    format!("port{}", machine.0)
}

impl Drop for Lab {
    fn drop(&mut self) {
        for i in 1..=self.machines {
            ip(&["netns", "del", &self.namespace(Machine(i))]);
        }
        ip(&["netns", "del", &self.switch()]);
    }
}
