//! The way to each coordinator: who answers, the largest packet, the clock, the release.

use super::{Check, Outcome};
use obelysk_coordinator::identity::MAX_SKEW_S;
use obelysk_node::CoordinatorAddress;
use obelysk_node::error::TransportError;
use obelysk_node::identity::{ClusterId, Id, LEAST_MTU, Survey, survey, unix_now};

/// Looks at every address. One that does not answer is a failure only when none does.
pub async fn all(places: &[CoordinatorAddress], cluster: Option<ClusterId>) -> Vec<Check> {
    let (mut checks, mut silent, mut reached) = (Vec::new(), Vec::new(), false);
    for place in places {
        let name = format!("{}:{}", place.host, place.port);
        match survey(place).await {
            Ok(found) => {
                reached = true;
                checks.push(Check::passed(format!("reach {name}"), "answers, under the pinned authority"));
                checks.push(packets(&name, &found));
                checks.extend(agreement(&found, cluster));
            }
            Err(error) => silent.push(unreachable(&name, &error)),
        }
    }
    if reached {
        silent.iter_mut().for_each(|check| check.outcome = Outcome::Warned);
    }
    checks.extend(silent);
    checks
}

fn unreachable(name: &str, error: &TransportError) -> Check {
    let remedy = match error {
        TransportError::Timeout(_) | TransportError::Lost(_) => {
            "check that the coordinator runs, and that UDP (not TCP) to this port passes every firewall, security group and NAT between"
        }
        TransportError::Resolve { .. } => "check the name, or make a token with `--address` and an IP address",
        TransportError::WrongKey { .. } => {
            "use a token of the cluster that answers there; if it is that one, somebody stands between"
        }
        TransportError::NoCommonVersion => "install the coordinator's release on this machine",
        TransportError::Clock(_) => "set this machine's clock, for example by NTP",
        _ => "see the coordinator's log",
    };
    Check::failed(format!("reach {name}"), error, remedy)
}

fn packets(name: &str, found: &Survey) -> Check {
    let detail = format!("{} bytes in one packet, round trip {:.1} ms", found.mtu, found.rtt.as_secs_f64() * 1e3);
    if found.mtu <= LEAST_MTU && found.lost_probes > 0 {
        let remedy = "larger packets vanish without a word on the way (a tunnel or VPN?): transfers work, slower; raise the MTU there or \
                      let ICMP through";
        return Check::warned(format!("path {name}"), detail, remedy);
    }
    Check::passed(format!("path {name}"), detail)
}

fn agreement(found: &Survey, cluster: Option<ClusterId>) -> [Check; 3] {
    let theirs = Id(found.probed.cluster);
    let same = if cluster == Some(theirs) {
        Check::passed("cluster", theirs)
    } else {
        Check::failed("cluster", format_args!("{theirs}, not the one expected"), "use a token of this cluster")
    };
    let skew = unix_now().abs_diff(found.probed.unix_s);
    let detail = format!("{skew} s from the coordinator's, at most {MAX_SKEW_S} are allowed");
    let remedy = "set this machine's clock, for example by NTP";
    let clock = match skew {
        s if s > MAX_SKEW_S => Check::failed("clock", detail, remedy),
        s if s > MAX_SKEW_S / 2 => Check::warned("clock", detail, remedy),
        _ => Check::passed("clock", detail),
    };
    let ours = env!("CARGO_PKG_VERSION");
    let detail = format!("{ours} here, {} there", found.probed.release);
    let release = if found.probed.release == ours {
        Check::passed("release", detail)
    } else {
        Check::failed("release", detail, "install the coordinator's release on this machine; coordinators are upgraded first")
    };
    [same, clock, release]
}
