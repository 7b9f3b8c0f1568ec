//! Loss and confusion matrix of a model on one split of the data.

use super::data::{Opened, evaluation_loader, open_split, read_inputs, short_batch};
use super::metrics::{Confusion, judge};
use super::recipe::Recipe;
use crate::data::{Batch, Loader};
use crate::engine::{Engine, Outputs, Session};
use crate::error::Result;
use crate::ir::{Graph, Tensor};
use crate::step::stages::evaluation_stage;
use crate::step::{Prepared, prepare, refuse_probabilities};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// What a model does on one split of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, or the model's own loss.
    pub loss: f64,
    /// Number of samples.
    pub samples: usize,
    /// True and predicted classes; none where the model shows no logits beside its own loss.
    pub confusion: Option<Confusion>,
    /// Names of the classes, in the order of the logits.
    pub classes: Vec<String>,
}

/// Evaluates a model on one split (`train`, `valid` or `test`) of the data set that `recipe` names.
///
/// Of the recipe, `data`, `text`, `normalization`, `batch_size`, `output` and `loss` are used, and `valid`, `train_samples` and `seed`, by
/// which the splits are those of training. Without a normalization, images are normalized by the statistics of the training split.
/// `note` is told how the data was made to fit the model.
///
/// # Errors
/// Anything that is wrong with model or data; a split that is not there.
pub fn evaluate_model(
    engine: &Engine,
    graph: &Graph,
    recipe: &Recipe,
    split: &str,
    note: &mut dyn FnMut(&str),
) -> Result<Evaluation> {
    let ends = recipe.ends();
    let short = short_batch(ends.loss.is_some());
    let opened = open_split(engine, graph, recipe, ends, split, note, |set, inputs, normalization| {
        evaluation_loader(set, &inputs, normalization, recipe.batch_size, &[], short)
    })?;
    let Opened { prepared, loader, classes, sizes } = opened;
    // By number of samples.
    let mut stages = HashMap::from([(recipe.batch_size, Stage::new(engine, &prepared)?)]);
    let mut unseen = prepared.origin.as_ref().filter(|_| prepared.loss.is_none());
    let measured = measure(&loader, classes.len(), |batch| {
        let n = batch.labels.len();
        let stage = match stages.entry(n) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                let prepared = prepare(graph, &sizes.with_batch(n), ends, engine)?;
                place.insert(Stage::new(engine, &prepared)?)
            }
        };
        let outputs = stage.run(batch)?;
        if let Some(origin) = unseen.take() {
            let rows = outputs.logits.get(..batch.len * origin.classes).unwrap_or_default();
            refuse_probabilities(origin, rows, origin.classes)?;
        }
        Ok(outputs)
    })?;
    let Measured { loss, samples, confusion } = measured;
    Ok(Evaluation { loss, samples, confusion, classes })
}

/// A compiled evaluation stage with the file's weights in it.
struct Stage {
    session: Session,
    /// The model's inputs, in the order in which the loader fills them.
    inputs: Vec<String>,
    /// The input that takes the labels for the model's own loss.
    labels: Option<String>,
    gives_logits: bool,
}

impl Stage {
    fn new(engine: &Engine, prepared: &Prepared) -> Result<Self> {
        let session = engine.compile(&evaluation_stage(prepared)?)?;
        let inputs: Vec<String> = read_inputs(prepared)?.into_iter().map(|(name, _)| name).collect();
        let own = prepared.inputs()?;
        let labels = session.inputs().iter().find(|n| own.iter().all(|(name, _)| name != *n)).cloned();
        Ok(Self { session, inputs, labels, gives_logits: prepared.logits.is_some() })
    }

    fn run(&mut self, batch: &Batch) -> Result<Outputs> {
        let known = |name: &String| self.session.inputs().contains(name);
        let mut tensors = Vec::with_capacity(self.inputs.len() + 1);
        for (name, buffer) in self.inputs.iter().zip(&batch.inputs).filter(|(name, _)| known(name)) {
            let ty = buffer.ty();
            tensors.push((name.as_str(), Tensor::from_bytes(ty.dtype, &ty.shape, buffer.bytes().to_vec())?));
        }
        if let Some(labels) = &self.labels {
            tensors.push((labels, Tensor::new(&[batch.labels.len()], &batch.labels)?));
        }
        let given: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (*n, t)).collect();
        let mut outputs = self.session.run(&given)?.into_iter().map(|t| t.to_f32());
        let logits = if self.gives_logits { outputs.next().unwrap_or_default() } else { Vec::new() };
        Ok(Outputs { logits, loss: outputs.next().and_then(|loss| loss.first().copied()) })
    }
}

/// What was measured on a split.
pub(super) struct Measured {
    /// Mean cross-entropy, or the model's own loss.
    pub loss: f64,
    /// Number of samples.
    pub samples: usize,
    /// None without classes.
    pub confusion: Option<Confusion>,
}

/// Loss and confusion matrix over a loader; `outputs` gives those of a batch. The model's own loss is a mean over batches, weighted by
/// their samples.
pub(super) fn measure(
    loader: &Loader,
    classes: usize,
    mut outputs: impl FnMut(&Batch) -> Result<Outputs>,
) -> Result<Measured> {
    let (mut loss, mut samples) = (0.0, 0);
    let mut confusion = (classes > 0).then(|| Confusion::new(classes));
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let found = outputs(&batch)?;
        if let Some(confusion) = &mut confusion {
            for (row, label) in found.logits.chunks(classes).zip(&batch.labels).take(batch.len) {
                let (of_sample, prediction) = judge(row, *label as usize);
                if found.loss.is_none() {
                    loss += of_sample;
                }
                confusion.add(*label as usize, prediction);
            }
        }
        loss += found.loss.map_or(0.0, |own| f64::from(own) * batch.len as f64);
        samples += batch.len;
        loader.recycle(batch);
    }
    Ok(Measured { loss: loss / samples.max(1) as f64, samples, confusion })
}

pub(crate) fn bytes(batch: &Batch) -> Vec<&[u8]> {
    batch.inputs.iter().map(crate::data::Buffer::bytes).collect()
}
