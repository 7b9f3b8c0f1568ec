//! Loss and confusion matrix of a model on one split of the data.

use super::data::{evaluation_loader, open_split};
use super::metrics::{Confusion, judge};
use super::recipe::Recipe;
use crate::data::{Batch, Loader};
use crate::engine::Engine;
use crate::error::Result;
use crate::ir::{Graph, Tensor};
use crate::step::stages::evaluation_stage;

/// What a model does on one split of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy.
    pub loss: f64,
    /// True and predicted classes.
    pub confusion: Confusion,
    /// Names of the classes, in the order of the logits.
    pub classes: Vec<String>,
}

/// Evaluates a model on one split (`train`, `valid` or `test`) of the data set that `recipe` names.
///
/// Of the recipe, `data`, `text`, `normalization`, `batch_size` and `output` are used. Without a normalization, images are
/// normalized by the statistics of the training split. `note` is told how the data was made to fit the model.
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
    let (prepared, loader, names) = open_split(engine, graph, recipe, split, note, |set, inputs, normalization| {
        evaluation_loader(set, &inputs, normalization, recipe.batch_size, &[])
    })?;
    let types = prepared.inputs()?;
    let classes = names.len();
    let mut session = engine.compile(&evaluation_stage(&prepared)?)?;
    let known: Vec<bool> = types.iter().map(|(name, _)| session.inputs().contains(name)).collect();
    let (loss, confusion) = measure(&loader, classes, |batch| {
        let mut tensors = Vec::with_capacity(types.len());
        for (((name, ty), bytes), _) in types.iter().zip(batch).zip(&known).filter(|(_, known)| **known) {
            tensors.push((name.as_str(), Tensor::from_bytes(ty.dtype, &ty.shape, bytes.to_vec())?));
        }
        let given: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (*n, t)).collect();
        Ok(session.run(&given)?.first().map(Tensor::to_f32).unwrap_or_default())
    })?;
    Ok(Evaluation { loss, confusion, classes: names })
}

/// Mean cross-entropy and confusion matrix over a loader that pads its last batch; `logits` gives those of a batch, row by row.
pub(super) fn measure(
    loader: &Loader,
    classes: usize,
    mut logits: impl FnMut(&[&[u8]]) -> Result<Vec<f32>>,
) -> Result<(f64, Confusion)> {
    let (mut loss, mut confusion) = (0.0, Confusion::new(classes));
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let rows = logits(&bytes(&batch))?;
        for (row, label) in rows.chunks(classes).zip(&batch.labels).take(batch.len) {
            let (of_sample, prediction) = judge(row, *label as usize);
            loss += of_sample;
            confusion.add(*label as usize, prediction);
        }
        loader.recycle(batch);
    }
    Ok((loss / confusion.samples().max(1) as f64, confusion))
}

pub(crate) fn bytes(batch: &Batch) -> Vec<&[u8]> {
    batch.inputs.iter().map(crate::data::Buffer::bytes).collect()
}
