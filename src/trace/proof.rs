//! Shows that a graph gives each sample of a batch what its file gives it.

use super::layout::{Groups, Layout};
use super::samples::{Draw, Samples, evaluation_form, varied, with_values};
use super::{Evaluator, trace};
use crate::error::{Error, Result};
use crate::ir::{Graph, Tensor, ValueId};
use std::collections::{BTreeMap, HashSet};

/// How far a node's output may be from that of single samples, relative to the largest element.
pub(super) const NODE_TOLERANCE: f64 = 1e-4;

/// How far the model's outputs may be, relative to how much they differ between samples.
const TOLERANCE: f64 = 0.02;

/// What rounding may do to an output, relative to its largest element.
const ROUNDING: f64 = 1e-5;

/// The outputs of a file for a few samples, each run at the file's own batch size.
pub(super) struct Proof {
    pub samples: Samples,
    /// Parameters that have other values here than in the file.
    pub values: BTreeMap<ValueId, Tensor>,
    pub groups: Groups,
    /// For every output of the graph its values, one for each group.
    outputs: Vec<Vec<Tensor>>,
}

impl Proof {
    pub fn new(
        graph: &Graph,
        shapes: &BTreeMap<ValueId, Vec<usize>>,
        batched: &HashSet<ValueId>,
        own: usize,
        run: &dyn Evaluator,
    ) -> Result<Self> {
        let count = if own < 3 { 3 } else { 2 };
        let groups = Groups::new(own, count);
        let values = varied(graph);
        let form = with_values(evaluation_form(graph), &values);
        let mut failure = None;
        for draw in [Draw::Normal, Draw::Positive] {
            let samples = Samples::draw(graph, shapes, batched, count, draw);
            let of_groups = groups.own.iter().map(|g| trace(&form, &samples.batch(g), run).map(|t| t.1));
            match of_groups.collect::<Result<Vec<_>>>() {
                Ok(of_groups) => {
                    let outputs: Vec<Vec<Tensor>> =
                        (0..graph.outputs.len()).map(|i| of_groups.iter().map(|g| g[i].clone()).collect()).collect();
                    let finite = |t: &Tensor| !t.any(|v| !v.is_finite());
                    if outputs.iter().flatten().filter(|t| t.dtype().is_float()).all(finite) {
                        return Ok(Self { samples, values, groups, outputs });
                    }
                    let cause = "its outputs on random inputs are not finite, so that nothing shows whether it \
                                 computes the same at another size";
                    failure = Some(Error::new(cause));
                }
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        Err(failure.unwrap_or_else(|| Error::new("it has no outputs")))
    }

    /// Shows that `graph` gives every sample the outputs that the file gives it.
    pub fn holds(&self, graph: &Graph, run: &dyn Evaluator) -> Result<Found> {
        let form = with_values(evaluation_form(graph), &self.values);
        let (_, outputs) = trace(&form, &self.samples.batch(&self.groups.all), run)?;
        let (mut shown, mut found) = (false, Found { tells: true, summed: Vec::new() });
        for ((v, own), all) in graph.outputs.iter().zip(&self.outputs).zip(&outputs) {
            let name = || format!("output `{}`", graph[*v].name);
            match self.output(own, all) {
                Shown::PerSample(tells) => {
                    shown |= all.dtype().is_float();
                    found.tells &= tells;
                }
                Shown::Mean => {}
                Shown::Sum => found.summed.push(name()),
                Shown::Not => crate::bail!("{} of a batch is not that of its samples", name()),
            }
        }
        if shown { Ok(found) } else { Err(Error::new("no output is shown to be the same for every sample")) }
    }

    fn output(&self, own: &[Tensor], all: &Tensor) -> Shown {
        let spread = spread(own);
        let tolerance = (TOLERANCE * spread).clamp(ROUNDING, NODE_TOLERANCE);
        if let Some(layout) = Layout::find(own, all, &self.groups, tolerance) {
            let told = spread > 10.0 * ROUNDING || !all.dtype().is_float();
            return Shown::PerSample(told && (!layout.added || layout.axis == 0));
        }
        reduction(own, all, &self.groups)
    }
}

/// What is found about the outputs of a graph.
pub(super) struct Found {
    /// Whether they differ enough between samples to tell one from another. An untrained network may hardly look at its input.
    pub tells: bool,
    /// The outputs that are sums over the samples.
    pub summed: Vec<String>,
}

/// What an output of several samples is shown to be.
enum Shown {
    /// Theirs, sample by sample, and whether that tells something.
    PerSample(bool),
    /// The mean of theirs.
    Mean,
    /// The sum of theirs.
    Sum,
    /// Something else.
    Not,
}

/// How much a value differs between groups, relative to its largest element.
pub(super) fn spread(values: &[Tensor]) -> f64 {
    let all: Vec<Vec<f64>> = values.iter().filter(|t| t.dtype().is_float()).map(Tensor::to_f64).collect();
    let largest = all.iter().flatten().fold(0.0f64, |m, v| m.max(v.abs()));
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
    let differ = match (all.as_slice(), values.first().and_then(|t| t.shape().first())) {
        // Of a single group, between its first rows, which are those of samples.
        ([one], Some(rows)) if *rows > 1 => {
            let row = one.len() / rows;
            apart(&one[..row], &one[row..2 * row])
        }
        ([_], _) => largest,
        (several, _) => several.windows(2).fold(0.0f64, |m, w| m.max(apart(&w[0], &w[1]))),
    };
    if largest > 0.0 { differ / largest } else { 0.0 }
}

/// Whether a value of all samples is the mean or the sum of theirs.
fn reduction(own: &[Tensor], all: &Tensor, groups: &Groups) -> Shown {
    let Some(first) = own.first().filter(|f| f.dtype().is_float() && f.shape() == all.shape()) else {
        return Shown::Not;
    };
    if groups.size() != 1 {
        return Shown::Not;
    }
    let mut sum = vec![0.0; first.len()];
    for t in own {
        sum.iter_mut().zip(t.to_f64()).for_each(|(s, v)| *s += v);
    }
    let given = all.to_f64();
    let is = |scale: f64| {
        let largest = sum.iter().fold(0.0f64, |m, s| m.max((s * scale).abs()));
        sum.iter().zip(&given).all(|(s, g)| (s * scale - g).abs() <= NODE_TOLERANCE * largest)
    };
    match () {
        () if is(1.0 / own.len() as f64) => Shown::Mean,
        () if is(1.0) => Shown::Sum,
        () => Shown::Not,
    }
}
