//! Everything that determines a run; written beside its results, so that it can be repeated.

use super::metrics::Metric;
use super::schedule::{Schedule, Unit};
use crate::adapt::Selection;
use crate::data::{Augment, Normalization, TextOptions};
use crate::error::{Error, IoContext, Result};
use crate::files::write_atomically;
use crate::step::{Ascent, Base, Ends, Preset, StepOptions};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// The exported model.
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
    /// Train on this many of the training samples, a random choice that is the same for every seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_samples: Option<usize>,
    /// What the best epoch is chosen by, on the validation set: accuracy, or the loss where that is the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Initial values of parameters by name, in the place of those of the model: a safetensors file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Share of the training labels replaced by random ones.
    pub label_noise: f64,
    /// Start from fresh weights drawn by the seed, not from those of the file.
    pub fresh: bool,
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
    /// Epochs between models that are kept as `epochs/<epoch>.onnx`; 0 means none.
    pub keep_every: usize,
    /// The output that holds the logits; the first float one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The output that a new head is appended to, where that is not the one found by itself; filled in by the run where `output`
    /// named it, which then names the new logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<String>,
    /// `cross-entropy`, or a scalar output of the model that is its own loss.
    pub loss: String,
    /// A new head for this many classes: in the place of the last linear layer, or appended to an embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Image files that cannot be decoded are left out, with a note.
    pub skip_damaged: bool,
    /// The names of the classes in the order of the logits, where the data name them; filled in by the run, so that other data are
    /// matched by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
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
            train_samples: None,
            metric: None,
            weights: None,
            label_noise: 0.0,
            fresh: false,
            seed: 0,
            shuffle: true,
            drop_last: true,
            checkpoint_every: 0,
            log_every: 10,
            keep_every: 0,
            output: None,
            embedding: None,
            loss: CROSS_ENTROPY.into(),
            num_classes: None,
            skip_damaged: false,
            classes: Vec::new(),
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

    /// What the best epoch is chosen by.
    pub fn metric(&self) -> Metric {
        let usual = if self.ends().loss.is_some() { Metric::Loss } else { Metric::default() };
        self.metric.unwrap_or(usual)
    }

    /// Makes every path absolute, so that the recipe means the same from any folder.
    ///
    /// # Errors
    /// When the current folder is not known.
    pub fn make_paths_absolute(&mut self) -> Result<()> {
        let absolute = |path: &Path| -> Result<PathBuf> {
            if path.as_os_str().is_empty() { Ok(PathBuf::new()) } else { std::path::absolute(path).file(path) }
        };
        self.model = absolute(&self.model)?;
        if let Some((format, path)) = self.data.split_once(':').filter(|(_, path)| !path.is_empty()) {
            self.data = format!("{format}:{}", absolute(path.as_ref())?.display());
        }
        if let Some(weights) = &mut self.weights {
            *weights = absolute(weights)?;
        }
        if let Some(text) = &mut self.text {
            text.tokenizer = absolute(&text.tokenizer)?;
        }
        Ok(())
    }

    /// Reads a recipe; see [`Recipe::from_table`].
    ///
    /// # Errors
    /// An I/O error, or a key or value that is not known: names it.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).file(path)?;
        let table = table(&text).map_err(|e| e.in_file(path))?;
        if table.contains_key("rows") || table.contains_key("columns") {
            let cause = "the recipe has rows or columns: it stands for many runs";
            return Err(Error::new(cause).in_file(path).hint("run it with `bisam experiment`"));
        }
        Self::from_table(table).map_err(|e| e.in_file(path))
    }

    /// The recipe that a table stands for. Settings of the step may stand in `step` or at the top, where `optimizer` names the
    /// preset that they override.
    ///
    /// # Errors
    /// A key or value that is not known, or a setting that is there twice.
    pub fn from_table(mut table: Table) -> Result<Self> {
        let mut given = match table.remove("step") {
            Some(Value::Table(step)) => step,
            Some(_) => crate::bail!("`step` is not a table"),
            None => Table::new(),
        };
        for key in StepOptions::keys() {
            if let Some(value) = table.remove(&key)
                && given.insert(key.clone(), value).is_some()
            {
                crate::bail!("`{key}` is set twice, at the top and in `step`");
            }
        }
        let mut options = match table.remove("optimizer") {
            Some(Value::String(name)) => name.parse::<Preset>()?.options(),
            Some(other) => crate::bail!("`optimizer` is {other}, not a name"),
            None => StepOptions::default(),
        };
        let is = |key: &str, value: &str| given.get(key).and_then(Value::as_str) == Some(value);
        options.choose(is("ascent", "tanh").then_some(Ascent::Tanh), is("base", "adamw").then_some(Base::Adamw));
        let mut step = Table::try_from(options).map_err(|e| Error::new(e.to_string()))?;
        step.extend(given);
        table.insert("step".into(), step.into());
        Self::deserialize(table).map_err(toml_error)
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
            ("train-samples", self.train_samples != Some(0), "at least 1"),
            ("num-classes", self.num_classes != Some(0), "at least 1"),
            ("num-classes", self.embedding.is_none() || self.num_classes.is_some(), "set where `embedding` is"),
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

/// The settings in the text of a recipe.
pub(super) fn table(text: &str) -> Result<Table> {
    toml::from_str(text).map_err(|e| toml_error(e).hint("a recipe is a TOML file: lines of `setting = value`"))
}

pub(super) fn toml_error(e: toml::de::Error) -> Error {
    Error::new(e.to_string().trim().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Result<Recipe> {
        Recipe::from_table(toml::from_str(text).unwrap())
    }

    #[test]
    fn a_preset_is_overridden_by_the_settings_beside_it() {
        let r = recipe("optimizer = 'a-bisam'\nrho = 0.2\nlr = 0.3\n[step]\neta = 0.5").unwrap();
        assert_eq!(r.step, StepOptions { rho: 0.2, eta: 0.5, ..Preset::ABisam.options() });
        assert_eq!(r.lr, 0.3);
        assert_eq!(recipe("ascent = 'tanh'").unwrap().step.mu, 10.0);
        assert_eq!(recipe("ascent = 'tanh'\nmu = 2.0").unwrap().step.mu, 2.0);
        assert_eq!(recipe("base = 'adamw'").unwrap().step.weight_decay, 0.01);
    }

    #[test]
    fn a_saved_recipe_is_read_as_it_was() {
        for (preset, _) in Preset::ALL {
            let step = StepOptions { clip_norm: Some(1.0), ..preset.options() };
            let recipe = Recipe { step, train_samples: Some(7), fresh: true, ..Recipe::default() };
            assert_eq!(Recipe::from_table(Table::try_from(&recipe).unwrap()).unwrap(), recipe);
        }
    }

    #[test]
    fn unknown_and_double_settings_are_named() {
        let cause = |text: &str| recipe(text).unwrap_err().to_string();
        assert!(cause("epoch = 3").contains("`epoch`"));
        assert!(cause("optimizer = 'sma'").contains("`sma`"));
        assert!(cause("optimizer = 3").contains("`optimizer` is 3"));
        assert!(cause("rho = 0.1\n[step]\nrho = 0.2").contains("`rho` is set twice"));
        assert!(cause("[step]\nrhoo = 0.2").contains("`rhoo`"));
        assert!(cause("step = 1").contains("not a table"));
    }
}
