//! `bisam train`.

use super::{Global, StepArgs, TextArgs, at_least_one};
use crate::error::{Error, Result};
use crate::export::{Verdict, verify};
use crate::report;
use crate::train::schedule::{Schedule, Unit};
use crate::train::{EpochReport, Folder, Metric, Observer, Recipe, StepReport, Summary, train};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much tract and ONNX Runtime may differ, relative to the largest element where that is above 1.
const TOLERANCE: f64 = 1e-4;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The exported model
    #[arg(required_unless_present_any = ["recipe", "resume"])]
    model: Option<PathBuf>,
    /// Data as FORMAT:PATH (cifar10, cifar100, idx, images, npz; tsv, csv, jsonl)
    #[arg(long, value_name = "SPEC")]
    data: Option<String>,
    /// Settings from a TOML file; flags override it
    #[arg(long, value_name = "FILE.toml")]
    recipe: Option<PathBuf>,
    /// Go on where the run in this folder stopped; a finished one stays as it is, unless --epochs or --steps extend it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "output"])]
    resume: Option<PathBuf>,
    /// Folder for the results
    #[arg(short, long, value_name = "DIR", required_unless_present = "resume")]
    output: Option<PathBuf>,
    /// Epochs to train
    #[arg(long)]
    epochs: Option<usize>,
    /// Steps to train, instead of epochs
    #[arg(long)]
    steps: Option<usize>,
    /// Samples in a batch
    #[arg(long, value_parser = at_least_one)]
    batch_size: Option<usize>,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    step: StepArgs,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f32>,
    /// Shape of the learning rate
    #[arg(long)]
    schedule: Option<Schedule>,
    /// Linear warm-up, in the schedule's unit
    #[arg(long)]
    warmup: Option<usize>,
    /// Shape of ρ over the run
    #[arg(long)]
    rho_schedule: Option<Schedule>,
    /// What the schedule counts
    #[arg(long)]
    schedule_per: Option<Unit>,
    /// Train on this many of the training samples, drawn at random, the same for every seed
    #[arg(long, value_name = "N")]
    train_samples: Option<usize>,
    /// Share of the training labels replaced by random ones
    #[arg(long)]
    label_noise: Option<f64>,
    /// Start from fresh weights drawn by the seed, not from those of the file
    #[arg(long)]
    fresh: bool,
    /// Random changes to training images
    #[arg(long, value_parser = ["none", "crop-flip", "crop-flip-cutout"])]
    augment: Option<String>,
    /// Share of the training samples held out for validation
    #[arg(long, value_name = "FRACTION")]
    valid: Option<f64>,
    /// Initial values by name, in the place of those of the model
    #[arg(long, value_name = "FILE.safetensors")]
    weights: Option<PathBuf>,
    /// What the best epoch is chosen by, on the validation set [default: accuracy; loss with --loss NAME]
    #[arg(long)]
    metric: Option<Metric>,
    /// Leave parameters and running statistics that match unchanged
    #[arg(long, value_name = "PATTERN")]
    freeze: Vec<String>,
    /// Train only parameters and running statistics that match
    #[arg(long, value_name = "PATTERN")]
    train_only: Vec<String>,
    /// Train tensors that match, whatever bisam takes them for
    #[arg(long, value_name = "PATTERN")]
    as_parameter: Vec<String>,
    /// Take tensors that match for constants of the model
    #[arg(long, value_name = "PATTERN")]
    as_constant: Vec<String>,
    /// A new head for this many classes: in the place of the last linear layer, or appended to an embedding
    #[arg(long)]
    num_classes: Option<usize>,
    /// cross-entropy, or a scalar output of the model that is its own loss [default: cross-entropy]
    #[arg(long, value_name = "NAME")]
    loss: Option<String>,
    /// The output, or a value inside, that holds the logits or probabilities, or the embedding that --num-classes appends a head to
    /// [default: found among the outputs]
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    /// Seed of every random choice
    #[arg(long)]
    seed: Option<u64>,
    /// Leave out image files that cannot be decoded, with a note
    #[arg(long)]
    skip_damaged: bool,
    /// Draw batches in random order
    #[arg(long, action = clap::ArgAction::Set)]
    shuffle: Option<bool>,
    /// Leave out the last, short batch of an epoch
    #[arg(long, action = clap::ArgAction::Set)]
    drop_last: Option<bool>,
    /// Steps between checkpoints; 0: after every epoch
    #[arg(long)]
    checkpoint_every: Option<usize>,
    /// Steps between lines of metrics
    #[arg(long)]
    log_every: Option<usize>,
    /// Epochs between models that are kept as epochs/N.onnx; 0: none
    #[arg(long, value_name = "EPOCHS")]
    keep_every: Option<usize>,
}

impl Args {
    fn recipe(&self) -> Result<Recipe> {
        let mut r = match (&self.resume, &self.recipe) {
            (Some(dir), _) => Folder::new(dir).load_recipe()?,
            (None, Some(file)) => Recipe::load(file)?,
            (None, None) => Recipe::default(),
        };
        if let Some(model) = &self.model {
            r.model.clone_from(model);
        }
        if self.model.is_none() && !r.model.as_os_str().is_empty() && !r.model.exists() {
            return Err(Error::new("the model of the recipe is not there")
                .in_file(&r.model)
                .hint("name it on the command line: bisam train MODEL …, also with --recipe or --resume"));
        }
        if let Some(data) = &self.data {
            r.data.clone_from(data);
        }
        if r.model.as_os_str().is_empty() {
            return Err(
                Error::new("no model is given").hint("name it on the command line, or as `model` in the recipe")
            );
        }
        if r.data.is_empty() {
            return Err(
                Error::new("no data is given").hint("name it with --data FORMAT:PATH, such as --data cifar10:DIR")
            );
        }
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(v) = &self.$field { r.$field = v.clone(); })* };
        }
        set!(
            epochs,
            batch_size,
            lr,
            schedule,
            warmup,
            rho_schedule,
            schedule_per,
            label_noise,
            augment,
            valid,
            seed,
            shuffle
        );
        set!(drop_last, checkpoint_every, log_every, keep_every, loss);
        // The flag wins over what a recipe says, in either unit.
        r.steps = self.steps.or(r.steps.filter(|_| self.epochs.is_none()));
        r.metric = self.metric.or(r.metric);
        r.weights = self.weights.clone().or(r.weights);
        r.train_samples = self.train_samples.or(r.train_samples);
        r.fresh |= self.fresh;
        r.skip_damaged |= self.skip_damaged;
        r.num_classes = self.num_classes.or(r.num_classes);
        if self.logits.is_some() {
            r.output.clone_from(&self.logits);
        }
        r.parameters.freeze.extend(self.freeze.iter().cloned());
        r.parameters.train_only.extend(self.train_only.iter().cloned());
        r.parameters.as_parameter.extend(self.as_parameter.iter().cloned());
        r.parameters.as_constant.extend(self.as_constant.iter().cloned());
        r.text = self.text.apply(r.text);
        self.step.apply(&mut r.step)?;
        Ok(r)
    }
}

/// Runs the command.
///
/// # Errors
/// Anything that is wrong with model, data or settings; a loss that is not finite; an interruption.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let recipe = args.recipe()?;
    let out = args.resume.as_ref().or(args.output.as_ref()).cloned().unwrap_or_default();
    let folder = Folder::new(&out);
    if args.resume.is_some()
        && let Some(summary) = folder.finished(&recipe)?
    {
        global.note("this run is finished, and stays as it is; --epochs or --steps with a larger number extend it");
        return global.print(&json(&summary)?, results(&summary, &folder.model()).trim_end());
    }
    let engine = global.engine()?;
    let stop = stop_on_interruption()?;
    let mut progress = Progress::new(global.quiet);
    let summary = train(&engine, &recipe, &out, args.resume.is_some(), &stop, &mut progress)?;
    progress.bar.finish_and_clear();
    let model = folder.model();
    let verdict = verify(&engine, &model, None, recipe.batch_size.min(8), TOLERANCE).map(|v| Verdict {
        // What a loss of the model's own is about may be large.
        agrees: v.max_difference <= TOLERANCE * v.largest.max(1.0),
        ..v
    });
    let mut text = results(&summary, &model);
    match report::write(&out) {
        Ok(file) => text += &format!("report               {}\n", file.display()),
        Err(e) => progress.note(&format!("there is no report: {e}")),
    }
    let mut value = json(&summary)?;
    match &verdict {
        Ok(v) => {
            value["tract_difference"] = v.max_difference.into();
            text += &format!(
                "tract                {} ONNX Runtime, difference at most {:.1e}",
                if v.agrees { "agrees with" } else { "DIFFERS from" },
                v.max_difference
            );
        }
        Err(e) => text += &format!("tract                could not check the file: {e}"),
    }
    if let Some(warning) = &summary.warning {
        text += &format!("\nwarning              {warning}");
    }
    global.print(&value, &text)?;
    match verdict {
        Ok(v) if !v.agrees => Err(Error::new("tract and ONNX Runtime differ about the exported model").in_file(&model)),
        _ => Ok(()),
    }
}

fn json(summary: &Summary) -> Result<serde_json::Value> {
    serde_json::to_value(summary).map_err(|e| Error::new(e.to_string()))
}

/// What came out of a run, line by line: accuracy where there are classes, and the metric that the best epoch was chosen by.
fn results(summary: &Summary, model: &Path) -> String {
    let mut text = format!("{} steps in {:.0} s\n", summary.steps, summary.seconds);
    let mut metrics = vec![Metric::Accuracy, summary.metric];
    metrics.retain(|m| summary.metric == *m || !summary.classes.is_empty());
    metrics.dedup();
    for (i, metric) in metrics.into_iter().enumerate() {
        let shown = |value: Option<f64>| value.map_or("–".into(), |v| metric.text(v));
        let epoch = summary.best_epoch.map_or("–".into(), |e| e.to_string());
        let epoch = if i == 0 { format!(" (epoch {epoch})") } else { String::new() };
        let line = |split: &str| format!("{:<21}", format!("{split} {}", metric.title()));
        text += &format!("{}{}{epoch}\n", line("validation"), shown(summary.best_valid(metric)));
        text += &format!("{}{}\n", line("test"), shown(summary.test(metric)));
    }
    text + &format!("weights              {}\n", model.display())
}

/// A flag that the first interruption sets.
///
/// # Errors
/// When there is a handler already.
pub(super) fn stop_on_interruption() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let handler = move || {
        // The second interruption ends the process at once.
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).map_err(|e| Error::new(e.to_string()))?;
    Ok(stop)
}

/// Shows a run on the terminal.
pub(super) struct Progress {
    pub(super) bar: ProgressBar,
    quiet: bool,
    metric: Metric,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        Self { bar: ProgressBar::hidden(), quiet, metric: Metric::default() }
    }
}

impl Observer for Progress {
    fn note(&mut self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("note: {text}"));
        }
    }

    fn start(&mut self, done: u64, total: u64, metric: Metric) {
        self.metric = metric;
        if self.quiet {
            return;
        }
        self.bar = ProgressBar::new(total);
        // The steps of an earlier process are no measure of speed.
        self.bar.set_position(done);
        self.bar.tick();
        self.bar.reset_eta();
        let style = "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style);
        }
    }

    fn step(&mut self, r: &StepReport) {
        let accuracy = r.accuracy.map_or(String::new(), |a| format!(", accuracy {:.1} %", a * 100.0));
        self.bar.set_message(format!("loss {:.3}{accuracy}", r.loss));
        self.bar.set_position(r.step);
    }

    fn epoch(&mut self, r: &EpochReport) {
        if self.quiet {
            return;
        }
        let mut metrics = vec![Metric::Accuracy, self.metric];
        metrics.dedup();
        let mut valid = r.accuracy.map_or(String::new(), |a| format!(", training {:.2} %", a * 100.0));
        for (metric, value) in metrics.into_iter().filter_map(|m| Some((m, r.valid(m)?))) {
            let name = if metric == Metric::Accuracy { "" } else { metric.title() };
            valid += &format!(", validation {name} {}", metric.text(value)).replace("  ", " ");
        }
        let line = format!("epoch {:>3}  loss {:.4}{valid}, {:.0} samples/s", r.epoch, r.loss, r.samples_per_second);
        self.bar.suspend(|| eprintln!("{line}"));
    }
}
