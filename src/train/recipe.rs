//! Everything that determines a run; written beside its results, so that it can be repeated.

use super::metrics::Metric;
use super::schedule::{Schedule, Unit};
use crate::adapt::Selection;
use crate::data::{Augment, Normalization, TextOptions};
use crate::error::{Error, IoContext, Result};
use crate::onnx::write_atomically;
use crate::step::{Ends, StepOptions};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// The exported classifier.
    pub model: PathBuf,
    /// Data as `FORMAT:PATH`.
    pub data: String,
    /// Epochs to train; `steps` wins where it is set.
    pub epochs: usize,
    /// Steps to train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Samples in a batch.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f32,
    /// Shape of the learning rate.
    pub schedule: Schedule,
    /// What the schedule counts.
    pub schedule_per: Unit,
    /// Linear warm-up, in the schedule's unit.
    pub warmup: usize,
    /// Shape of ρ, which has no warm-up.
    pub rho_schedule: Schedule,
    /// `none`, `crop-flip` or `crop-flip-cutout`.
    pub augment: String,
    /// Share of the training samples held out for validation when the data has no validation set.
    pub valid: f64,
    /// What the best epoch is chosen by, on the validation set.
    pub metric: Metric,
    /// Share of the training labels replaced by random ones.
    pub label_noise: f64,
    /// Seed of every random choice.
    pub seed: u64,
    /// Whether batches are drawn in random order.
    pub shuffle: bool,
    /// Whether the last, short batch of an epoch is left out.
    pub drop_last: bool,
    /// Steps between checkpoints; 0 means after every epoch only.
    pub checkpoint_every: usize,
    /// Steps between lines of metrics.
    pub log_every: usize,
    /// The output that holds the logits; the first float one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// `cross-entropy`, or a scalar output of the model that is its own loss.
    pub loss: String,
    /// A new head for this many classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// The step's axes.
    pub step: StepOptions,
    /// Which parameters are trained.
    pub parameters: Selection,
    /// Normalization of images, by the statistics of the training split; filled in by the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalization: Option<Normalization>,
    /// How tables of text are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextOptions>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            data: String::new(),
            epochs: 200,
            steps: None,
            batch_size: 128,
            lr: 0.1,
            schedule: Schedule::Cosine,
            schedule_per: Unit::Epoch,
            warmup: 0,
            rho_schedule: Schedule::Constant,
            augment: "none".into(),
            valid: 0.1,
            metric: Metric::default(),
            label_noise: 0.0,
            seed: 0,
            shuffle: true,
            drop_last: true,
            checkpoint_every: 0,
            log_every: 10,
            output: None,
            loss: CROSS_ENTROPY.into(),
            num_classes: None,
            step: StepOptions::default(),
            parameters: Selection::default(),
            normalization: None,
            text: None,
        }
    }
}

/// The loss that is not the model's own.
const CROSS_ENTROPY: &str = "cross-entropy";

impl Recipe {
    /// The outputs that training works on.
    pub fn ends(&self) -> Ends<'_> {
        let own = self.loss != CROSS_ENTROPY;
        Ends { logits: self.output.as_deref(), loss: own.then_some(self.loss.as_str()) }
    }

    /// Reads a recipe.
    ///
    /// # Errors
    /// An I/O error, or a key or value that is not known: names it.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).file(path)?;
        toml::from_str(&text).map_err(|e| Error::new(e.to_string().trim().replace('\n', " ")).in_file(path))
    }

    /// Writes the recipe.
    ///
    /// # Errors
    /// An I/O error.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::new(e.to_string()))?;
        write_atomically(path, text.as_bytes())
    }

    /// Checks every number.
    ///
    /// # Errors
    /// Names the first setting out of its range.
    pub fn validate(&self) -> Result<()> {
        self.step.validate()?;
        self.augment.parse::<Augment>()?;
        let checks = [
            ("batch-size", self.batch_size > 0, "at least 1"),
            ("epochs", self.epochs > 0 || self.steps.is_some(), "at least 1"),
            ("steps", self.steps != Some(0), "at least 1"),
            ("lr", self.lr > 0.0 && self.lr.is_finite(), "greater than 0"),
            ("valid", (0.0..1.0).contains(&self.valid), "in [0, 1)"),
            ("label-noise", (0.0..=1.0).contains(&self.label_noise), "in [0, 1]"),
            ("log-every", self.log_every > 0, "at least 1"),
            ("max-length", self.text.as_ref().is_none_or(|t| t.max_length > 0), "at least 1"),
        ];
        match checks.iter().find(|(_, ok, _)| !ok) {
            Some((name, _, want)) => Err(Error::new(format!("{name} must be {want}"))),
            None => Ok(()),
        }
    }
}
