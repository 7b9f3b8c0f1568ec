//! `bisam train`.

use super::{Global, StepArgs, TextArgs, at_least_one};
use crate::error::{Error, Result};
use crate::export::verify;
use crate::report;
use crate::train::schedule::{Schedule, Unit};
use crate::train::{EpochReport, Metric, Observer, Recipe, StepReport, train};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The exported classifier
    #[arg(required_unless_present_any = ["recipe", "resume"])]
    model: Option<PathBuf>,
    /// Data as FORMAT:PATH (cifar10, cifar100, idx, images, npz; tsv, csv, jsonl)
    #[arg(long, value_name = "SPEC")]
    data: Option<String>,
    /// Settings from a TOML file; flags override it
    #[arg(long, value_name = "FILE.toml")]
    recipe: Option<PathBuf>,
    /// Go on where the run in this folder stopped
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
    /// What the best epoch is chosen by, on the validation set
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
    /// The output that holds the logits, or the embedding that --num-classes appends a head to
    #[arg(long)]
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
            (Some(dir), _) => Recipe::load(&dir.join("recipe.toml"))?,
            (None, Some(file)) => Recipe::load(file)?,
            (None, None) => Recipe::default(),
        };
        if let Some(model) = &self.model {
            r.model.clone_from(model);
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
            metric,
            seed,
            shuffle
        );
        set!(drop_last, checkpoint_every, log_every, keep_every, loss);
        r.steps = self.steps.or(r.steps);
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
    let engine = global.engine()?;
    let out = args.resume.as_ref().or(args.output.as_ref()).cloned().unwrap_or_default();
    let stop = stop_on_interruption()?;
    let mut progress = Progress::new(global.quiet);
    let summary = train(&engine, &recipe, &out, args.resume.is_some(), &stop, &mut progress)?;
    progress.bar.finish_and_clear();
    let model = out.join("model.onnx");
    let verdict = verify(&engine, &model, None, recipe.batch_size.min(8), 1e-4);
    let percent = |v: Option<f64>| v.map_or("–".into(), |v| format!("{:.2} %", v * 100.0));
    let mut text = format!(
        "{} steps in {:.0} s\nvalidation accuracy  {} (epoch {})\ntest accuracy        {}\n",
        summary.steps,
        summary.seconds,
        percent(summary.best_valid_accuracy),
        summary.best_epoch.map_or("–".into(), |e| (e + 1).to_string()),
        percent(summary.test_accuracy),
    );
    let plain = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.4}"));
    let (valid, test) = match recipe.metric {
        Metric::Accuracy => (None, None),
        Metric::F1 => (summary.best_valid_f1, summary.test_f1),
        Metric::Matthews => (summary.best_valid_matthews, summary.test_matthews),
    };
    if recipe.metric != Metric::Accuracy {
        let name = recipe.metric.title();
        text += &format!(
            "{:<21}{}\n{:<21}{}\n",
            format!("validation {name}"),
            plain(valid),
            format!("test {name}"),
            plain(test)
        );
    }
    text += &format!("weights              {}\n", model.display());
    match report::write(&out) {
        Ok(file) => text += &format!("report               {}\n", file.display()),
        Err(e) => progress.note(&format!("there is no report: {e}")),
    }
    let mut value = serde_json::to_value(&summary).map_err(|e| Error::new(e.to_string()))?;
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
    global.print(&value, &text)?;
    match verdict {
        Ok(v) if !v.agrees => Err(Error::new("tract and ONNX Runtime differ about the exported model").in_file(&model)),
        _ => Ok(()),
    }
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
        self.bar = ProgressBar::new(total).with_position(done);
        let style = "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style);
        }
    }

    fn step(&mut self, r: &StepReport) {
        self.bar.set_message(format!("loss {:.3}, accuracy {:.1} %", r.loss, r.accuracy * 100.0));
        self.bar.set_position(r.step);
    }

    fn epoch(&mut self, r: &EpochReport) {
        if self.quiet {
            return;
        }
        let mut valid = r.valid_accuracy.map_or(String::new(), |v| format!(", validation {:.2} %", v * 100.0));
        let chosen = match self.metric {
            Metric::Accuracy => None,
            Metric::F1 => r.valid_f1,
            Metric::Matthews => r.valid_matthews,
        };
        if let Some(v) = chosen {
            valid += &format!(", {} {v:.4}", self.metric.title());
        }
        let line = format!(
            "epoch {:>3}  loss {:.4}, training {:.2} %{valid}, {:.0} samples/s",
            r.epoch + 1,
            r.loss,
            r.accuracy * 100.0,
            r.samples_per_second
        );
        self.bar.suspend(|| eprintln!("{line}"));
    }
}
