//! What a run reports: steps, epochs, results, and the files they are written to.

use super::checkpoint::Position;
use super::events::{Events, of_epoch, of_step};
use super::metrics::Metric;
use crate::error::{Error, IoContext, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

/// A log line of one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps done.
    pub step: u64,
    /// Epoch, counted from 1.
    pub epoch: usize,
    /// Loss of the ascent pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ascent_loss: Option<f32>,
    /// Loss of the descent pass.
    pub loss: f32,
    /// Share of correctly classified samples in the batch; of classes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f32>,
    /// Learning rate.
    pub lr: f32,
}

/// A log line of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Epoch, counted from 1.
    pub epoch: usize,
    /// Mean descent loss.
    pub loss: f64,
    /// Share of correctly classified training samples; of classes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Cross-entropy, or the model's own loss, on the validation split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// Accuracy on the validation split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// F1 on the validation split (see [`Confusion::f1`](super::Confusion::f1)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_f1: Option<f64>,
    /// Matthews correlation on the validation split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_matthews: Option<f64>,
    /// Training samples per second, over all of the epoch's steps.
    pub samples_per_second: f64,
}

impl EpochReport {
    /// The value of a metric on the validation split.
    pub fn valid(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Accuracy => self.valid_accuracy,
            Metric::F1 => self.valid_f1,
            Metric::Matthews => self.valid_matthews,
            Metric::Loss => self.valid_loss,
        }
    }
}

/// The results of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// What the best epoch was chosen by.
    #[serde(default)]
    pub metric: Metric,
    /// Validation loss of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_valid_loss: Option<f64>,
    /// Validation accuracy of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_valid_accuracy: Option<f64>,
    /// Validation F1 of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_valid_f1: Option<f64>,
    /// Validation Matthews correlation of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_valid_matthews: Option<f64>,
    /// Epoch of the exported weights, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_epoch: Option<usize>,
    /// Test accuracy of the exported weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_accuracy: Option<f64>,
    /// Test cross-entropy, or the model's own loss, of the exported weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// Test F1 of the exported weights (see [`Confusion::f1`](super::Confusion::f1)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_f1: Option<f64>,
    /// Test Matthews correlation of the exported weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_matthews: Option<f64>,
    /// Names of the classes, in the order of the logits.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Test samples by true class (rows) and predicted class (columns), for up to 100 classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_confusion: Option<Vec<Vec<u64>>>,
    /// Seconds of training, over all processes that took part.
    pub seconds: f64,
    /// What is wrong with the result, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

impl Summary {
    /// A metric of the exported weights, on the test split or else on the validation split.
    pub fn result(&self, metric: Metric) -> Option<f64> {
        self.test(metric).or(self.best_valid(metric))
    }

    /// A metric of the exported weights on the test split.
    pub fn test(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Accuracy => self.test_accuracy,
            Metric::F1 => self.test_f1,
            Metric::Matthews => self.test_matthews,
            Metric::Loss => self.test_loss,
        }
    }

    /// A metric of the exported weights on the validation split.
    pub fn best_valid(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Accuracy => self.best_valid_accuracy,
            Metric::F1 => self.best_valid_f1,
            Metric::Matthews => self.best_valid_matthews,
            Metric::Loss => self.best_valid_loss,
        }
    }
}

/// The lines of `metrics.jsonl`, and the same as events for TensorBoard.
pub(super) struct Log {
    file: std::fs::File,
    path: std::path::PathBuf,
    events: Events,
}

impl Log {
    /// The files of a new run; those of a run that is resumed lose what came after its checkpoint at `from`.
    pub(super) fn open(folder: &Path, from: Option<&Position>) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let (done, kept) = match from {
            Some(position) => (position.steps, before(&path, position)?),
            None => (0, String::new()),
        };
        crate::files::write_atomically(&path, kept.as_bytes())?;
        let file = std::fs::OpenOptions::new().append(true).open(&path).file(&path)?;
        let mut log = Self { file, path, events: Events::create(folder, done)? };
        // The process before may have ended between its checkpoint and this line.
        let last = from.and_then(|p| p.last_epoch.filter(|e| e.epoch <= p.epoch));
        let is_there = |e: &EpochReport| kept.lines().any(|line| of_line(line) == (None, Some(e.epoch as u64)));
        if let Some(report) = last.filter(|e| !is_there(e)) {
            log.epoch(done, &report)?;
        }
        Ok(log)
    }

    pub(super) fn step(&mut self, report: &StepReport) -> Result<()> {
        self.line(report)?;
        self.events.scalars(report.step, &of_step(report))
    }

    pub(super) fn epoch(&mut self, steps: u64, report: &EpochReport) -> Result<()> {
        self.line(report)?;
        self.events.scalars(steps, &of_epoch(report))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string(value).map_err(|e| Error::new(e.to_string()))?;
        writeln!(self.file, "{json}").file(&self.path)
    }
}

/// The lines of `metrics.jsonl` that were written before the checkpoint at `position`.
fn before(path: &Path, position: &Position) -> Result<String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).file(path),
    };
    let earlier = |line: &&str| match of_line(line) {
        (Some(step), _) => step <= position.steps,
        (None, Some(epoch)) => epoch <= position.epoch as u64,
        (None, None) => false,
    };
    Ok(text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter(earlier).collect())
}

/// The step, or else the epoch, that a line is about; neither of one that a crash cut.
fn of_line(line: &str) -> (Option<u64>, Option<u64>) {
    let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    let step = line["step"].as_u64();
    (step, line["epoch"].as_u64().filter(|_| step.is_none()))
}
