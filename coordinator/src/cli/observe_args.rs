//! Arguments of the commands that show what a cluster does: `status`, `top`, `job`.

use super::cluster_args::AdminArgs;
use super::exit::EXIT_CODES;
use clap::{Args, Subcommand};

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct StatusArgs {
    /// Who asks.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct TopArgs {
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=5))]
    pub interval: u64,
    /// Stop after this many looks [default: when told to].
    #[arg(long)]
    pub count: Option<u64>,
    /// Who asks.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Commands on jobs.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Show jobs: those in progress and those that ended lately.
    #[command(after_help = EXIT_CODES)]
    List {
        /// All that are remembered, not only the last twenty that ended.
        #[arg(long)]
        all: bool,
        /// Who asks.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Show one job: how far it is, every piece of it, and who made what.
    #[command(after_help = EXIT_CODES)]
    Show {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Who asks.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Give a job up.
    #[command(after_help = EXIT_CODES)]
    Cancel {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Show what happened to a job, event by event.
    #[command(after_help = EXIT_CODES)]
    Logs {
        /// Its id, or a beginning of it that only it has.
        id: String,
        /// Go on until the job ends.
        #[arg(long, short)]
        follow: bool,
        /// Who asks.
        #[command(flatten)]
        admin: AdminArgs,
    },
}
