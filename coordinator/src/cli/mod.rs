//! The command line: arguments in, results on stdout, progress and logs on stderr, documented exit codes.
//!
//! Commands are thin: they find files, call the library and print. No switch weakens verification.

mod admin;
mod args;
mod bench;
mod cluster;
mod cluster_args;
mod council;
mod demo;
mod device;
mod doctor;
mod evidence;
mod exit;
mod generate;
mod home;
mod inspect;
mod job;
mod join;
mod manifest;
mod model;
mod observe;
mod observe_args;
#[cfg(feature = "otlp")]
mod otlp;
mod output;
mod pocket;
mod prompts;
mod prove;
mod register;
mod secret;
mod serve;
mod status;
mod top;
mod validate;
mod verify;

use args::{Cli, Command, CoordinatorCommand, LogFormat, NodeCommand};
use clap::Parser as _;
use exit::{Code, Failure};
use home::Home;
use output::Out;
use std::process::ExitCode;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Environment variable with the log filter, for example `debug` or `obelysk_node=trace`.
const LOG: &str = "OBELYSK_LOG";

/// Parses the arguments, runs the command and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    // clap ends the process with 2 for bad usage and 0 for help.
    let cli = Cli::parse();
    let long_running = matches!(
        cli.command,
        Command::Coordinator(CoordinatorCommand::Serve(_) | CoordinatorCommand::Join(_)) | Command::Node(NodeCommand::Join(_))
    );
    log_to_stderr(if long_running { "info" } else { "error" }, cli.log_format);
    let out = Out::new(cli.json);
    match run(&out, cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&out, &failure),
    }
}

fn run(out: &Out, cli: Cli) -> Result<(), Failure> {
    let home = Home::find(cli.home)?;
    match cli.command {
        Command::Demo(args) => demo::run(out, &home, &args),
        Command::Model(command) => model::run(out, &home, command),
        Command::Prove(args) => prove::run(out, &home, &args),
        Command::Generate(args) => generate::run(out, &home, &args),
        Command::Bench(args) => bench::run(out, &home, &args),
        Command::Verify(args) => verify::run(out, &home, &args),
        Command::Inspect(args) => inspect::run(out, &home, &args),
        Command::Coordinator(CoordinatorCommand::Serve(args)) => serve::run(out, &home, args),
        Command::Coordinator(CoordinatorCommand::Join(args)) => serve::join(out, &home, args),
        Command::Coordinator(CoordinatorCommand::Evidence(args)) => evidence::run(out, &home, &args),
        Command::Coordinator(CoordinatorCommand::Members { admin }) => council::members(out, &home, &admin),
        Command::Coordinator(CoordinatorCommand::Remove { id, admin }) => council::remove(out, &home, &id, &admin),
        Command::Coordinator(CoordinatorCommand::Transfer { id, admin }) => council::transfer(out, &home, &id, &admin),
        Command::Token(command) => admin::token(out, &home, command),
        Command::Node(NodeCommand::Join(args)) => join::run(out, &home, args),
        Command::Node(NodeCommand::List { admin }) => admin::nodes(out, &home, &admin),
        Command::Node(NodeCommand::Drain { id, admin }) => admin::part(out, &home, &id, None, &admin),
        Command::Node(NodeCommand::Evict { id, reason, admin }) => admin::part(out, &home, &id, Some(reason), &admin),
        Command::Node(NodeCommand::Doctor(args)) => doctor::run(out, &home, &args),
        Command::Status(args) => status::run(out, &home, &args),
        Command::Top(args) => top::run(out, &home, &args),
        Command::Job(command) => job::run(out, &home, command),
    }
}

fn report(out: &Out, failure: &Failure) -> ExitCode {
    // A rejection has been printed by its command; it is a result, not an accident.
    if failure.code != Code::Rejected {
        // Messages name their causes themselves; the chain would say them twice.
        let text = failure.error.to_string();
        out.error(&text);
        if out.json {
            out.json(&serde_json::json!({ "error": text, "exit_code": failure.code as u8 }));
        }
    }
    ExitCode::from(failure.code as u8)
}

fn log_to_stderr(default: &str, format: LogFormat) {
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new(format!("{default},quinn=error,rustls=error")));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    let subscriber = subscriber.with(otlp::layer());
    subscriber.init();
}
