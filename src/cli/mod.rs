//! The command line: one file per command; only this layer prints.

mod bench;
mod build;
mod doctor;
mod eval;
mod experiment;
mod figure;
mod grad;
mod gradcheck;
mod init;
mod inspect;
mod ops;
mod page;
mod report;
mod sharpness;
mod train;
mod verify;

use crate::data::{Spec, TextOptions};
use crate::engine::{CudaOptions, Device, Engine};
use crate::error::{Error, Result};
use crate::step::{Ascent, Base, Kernels, Precision, Preset, StepOptions};
use crate::train::Recipe;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Trains any exported ONNX model with sharpness-aware optimizers.
#[derive(Debug, Parser)]
#[command(name = "bisam", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Where graphs run: cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "cpu")]
    device: Device,
    /// Threads of ONNX Runtime's pool (default: as many as the process may use)
    #[arg(long, global = true, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    /// The ONNX Runtime library to load
    #[arg(long, global = true, value_name = "PATH")]
    ort: Option<PathBuf>,
    /// On CUDA, let convolutions and matrix products round their factors to TF32: faster, 10 bits instead of 23
    #[arg(long, global = true)]
    tf32: bool,
    /// On CUDA, how the stages of a step run [default: on]
    #[arg(long, global = true, value_name = "on|off")]
    cuda_graph: Option<Switch>,
    /// Print results and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print more
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Print one JSON document on stdout
    #[arg(long, global = true)]
    json: bool,
}

/// Whether stages are captured as CUDA graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    /// Captured once, then replayed.
    On,
    /// Kernels are started one by one.
    Off,
}

impl Global {
    /// The engine that the flags ask for.
    ///
    /// # Errors
    /// A device or library that cannot be had, or flags of another device.
    pub fn engine(&self) -> Result<Engine> {
        if self.device == Device::Cpu && (self.tf32 || self.cuda_graph.is_some()) {
            return Err(
                Error::new("--tf32 and --cuda-graph are about CUDA").hint("add --device cuda, or leave them out")
            );
        }
        let mut engine = Engine::new(self.ort.as_deref(), self.threads, self.device)?;
        engine.cuda = CudaOptions { tf32: self.tf32, graphs: self.cuda_graph != Some(Switch::Off) };
        Ok(engine)
    }

    /// Says something worth knowing on stderr, unless asked to be quiet.
    fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("note: {text}");
        }
    }

    /// Prints a report to stdout.
    ///
    /// # Errors
    /// As [`write_out`].
    fn print(&self, value: &serde_json::Value, text: &str) -> Result<()> {
        write_out(&if self.json { format!("{value}\n") } else { format!("{text}\n") })
    }
}

/// Writes to stdout. A reader that has seen enough, such as `head`, is no error.
///
/// # Errors
/// An I/O error, such as a full disk.
fn write_out(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::new(format!("stdout: {e}"))),
        _ => Ok(()),
    }
}

/// How tables of text are read.
#[derive(Debug, Default, Args)]
pub struct TextArgs {
    /// Column of the text, or two of a pair of texts; numbers, counted from 1, where the file has no header
    #[arg(long, value_name = "COLUMN[,COLUMN]", value_delimiter = ',')]
    text: Vec<String>,
    /// Column of the label
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// The tokenizer.json that belongs to the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The most tokens of a text or pair, special tokens included: longer ones are cut [default: 128]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_length: Option<usize>,
}

impl TextArgs {
    /// The settings with those of the flags that are given.
    fn apply(&self, settings: Option<TextOptions>) -> Option<TextOptions> {
        let given =
            !self.text.is_empty() || self.label.is_some() || self.tokenizer.is_some() || self.max_length.is_some();
        let mut text = if given { settings.unwrap_or_default() } else { return settings };
        if !self.text.is_empty() {
            text.text.clone_from(&self.text);
        }
        if let Some(label) = &self.label {
            text.label.clone_from(label);
        }
        if let Some(tokenizer) = &self.tokenizer {
            text.tokenizer.clone_from(tokenizer);
        }
        text.max_length = self.max_length.unwrap_or(text.max_length);
        Some(text)
    }
}

/// A number of threads or samples.
fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "a number from 1 on is needed".to_owned())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a model is, what a step costs, and what stands in the way of training
    Inspect(inspect::Args),
    /// Train a model
    Train(Box<train::Args>),
    /// Run a set of recipes over several seeds and tabulate the results
    Experiment(experiment::Args),
    /// Accuracy and loss of a run or a model on a data set
    Eval(eval::Args),
    /// What perturbations of the weights do to a model: loss, error, flipped samples
    Sharpness(sharpness::Args),
    /// Write an HTML report about a run, or one that compares several
    Report(report::Args),
    /// Draw a figure of the methods
    Figure(figure::Args),
    /// Compare tract and ONNX Runtime on a model
    Verify(verify::Args),
    /// Write the gradient of a loss to an npz file
    Grad(grad::Args),
    /// Compare the gradient with central differences
    Gradcheck(gradcheck::Args),
    /// Write the stages of a training step as ONNX files
    Build(build::Args),
    /// Write a model with fresh weights
    Init(init::Args),
    /// Time a training step
    Bench(bench::Args),
    /// List the operators whose gradient is known
    Ops(ops::Args),
    /// Say which ONNX Runtime is loaded and what is missing
    Doctor,
}

/// Runs a command.
///
/// # Errors
/// Whatever the command fails with.
pub fn run(cli: &Cli) -> Result<()> {
    let global = &cli.global;
    match &cli.command {
        Command::Inspect(args) => inspect::run(args, global),
        Command::Gradcheck(args) => gradcheck::run(args, global),
        Command::Train(args) => train::run(args, global),
        Command::Experiment(args) => experiment::run(args, global),
        Command::Eval(args) => eval::run(args, global),
        Command::Sharpness(args) => sharpness::run(args, global),
        Command::Report(args) => report::run(args, global),
        Command::Figure(args) => figure::run(args, global),
        Command::Verify(args) => verify::run(args, global),
        Command::Grad(args) => grad::run(args, global),
        Command::Build(args) => build::run(args, global),
        Command::Init(args) => init::run(args, global),
        Command::Bench(args) => bench::run(args, global),
        Command::Ops(args) => ops::run(args, global),
        Command::Doctor => doctor::run(global),
    }
}

/// Samples of a batch in evaluation, where nothing says how many.
const EVALUATION_BATCH: usize = 128;

/// The settings that a model is evaluated with: those of its training, from a recipe.toml beside it or in the folder above. Only the data
/// of the training are split as they were there; other data have the splits of their files.
///
/// # Errors
/// A damaged recipe, data of an unknown format, or no data.
fn evaluation_recipe(model: &Path, data: Option<&str>, text: &TextArgs, batch_size: Option<usize>) -> Result<Recipe> {
    let folders = model.parent().into_iter().flat_map(|f| [Some(f), f.parent()]).flatten();
    let beside = folders.map(|f| f.join("recipe.toml")).find(|f| f.exists());
    let trained = beside.as_ref().map(|f| Recipe::load(f)).transpose()?;
    let trained = trained.unwrap_or_else(|| Recipe { batch_size: EVALUATION_BATCH, ..Recipe::default() });
    let mut given = Recipe { data: data.unwrap_or(&trained.data).to_owned(), ..Recipe::default() };
    if given.data.is_empty() {
        let hint = "name them with --data FORMAT:PATH, such as --data cifar10:DIR; a run's folder knows its own";
        return Err(Error::new("no data are given").in_file(model).hint(hint));
    }
    let spec: Spec = given.data.parse()?;
    let mut own = Recipe { data: trained.data.clone(), ..Recipe::default() };
    given.make_paths_absolute()?;
    own.make_paths_absolute()?;
    let same = given.data == own.data;
    Ok(Recipe {
        data: data.unwrap_or(&trained.data).to_owned(),
        batch_size: batch_size.unwrap_or(trained.batch_size),
        text: text.apply(trained.text.filter(|_| spec.is_text())),
        normalization: trained.normalization,
        output: trained.output,
        classes: trained.classes,
        skip_damaged: trained.skip_damaged,
        loss: trained.loss,
        step: trained.step,
        valid: if same { trained.valid } else { 0.0 },
        train_samples: trained.train_samples.filter(|_| same),
        seed: trained.seed,
        ..Recipe::default()
    })
}

/// The axes of a step, each overriding the preset.
#[derive(Debug, Default, Args)]
pub struct StepArgs {
    /// Named combination of the axes below
    #[arg(long, value_name = "PRESET", value_parser = PossibleValuesParser::new(Preset::ALL.map(|(_, name)| name)))]
    optimizer: Option<String>,
    /// What the perturbation ascends
    #[arg(long)]
    ascent: Option<Ascent>,
    /// Sharpness μ of the bound
    #[arg(long)]
    mu: Option<f32>,
    /// Slope α of the tanh bound
    #[arg(long)]
    alpha: Option<f32>,
    /// Norm of the perturbation
    #[arg(long)]
    rho: Option<f32>,
    /// Perturb in the adaptive metric
    #[arg(long)]
    adaptive: bool,
    /// η of the adaptive metric
    #[arg(long)]
    eta: Option<f32>,
    /// The adaptive metric on biases and gains too
    #[arg(long)]
    adaptive_all: bool,
    /// Samples of a micro-batch, each with a perturbation of its own (mSAM); without a perturbation, gradient accumulation
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Keep the N samples of highest loss only (K-SAM)
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Share of the samples that the descent sees: those whose loss the perturbation raises most (SDS of ESAM)
    #[arg(long, value_name = "SHARE")]
    sds_gamma: Option<f32>,
    /// Share of the parameter tensors that a perturbation moves (SWP of ESAM)
    #[arg(long, value_name = "SHARE")]
    swp_beta: Option<f32>,
    /// Weight of the surrogate gap (GSAM)
    #[arg(long, value_name = "ALPHA")]
    gsam_alpha: Option<f32>,
    /// Steps from one perturbation to the next (LookSAM)
    #[arg(long, value_name = "STEPS")]
    period: Option<usize>,
    /// Weight of the direction that steps between perturbations reuse
    #[arg(long, value_name = "ALPHA")]
    look_alpha: Option<f32>,
    /// Size of the noise that the ascent starts from, relative to each filter (R-SAM)
    #[arg(long, value_name = "SIGMA")]
    start_sigma: Option<f32>,
    /// Optimizer below the perturbation
    #[arg(long)]
    base: Option<Base>,
    /// Momentum of SGD
    #[arg(long)]
    momentum: Option<f32>,
    /// Nesterov momentum
    #[arg(long)]
    nesterov: bool,
    /// Weight decay
    #[arg(long)]
    weight_decay: Option<f32>,
    /// First moment decay of AdamW
    #[arg(long)]
    beta1: Option<f32>,
    /// Second moment decay of AdamW
    #[arg(long)]
    beta2: Option<f32>,
    /// Denominator offset of AdamW
    #[arg(long)]
    eps: Option<f32>,
    /// Damping of bSAM's precisions
    #[arg(long)]
    damping: Option<f32>,
    /// bSAM's precisions before the first step
    #[arg(long, value_name = "S")]
    initial_precision: Option<f32>,
    /// Label smoothing of the descent loss
    #[arg(long)]
    label_smoothing: Option<f32>,
    /// Largest norm of the gradient
    #[arg(long)]
    clip_norm: Option<f32>,
    /// Operators of the gradient: fused has kernels of its own, plain is standard ONNX [default: fused]
    #[arg(long)]
    kernels: Option<Kernels>,
    /// Round the factors of convolutions and matrix products: bf16 on CUDA; weights, sums and updates stay f32 [default: f32]
    #[arg(long)]
    precision: Option<Precision>,
    /// Compute the outputs of normalizations and activations again in the backward pass instead of keeping them: less memory,
    /// a little slower, the same numbers
    #[arg(long)]
    recompute: bool,
}

impl StepArgs {
    /// Applies the flags to `options`.
    ///
    /// # Errors
    /// A name that is not known, or settings that do not go together.
    fn apply(&self, options: &mut StepOptions) -> Result<()> {
        if let Some(name) = &self.optimizer {
            let StepOptions { label_smoothing, kernels, precision, recompute, .. } = *options;
            let preset = name.parse::<Preset>()?.options();
            *options = StepOptions { label_smoothing, kernels, precision, recompute, ..preset };
        }
        options.kernels = self.kernels.unwrap_or(options.kernels);
        options.precision = self.precision.unwrap_or(options.precision);
        options.choose(self.ascent, self.base);
        let numbers = [
            (self.mu, &mut options.mu),
            (self.alpha, &mut options.alpha),
            (self.rho, &mut options.rho),
            (self.eta, &mut options.eta),
            (self.sds_gamma, &mut options.sds_gamma),
            (self.swp_beta, &mut options.swp_beta),
            (self.gsam_alpha, &mut options.gsam_alpha),
            (self.look_alpha, &mut options.look_alpha),
            (self.start_sigma, &mut options.start_sigma),
            (self.damping, &mut options.damping),
            (self.initial_precision, &mut options.initial_precision),
            (self.momentum, &mut options.momentum),
            (self.weight_decay, &mut options.weight_decay),
            (self.beta1, &mut options.beta1),
            (self.beta2, &mut options.beta2),
            (self.eps, &mut options.eps),
            (self.label_smoothing, &mut options.label_smoothing),
        ];
        for (given, setting) in numbers {
            if let Some(v) = given {
                *setting = v;
            }
        }
        options.adaptive |= self.adaptive | self.adaptive_all;
        options.adaptive_all |= self.adaptive_all;
        options.micro_batch = self.micro_batch.or(options.micro_batch);
        options.top_k = self.top_k.or(options.top_k);
        options.period = self.period.unwrap_or(options.period);
        options.nesterov |= self.nesterov;
        options.recompute |= self.recompute;
        if self.clip_norm.is_some() {
            options.clip_norm = self.clip_norm;
        }
        options.validate()
    }
}
