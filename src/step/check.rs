//! A model's gradient against finite differences of its loss, parameter by parameter.
//!
//! For a parameter w and random signs d, ⟨∇L, d⟩ is compared with the fourth-order central difference
//! (8(L(w + hd) − L(w − hd)) − (L(w + 2hd) − L(w − 2hd)))/12h. The error is measured against ‖∇L‖, the root mean square of
//! ⟨∇L, d⟩ over all signs. Rounding in f32 spoils small steps; curvature, and kinks such as Relu's, spoil large ones. So
//! several h are tried, the two neighbours that agree best count, and a direction along which no two agree decides nothing.

use super::gradient::{Objective, gradient};
use crate::adapt::Mode;
use crate::error::{Error, Result};
use crate::ir::{DType, Graph, Source, Tensor, Type, ValueId};
use crate::trace::{Evaluator, Sizes};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// Steps 2h tried, each half of the one before.
const STEPS: usize = 6;

/// The largest step 2h, as a share of the root mean square of the parameter's elements.
const LARGEST: f64 = 0.1;

/// What stands for the root mean square of a parameter that is smaller than this, a zero bias say.
const SMALLEST_SCALE: f64 = 0.1;

/// The share of the largest parameter's ‖∇L‖ below which a gradient drowns in the rounding of the loss.
const FLOOR: f64 = 1e-3;

/// Runs a graph on named inputs.
pub type Run<'a> = dyn FnMut(&[(&str, &Tensor)]) -> Result<Vec<Tensor>> + 'a;

/// The graphs and random inputs of a check.
#[derive(Debug, Clone)]
pub struct Check {
    /// Loss, logits and every gradient.
    pub gradient: Graph,
    /// The loss alone.
    pub loss: Graph,
    /// A value for every input of both, parameters included.
    pub feeds: BTreeMap<String, Tensor>,
    /// Every parameter with its gradient's place among the outputs of `gradient`; none where it is zero.
    pub parameters: Vec<(String, Option<usize>)>,
}

/// What came out for one parameter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the parameter.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// ‖∇L‖.
    pub norm: f64,
    /// The largest error of the directions that count, relative to the norm.
    pub error: Option<f64>,
    /// Directions that count.
    pub directions: usize,
    /// Directions that decide nothing: rounding or a kink is in the way.
    pub skipped: usize,
    /// The verdict.
    pub verdict: Verdict,
}

/// Whether a gradient is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Within tolerance.
    Right,
    /// Off.
    Off,
    /// No direction counts.
    Undecided,
}

impl Check {
    /// Differentiates the cross-entropy of `graph` and draws inputs and labels.
    ///
    /// # Errors
    /// As [`gradient`].
    pub fn new(graph: &Graph, sizes: &Sizes, mode: Mode, seed: u64, run: &dyn Evaluator) -> Result<Self> {
        let made = gradient(graph, sizes, mode, &Objective::CrossEntropy, (true, false), run)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut feeds = BTreeMap::new();
        let g = made.graph;
        let classes = logits_classes(&g)?;
        for v in &g.inputs {
            let name = g[*v].name.clone();
            let limit = if Some(&name) == made.labels.as_ref() { Some(classes) } else { table_size(&g, *v) };
            feeds.insert(name, random(&mut rng, g.ty(*v)?, limit));
        }
        for v in g.value_ids() {
            if let Source::Param(t) | Source::Stat(t) = &g[v].source {
                feeds.insert(g[v].name.clone(), t.clone());
            }
        }
        let names: Vec<&str> = g.outputs.iter().map(|v| g[*v].name.as_str()).collect();
        let trained: HashSet<&str> = g.params().into_iter().map(|v| g[v].name.as_str()).collect();
        let place = |output: Option<String>| output.and_then(|o| names.iter().position(|n| *n == o));
        let of = made.of.into_iter().filter(|(name, _, _)| trained.contains(name.as_str()));
        let parameters = of.map(|(name, _, output)| (name, place(output))).collect();
        let mut loss = g.clone();
        loss.outputs.truncate(1);
        loss.remove_dead_nodes();
        Ok(Self { gradient: g, loss, feeds, parameters })
    }

    /// Compares every parameter's gradient along `directions` random directions.
    ///
    /// # Errors
    /// A graph that does not run, or a loss that is not finite.
    pub fn rows(
        &self,
        gradient: &mut Run<'_>,
        loss: &mut Run<'_>,
        directions: usize,
        tolerance: f64,
        seed: u64,
    ) -> Result<Vec<Row>> {
        let feeds: Vec<(&str, &Tensor)> = self.feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let outputs = gradient(&feeds)?;
        if !outputs.first().is_some_and(|l| l.to_f64().iter().all(|v| v.is_finite())) {
            return Err(Error::new("the loss of random inputs is not finite").hint("try another --seed"));
        }
        let mut all = Vec::new();
        for (name, place) in &self.parameters {
            let Some(w) = self.feeds.get(name) else { continue };
            let g = place.and_then(|i| outputs.get(i)).map_or_else(|| vec![0.0; w.len()], Tensor::to_f64);
            all.push((name, w, g));
        }
        let norm = |g: &[f64]| g.iter().map(|v| v * v).sum::<f64>().sqrt();
        let floor = FLOOR * all.iter().map(|(_, _, g)| norm(g)).fold(0.0, f64::max);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 1);
        let mut rows = Vec::with_capacity(all.len());
        for (name, w, g) in all {
            let scale = norm(&g).max(floor).max(f64::MIN_POSITIVE);
            let mut errors = Vec::new();
            for _ in 0..directions {
                let d: Vec<f64> = (0..w.len()).map(|_| if rng.random_range(0..2) == 0 { -1.0 } else { 1.0 }).collect();
                let exact: f64 = g.iter().zip(&d).map(|(g, d)| g * d).sum();
                let (measured, doubt) = self.slope(name, w, &d, loss)?;
                // A slope larger than the gradient allows is no reason for doubt.
                if doubt <= tolerance * scale.max(measured.abs()) {
                    errors.push((measured - exact).abs() / scale);
                }
            }
            let error = errors.iter().copied().reduce(f64::max);
            let verdict = match error {
                None => Verdict::Undecided,
                Some(e) if e <= 2.0 * tolerance => Verdict::Right,
                Some(_) => Verdict::Off,
            };
            rows.push(Row {
                name: name.clone(),
                shape: w.shape().to_vec(),
                norm: norm(&g),
                error,
                directions: errors.len(),
                skipped: directions - errors.len(),
                verdict,
            });
        }
        Ok(rows)
    }

    /// The loss's slope along `d`, and the difference between the two step sizes that agree best.
    fn slope(&self, name: &str, w: &Tensor, d: &[f64], loss: &mut Run<'_>) -> Result<(f64, f64)> {
        let values = w.to_f64();
        let rms = (values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64).sqrt();
        let largest = LARGEST * rms.max(SMALLEST_SCALE);
        let mut at = |step: f64| -> Result<f64> {
            let moved: Vec<f64> = values.iter().zip(d).map(|(v, d)| v + step * d).collect();
            let moved = Tensor::from_f64(w.dtype(), w.shape(), &moved);
            let feeds: Vec<(&str, &Tensor)> =
                self.feeds.iter().map(|(n, t)| (n.as_str(), if n == name { &moved } else { t })).collect();
            let value = loss(&feeds)?.first().and_then(|t| t.to_f64().first().copied());
            value.ok_or_else(|| Error::new("the loss has no value"))
        };
        let steps: Vec<f64> = (0..STEPS).map(|k| largest / f64::from(1u32 << k)).collect();
        let differences = steps.iter().map(|h| Ok(at(*h)? - at(-h)?)).collect::<Result<Vec<f64>>>()?;
        let slopes: Vec<f64> =
            (1..STEPS).map(|k| (8.0 * differences[k] - differences[k - 1]) / (12.0 * steps[k])).collect();
        let pairs = slopes.windows(2).map(|p| (p[0], (p[0] - p[1]).abs()));
        Ok(pairs.filter(|p| p.1.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((f64::NAN, f64::INFINITY)))
    }
}

/// Number of classes: the columns of the one-hot labels are as many as those of the second output.
fn logits_classes(graph: &Graph) -> Result<usize> {
    let logits = graph.outputs.get(1).copied();
    let shape = logits.map(|v| graph.ty(v)).transpose()?.map(|t| t.shape.clone()).unwrap_or_default();
    shape.get(1).copied().ok_or_else(|| Error::new("the model has no logits"))
}

/// For an integer input that picks rows of a table (token ids, say), their number.
fn table_size(graph: &Graph, input: ValueId) -> Option<usize> {
    let rows = |n: &crate::ir::Node| {
        let table = n.input(0).and_then(|t| graph[t].ty.as_ref())?;
        (n.is("Gather") && n.input(1) == Some(input)).then(|| table.shape.first().copied()).flatten()
    };
    graph.nodes.iter().filter_map(rows).min()
}

/// Normally distributed floats; integers below `limit`, or ones (a mask that hides nothing).
fn random(rng: &mut ChaCha8Rng, ty: &Type, limit: Option<usize>) -> Tensor {
    let mut normal = || {
        let (u, v): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random_range(0.0..1.0));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    let values: Vec<f64> = if ty.dtype.is_float() {
        (0..ty.len()).map(|_| normal()).collect()
    } else if let Some(limit) = limit.filter(|n| *n > 0 && ty.dtype != DType::Bool) {
        (0..ty.len()).map(|_| rng.random_range(0..limit) as f64).collect()
    } else {
        vec![1.0; ty.len()]
    };
    Tensor::from_f64(ty.dtype, &ty.shape, &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(loss: impl Fn(&[f64]) -> f64, gradient: &[f64]) -> Row {
        let w = Tensor::from_f64(DType::F32, &[2], &[0.5, -1.0]);
        let check = Check {
            gradient: Graph::default(),
            loss: Graph::default(),
            feeds: BTreeMap::from([("w".into(), w)]),
            parameters: vec![("w".into(), Some(1))],
        };
        let value = |feeds: &[(&str, &Tensor)]| Tensor::scalar(DType::F32, loss(&feeds[0].1.to_f64()));
        let g = Tensor::from_f64(DType::F32, &[2], gradient);
        let mut both = |feeds: &[(&str, &Tensor)]| Ok(vec![value(feeds), g.clone()]);
        let mut alone = |feeds: &[(&str, &Tensor)]| Ok(vec![value(feeds)]);
        check.rows(&mut both, &mut alone, 3, 1e-2, 0).expect("runs").remove(0)
    }

    #[test]
    fn a_right_gradient_passes_and_a_wrong_one_does_not() {
        let loss = |w: &[f64]| w[0].powi(3) + (2.0 * w[1]).sin();
        let right = [3.0 * 0.25, 2.0 * (-2.0f64).cos()];
        assert_eq!(check(loss, &right).verdict, Verdict::Right);
        assert_eq!(check(loss, &[right[0], -right[1]]).verdict, Verdict::Off);
        assert_eq!(check(loss, &[0.0, 0.0]).verdict, Verdict::Off);
    }
}
