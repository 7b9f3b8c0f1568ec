//! How sharp the loss is around a model's weights.

mod figures;

pub use figures::figures;

use crate::adapt::Mode;
use crate::data::{Batch, Dataset, Loader, LoaderOptions, ShortBatch};
use crate::engine::Evaluation;
use crate::engine::program::{scale_by_filters, split};
use crate::engine::{Engine, Program};
use crate::error::Result;
use crate::onnx::import;
use crate::step::stages::build_in;
use crate::step::{Ascent, Ends, StepOptions};
use crate::train::{Opened, Recipe, bytes, judge, open_split};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// `train`, `valid` or `test`.
    pub split: String,
    /// Samples that are looked at, drawn at random, in whole batches.
    pub samples: usize,
    /// Norms of the perturbations.
    pub rhos: Vec<f32>,
    /// Whether normalization uses running statistics, or those of each batch.
    pub mode: Mode,
    /// Places along each side of the plane; 0 leaves it out.
    pub plane: usize,
    /// Seed of the random choices.
    pub seed: u64,
}

/// Direction of a perturbation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// SAM's, along the gradient of cross-entropy.
    Sam,
    /// BiSAM's, along the gradient of the −log bound.
    Bisam,
    /// BiSAM's, along the gradient of the tanh bound.
    BisamTanh,
    /// A uniformly random one, of the same norm.
    Random,
}

impl Direction {
    /// What figures call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sam => "SAM",
            Self::Bisam => "BiSAM (−log)",
            Self::BisamTanh => "BiSAM (tanh)",
            Self::Random => "random",
        }
    }

    /// Every direction.
    pub const ALL: [Self; 4] = [Self::Sam, Self::Bisam, Self::BisamTanh, Self::Random];
}

/// Means over all samples at the perturbed weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The direction.
    pub direction: Direction,
    /// Norm of the perturbation.
    pub rho: f32,
    /// Cross-entropy. Less that at the weights, it is the m-sharpness: the worst case to first order along SAM's direction, the
    /// average case along random ones.
    pub loss: f64,
    /// Share of wrongly classified samples.
    pub error: f64,
    /// Samples classified correctly at the weights and wrongly at the perturbed ones.
    pub flipped: usize,
}

/// Means over all samples on a plane through the weights: θ + a·d₁ + b·d₂ with random directions in the scale of each filter (Li
/// et al. 2018), which leave parameters of rank 0 and 1 where they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plane {
    /// The values of a and b, from −1 to 1.
    pub steps: Vec<f64>,
    /// Cross-entropy, a row for every b.
    pub loss: Vec<Vec<f64>>,
    /// Share of wrongly classified samples.
    pub error: Vec<Vec<f64>>,
}

/// What a [`Probe`] finds around one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sharpness {
    /// The model.
    pub model: PathBuf,
    /// Samples looked at.
    pub samples: usize,
    /// How many are classified correctly.
    pub correct: usize,
    /// Cross-entropy at the weights.
    pub loss: f64,
    /// By direction, then ρ.
    pub points: Vec<Point>,
    /// The plane, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plane: Option<Plane>,
}

/// Loss and correctness of samples.
#[derive(Debug, Clone, Default)]
struct Scores {
    loss: f64,
    correct: Vec<bool>,
}

impl Scores {
    fn of(logits: &[f32], classes: usize, labels: &[i64]) -> Self {
        let mut scores = Self::default();
        for (row, label) in logits.chunks(classes).zip(labels) {
            let (loss, prediction) = judge(row, *label as usize);
            scores.loss += loss;
            scores.correct.push(prediction as i64 == *label);
        }
        scores
    }

    fn hits(&self) -> usize {
        self.correct.iter().filter(|c| **c).count()
    }
}

/// Looks around the weights of a model. The recipe names the data and how they are fed, the samples of a batch, each of which has a
/// perturbation of its own (the m of m-sharpness), and the bounds, metric and label smoothing of the perturbation.
///
/// # Errors
/// Anything that is wrong with model or data.
pub fn sharpness(
    engine: &Engine,
    model: &Path,
    recipe: &Recipe,
    probe: &Probe,
    note: &mut dyn FnMut(&str),
) -> Result<Sharpness> {
    let imported = import(model)?;
    let graph = &imported.graph;
    let mut recipe = recipe.clone();
    recipe.know_classes(&imported);
    let recipe = &recipe;
    let load = |set: Dataset, inputs, normalization| {
        let set = set.sample(probe.samples.min(set.len()), probe.seed)?;
        let options =
            LoaderOptions { batch_size: recipe.batch_size, short: ShortBatch::Drop, ..LoaderOptions::default() };
        Loader::new(Arc::new(set), inputs, normalization, options)
    };
    let ends = Ends { loss: None, ..recipe.ends() };
    let Opened { prepared, loader, classes, .. } =
        open_split(engine, graph, recipe, ends, &probe.split, note, load).map_err(|e| e.in_file(model))?;
    let classes = classes.len();
    let step = StepOptions { micro_batch: None, seed: probe.seed, ..settings(&recipe.step) };
    let options =
        |direction| StepOptions { ascent: Some(ascent(direction)), mu: mu(direction, &recipe.step), ..step.clone() };
    let mut found = Sharpness {
        model: model.to_owned(),
        samples: loader.batches_per_epoch() * recipe.batch_size,
        correct: 0,
        loss: 0.0,
        points: Vec::new(),
        plane: None,
    };
    for direction in [Direction::Sam, Direction::Bisam, Direction::BisamTanh] {
        let options = options(direction);
        let stages = build_in(&prepared, &options, probe.mode).map_err(|e| e.in_file(model))?;
        let mut program = Program::new(engine, &stages, &options)?;
        let mut evaluation = Evaluation::default();
        program.add_evaluation(&mut evaluation, &stages)?;
        let mut around = Around { program: &mut program, evaluation: &mut evaluation, classes, seed: probe.seed };
        let (at, mut points) = around.line(&loader, direction, &probe.rhos)?;
        (found.correct, found.loss) = (at.hits(), at.loss / found.samples as f64);
        found.points.append(&mut points);
        if direction == Direction::Sam {
            found.points.append(&mut around.line(&loader, Direction::Random, &probe.rhos)?.1);
            if probe.plane > 0 {
                found.plane = Some(around.plane(&loader, probe.plane)?);
            }
        }
    }
    Ok(found)
}

/// What of a run's step describes its perturbation.
fn settings(step: &StepOptions) -> StepOptions {
    StepOptions {
        alpha: step.alpha,
        adaptive: step.adaptive,
        adaptive_all: step.adaptive_all,
        eta: step.eta,
        label_smoothing: step.label_smoothing,
        kernels: step.kernels,
        ..StepOptions::default()
    }
}

fn ascent(direction: Direction) -> Ascent {
    match direction {
        Direction::Sam | Direction::Random => Ascent::CrossEntropy,
        Direction::Bisam => Ascent::NegLog,
        Direction::BisamTanh => Ascent::Tanh,
    }
}

/// The run's own μ for its own bound, the usual one for the others.
fn mu(direction: Direction, step: &StepOptions) -> f32 {
    let ascent = ascent(direction);
    if step.ascent == Some(ascent) {
        return step.mu;
    }
    let mut usual = StepOptions::default();
    usual.choose(Some(ascent), None);
    usual.mu
}

/// A program at the weights, and its logits.
struct Around<'a> {
    program: &'a mut Program,
    evaluation: &'a mut Evaluation,
    classes: usize,
    seed: u64,
}

impl Around<'_> {
    /// At the weights, and along a direction from them.
    fn line(&mut self, loader: &Loader, direction: Direction, rhos: &[f32]) -> Result<(Scores, Vec<Point>)> {
        let mut at = Scores::default();
        let mut moved = vec![(Scores::default(), 0); rhos.len()];
        let params = self.program.state()?.params;
        for batch in loader.epoch(0, 0) {
            let batch = batch?;
            let outputs = self.program.evaluate(self.evaluation, &bytes(&batch), &batch.labels)?;
            let here = Scores::of(&outputs.logits, self.classes, &batch.labels);
            let unit = match direction {
                Direction::Random => self.noise(batch.index as u64, &params),
                _ => {
                    self.program.ascend(&bytes(&batch), &batch.labels)?;
                    Vec::new()
                }
            };
            for (rho, (scores, flipped)) in rhos.iter().zip(&mut moved) {
                match direction {
                    Direction::Random => {
                        let norm = unit.iter().flatten().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                        let scale = (f64::from(*rho) / norm.max(f64::MIN_POSITIVE)) as f32;
                        self.program.set_perturbed(&along(&params, &[(scale, &unit)]))?;
                    }
                    _ => self.program.perturb(*rho)?,
                }
                let there = self.perturbed(&batch)?;
                *flipped += here.correct.iter().zip(&there.correct).filter(|(a, b)| **a && !**b).count();
                scores.loss += there.loss;
                scores.correct.extend(there.correct);
            }
            at.loss += here.loss;
            at.correct.extend(here.correct);
            loader.recycle(batch);
        }
        let n = at.correct.len().max(1) as f64;
        let point = |(rho, (scores, flipped)): (&f32, &(Scores, usize))| Point {
            direction,
            rho: *rho,
            loss: scores.loss / n,
            error: 1.0 - scores.hits() as f64 / n,
            flipped: *flipped,
        };
        let points = rhos.iter().zip(&moved).map(point).collect();
        Ok((at, points))
    }

    /// On a plane with `side` places along each side.
    fn plane(&mut self, loader: &Loader, side: usize) -> Result<Plane> {
        let params = self.program.state()?.params;
        let directions = [0, 1].map(|i| {
            let mut noise = self.noise(u64::MAX - i, &params);
            let slots = self.program.params();
            scale_by_filters(&mut noise, &params, slots, 1.0);
            let small = noise.iter_mut().zip(slots).filter(|(_, p)| p.shape.len() < 2);
            small.for_each(|(n, _)| n.fill(0.0));
            noise
        });
        let steps: Vec<f64> = (0..side).map(|i| 2.0 * i as f64 / (side.max(2) - 1) as f64 - 1.0).collect();
        let mut plane = Plane { steps: steps.clone(), loss: Vec::new(), error: Vec::new() };
        for b in &steps {
            let (mut losses, mut errors) = (Vec::new(), Vec::new());
            for a in &steps {
                let moves = [(*a as f32, &directions[0]), (*b as f32, &directions[1])];
                self.program.set_perturbed(&along(&params, &moves.map(|(s, d)| (s, d.as_slice()))))?;
                let mut all = Scores::default();
                for batch in loader.epoch(0, 0) {
                    let batch = batch?;
                    let scores = self.perturbed(&batch)?;
                    all.loss += scores.loss;
                    all.correct.extend(scores.correct);
                    loader.recycle(batch);
                }
                let n = all.correct.len().max(1) as f64;
                losses.push(all.loss / n);
                errors.push(1.0 - all.hits() as f64 / n);
            }
            plane.loss.push(losses);
            plane.error.push(errors);
        }
        Ok(plane)
    }

    fn perturbed(&mut self, batch: &Batch) -> Result<Scores> {
        let outputs = self.program.evaluate_perturbed(self.evaluation, &bytes(batch), &batch.labels)?;
        Ok(Scores::of(&outputs.logits, self.classes, &batch.labels))
    }

    /// Standard normal noise, as the parameters.
    fn noise(&self, number: u64, params: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let sizes: Vec<usize> = params.iter().map(Vec::len).collect();
        let options = StepOptions { seed: self.seed, ..StepOptions::default() };
        split(&options.noise(number, 0, sizes.iter().sum()), &sizes)
    }
}

/// θ plus multiples of directions.
fn along(params: &[Vec<f32>], moves: &[(f32, &[Vec<f32>])]) -> Vec<Vec<f32>> {
    let mut moved = params.to_vec();
    for (scale, direction) in moves {
        for (w, d) in moved.iter_mut().flatten().zip(direction.iter().flatten()) {
            *w += scale * d;
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_cross_entropy_and_first_largest() {
        let s = Scores::of(&[0.0, 0.0, 1.0, 0.0, 2.0, 2.0], 2, &[0, 0, 1]);
        assert_eq!(s.correct, [true, true, false]);
        assert!((s.loss - (2.0 * 2f64.ln() + (1.0 + (-1f64).exp()).ln())).abs() < 1e-9, "{}", s.loss);
    }

    #[test]
    fn moves_add_up() {
        let params = vec![vec![1.0, 2.0], vec![3.0]];
        let d = vec![vec![1.0, 0.0], vec![2.0]];
        assert_eq!(along(&params, &[(0.5, &d), (1.0, &d)]), [vec![2.5, 2.0], vec![6.0]]);
    }
}
