//! Arguments of the commands on clusters: coordinators, tokens, nodes.

use super::exit::EXIT_CODES;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Commands on coordinators.
#[derive(Debug, Subcommand)]
pub enum CoordinatorCommand {
    /// Serve nodes and clients until interrupted.
    Serve(ServeArgs),
    /// Become one of several coordinators of a cluster, and serve. Started again with `coordinator serve`, or with this.
    Join(CoordinatorJoinArgs),
    /// Show the coordinators of a cluster, and which of them leads.
    #[command(after_help = EXIT_CODES)]
    Members {
        /// Whose question.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Take a coordinator out, for good: its folder does not return.
    #[command(after_help = EXIT_CODES)]
    Remove {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// List results of nodes that were not accepted, or judge one of them again.
    #[command(after_help = EXIT_CODES)]
    Evidence(EvidenceArgs),
    /// Let another coordinator lead.
    #[command(after_help = EXIT_CODES)]
    Transfer {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Arguments of `coordinator evidence`.
#[derive(Debug, Args)]
pub struct EvidenceArgs {
    /// The coordinator's folder [default: `coordinator` in the home folder].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Judge this case again, with the model's own registration.
    #[arg(long, value_name = "CASE", requires = "model")]
    pub judge: Option<PathBuf>,
    /// Registered name or folder of the case's model.
    #[arg(long)]
    pub model: Option<String>,
}

/// Arguments of `coordinator join`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct CoordinatorJoinArgs {
    /// Whose order: a copy of the administrator's file of the cluster. Not needed by a coordinator that has joined.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Arguments of `coordinator serve`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ServeArgs {
    /// Settings file, as configs/coordinator.toml.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// UDP address to listen on.
    #[arg(long)]
    pub listen: Option<std::net::SocketAddr>,
    /// Host name or address written into tokens and printed for clients.
    #[arg(long)]
    pub advertise: Option<String>,
    /// UDP address for other coordinators; without one this coordinator is alone.
    #[arg(long, value_name = "ADDRESS")]
    pub peer_listen: Option<std::net::SocketAddr>,
    /// Folder for the ledger of jobs, tokens and members, and for blobs [default: `coordinator` in the home folder].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where blobs lie: a folder, or `s3://BUCKET/PREFIX` with the key in the environment [default: in the folder of --state].
    #[arg(long, value_name = "PLACE")]
    pub store: Option<String>,
    /// Models to take jobs for: folders or registered names [default: all registered].
    #[arg(long)]
    pub model: Vec<String>,
    /// TCP address for metrics in the Prometheus format, or `none` [default: 127.0.0.1:7451].
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<String>,
}

/// Who gives an order to a coordinator.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The administrator's file that `coordinator serve` wrote [default: `coordinator/admin.toml` in the home folder].
    #[arg(long, value_name = "FILE")]
    pub admin: Option<PathBuf>,
}

/// Commands on tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print the whole command for the new machine.
    #[command(after_help = EXIT_CODES)]
    Create(TokenArgs),
    /// Show all tokens: none of their secrets, which nobody keeps.
    #[command(after_help = EXIT_CODES)]
    List {
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Let nobody in by this token any more.
    #[command(after_help = EXIT_CODES)]
    Revoke {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Arguments of `token create`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// How long it serves: a number with s, m, h or d.
    #[arg(long, default_value = "1h", value_parser = parse_seconds)]
    pub ttl: u64,
    /// How many machines it lets in.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub uses: u32,
    /// Where the new machine reaches a coordinator, `host:port`, several times for several [default: what the coordinator calls itself].
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Vec<String>,
    /// Whose order.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Commands on nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Join a cluster, or come back to it, and work until it stops or this process is asked to.
    Join(JoinArgs),
    /// Show the nodes of a cluster.
    #[command(after_help = EXIT_CODES)]
    List {
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Let a node finish what it runs, and leave.
    #[command(after_help = EXIT_CODES)]
    Drain {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Put a node out, now and for good.
    #[command(after_help = EXIT_CODES)]
    Evict {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Why, for the log and the node.
        #[arg(long, default_value = "an administrator's decision")]
        reason: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Check what joining needs: token, identity, reachability, path, clock, release, disk, memory. Changes nothing.
    #[command(after_help = EXIT_CODES)]
    Doctor(DoctorArgs),
}

/// Arguments of `node join`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct JoinArgs {
    /// The token, or - to read it from standard input; other users of this machine can see it here. Not needed by a member.
    pub token: Option<String>,
    /// File with the token [default: the token in $OBELYSK_TOKEN].
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Settings file, as configs/node.toml.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Name shown in logs and progress; nodes of one machine need different ones.
    #[arg(long)]
    pub name: Option<String>,
    /// Folder for this node's identity [default: `nodes/NAME` in the home folder].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Threads to use; 0 means all of this machine.
    #[arg(long)]
    pub threads: Option<u32>,
    /// What to compute on.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Models to offer: folders or registered names [default: all registered].
    #[arg(long)]
    pub model: Vec<String>,
    /// Bytes that models fetched from the coordinator may take on this disk; 0 fetches none. Nothing is fetched with --model.
    #[arg(long, value_name = "BYTES")]
    pub fetch_models: Option<u64>,
    /// Give up after this many seconds without a coordinator; 0 means never.
    #[arg(long, value_name = "SECONDS")]
    pub give_up_after: Option<u64>,
    /// TCP address for metrics in the Prometheus format [default: none].
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<String>,
    /// Leave when there was nothing to do for this long: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub exit_when_idle: Option<u64>,
    /// Shell command that exits with 0 when this machine is about to be taken away; asked every five seconds.
    #[arg(long, value_name = "CMD")]
    pub preempt_hook: Option<String>,
    /// Time from that notice to the end: what takes longer is given back at once [default: 20s].
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub preempt_grace: Option<u64>,
    /// For nodes started by a parent process: end when standard input is closed, and keep no identity.
    #[arg(long, hide = true)]
    pub tied: bool,
}

/// What to compute on.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// cpu, or cuda:N for the card of that number; what a card cannot do is done on the CPU, and logged [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Fail what the card cannot do instead.
    #[arg(long, requires = "device")]
    pub gpu_only: bool,
}

/// Arguments of `node doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The token to check, or - to read it from standard input.
    pub token: Option<String>,
    /// File with the token [default: the token in $OBELYSK_TOKEN].
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Name of the node whose identity is checked.
    #[arg(long, default_value = "node")]
    pub name: String,
    /// Folder of that identity [default: `nodes/NAME` in the home folder].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Models whose needs are held against this machine's memory [default: all registered].
    #[arg(long)]
    pub model: Vec<String>,
    /// The device that joining would be told to use: cpu, or cuda:N [default: cpu; cards are looked at all the same].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

/// Reads a duration such as `90s`, `10m`, `1h` or `2d`.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let bad = || "give a number with s, m, h or d, for example 1h".to_owned();
    let unit = match text.chars().last().ok_or_else(bad)? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    number.checked_mul(unit).filter(|s| *s > 0).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::parse_seconds;

    #[test]
    fn durations_are_read_or_refused() {
        assert_eq!([parse_seconds("90s"), parse_seconds("10m"), parse_seconds("2d")], [Ok(90), Ok(600), Ok(172_800)]);
        for text in ["", "1", "h", "0s", "-1h", "1.5h", "99999999999999999999d", "18446744073709551615d", "1é"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
