//! A model's gradient against finite differences of its loss, parameter by parameter.
//!
//! For a parameter w and random signs d, ⟨∇L, d⟩ is compared with the fourth-order central difference
//! (8(L(w + hd) − L(w − hd)) − (L(w + 2hd) − L(w − 2hd)))/12h. The error is measured against ‖∇L‖, the root mean square of
//! ⟨∇L, d⟩ over all signs. The logits come in f32, the loss of them is computed in f64. Rounding still spoils small steps;
//! curvature, and kinks such as Relu's, spoil large ones. So several h are tried, from the largest, in windows of neighbours: the range of
//! a window's slopes is how far it can be trusted, a window whose range is too large tells nothing, and the gradient may choose
//! the window that suits it best. What then is further outside the range than the range is wide is held against it. A direction without any window that
//! tells something is skipped. Accidents happen along one direction, but a wrong gradient is off along most: the median decides.

use super::gradient::{Classes, Objective, Request, gradient};
use super::options::Kernels;
use crate::adapt::Mode;
use crate::error::{Error, Result};
use crate::ir::{DType, Graph, Source, Tensor, Type, ValueId};
use crate::trace::{Evaluator, Sizes};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// Steps 2h tried, each half of the one before.
const STEPS: usize = 10;

/// The largest step 2h, as a share of the root mean square of the parameter's elements.
const LARGEST: f64 = 0.05;

/// What stands for the root mean square of a parameter that is smaller than this, a zero bias say.
const SMALLEST_SCALE: f64 = 0.1;

/// The share of the largest parameter's ‖∇L‖ below which a gradient drowns in the rounding of the loss.
const FLOOR: f64 = 1e-3;

/// Neighbouring step sizes in a window.
const WINDOW: usize = 4;

/// The largest range of a window, relative to the gradient's norm, with which it still tells something.
const BLIND: f64 = 0.1;

/// Runs a graph on named inputs.
pub type Run<'a> = dyn FnMut(&[(&str, &Tensor)]) -> Result<Vec<Tensor>> + 'a;

/// The graphs and random inputs of a check.
#[derive(Debug, Clone)]
pub struct Check {
    /// Loss, logits and every gradient.
    pub gradient: Graph,
    /// The logits alone.
    pub logits: Graph,
    /// The input that takes the labels.
    pub labels: String,
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
    /// The median error of the directions that count, relative to the norm.
    pub error: Option<f64>,
    /// The median range of the windows, relative to the norm: how far the error can be trusted.
    pub doubt: Option<f64>,
    /// Directions that count.
    pub directions: usize,
    /// Directions that tell nothing: rounding or a kink is in the way.
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

/// Slopes of neighbouring step sizes beside the gradient's.
struct Window {
    /// Distance between their mean and the gradient's.
    error: f64,
    /// Largest less smallest.
    range: f64,
    /// How much further the gradient's is outside the range than the range is wide.
    excess: f64,
}

impl Check {
    /// Differentiates the cross-entropy of `graph` and draws inputs and labels.
    ///
    /// # Errors
    /// As [`gradient`].
    pub fn new(
        graph: &Graph,
        logits: Option<&str>,
        sizes: &Sizes,
        mode: Mode,
        seed: u64,
        run: &dyn Evaluator,
    ) -> Result<Self> {
        let (objective, kernels) = (Objective::CrossEntropy(logits.map(str::to_owned)), Kernels::Plain);
        let request = Request { mode, objective, params: true, inputs: false, kernels, parts: Vec::new() };
        let made = gradient(graph, sizes, &request, run)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut feeds = BTreeMap::new();
        let g = made.graph;
        let Some(Classes { labels, logits, .. }) = made.classes else {
            return Err(Error::new("the loss takes no labels"));
        };
        let classes = g.ty(logits)?.shape[1];
        for v in &g.inputs {
            let name = g[*v].name.clone();
            let limit = if name == labels { Some(classes) } else { table_size(&g, *v) };
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
        let mut alone = g.clone();
        alone.outputs = vec![logits];
        alone.remove_dead_nodes();
        Ok(Self { gradient: g, logits: alone, labels, feeds, parameters })
    }

    /// Compares every parameter's gradient along `directions` random directions.
    ///
    /// # Errors
    /// A graph that does not run, or a loss that is not finite.
    pub fn rows(
        &self,
        gradient: &mut Run<'_>,
        logits: &mut Run<'_>,
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
            let (mut errors, mut doubts, mut excesses) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..directions {
                let d: Vec<f64> = (0..w.len()).map(|_| if rng.random_range(0..2) == 0 { -1.0 } else { 1.0 }).collect();
                let exact: f64 = g.iter().zip(&d).map(|(g, d)| g * d).sum();
                if let Some(window) = self.compare(name, w, &d, (exact, scale, tolerance), logits)? {
                    errors.push(window.error / scale);
                    doubts.push(window.range / scale);
                    excesses.push(window.excess / scale);
                }
            }
            let verdict = match median(&mut excesses) {
                None => Verdict::Undecided,
                Some(excess) if excess <= tolerance => Verdict::Right,
                Some(_) => Verdict::Off,
            };
            let (directions, skipped) = (errors.len(), directions - errors.len());
            let (error, doubt) = (median(&mut errors), median(&mut doubts));
            rows.push(Row {
                name: name.clone(),
                shape: w.shape().to_vec(),
                norm: norm(&g),
                error,
                doubt,
                directions,
                skipped,
                verdict,
            });
        }
        Ok(rows)
    }

    /// The window of step sizes along `d` that suits the slope `exact` best; none that tells anything is none.
    fn compare(
        &self,
        name: &str,
        w: &Tensor,
        d: &[f64],
        (exact, scale, tolerance): (f64, f64, f64),
        logits: &mut Run<'_>,
    ) -> Result<Option<Window>> {
        let values = w.to_f64();
        let rms = (values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64).sqrt();
        let largest = LARGEST * rms.max(SMALLEST_SCALE);
        let mut at = |step: f64| -> Result<f64> {
            let moved: Vec<f64> = values.iter().zip(d).map(|(v, d)| v + step * d).collect();
            let moved = Tensor::from_f64(w.dtype(), w.shape(), &moved);
            let feeds: Vec<(&str, &Tensor)> =
                self.feeds.iter().map(|(n, t)| (n.as_str(), if n == name { &moved } else { t })).collect();
            let outputs = logits(&feeds)?;
            let labels = self.feeds.get(&self.labels).and_then(Tensor::to_i64).unwrap_or_default();
            outputs
                .first()
                .map(|t| cross_entropy(&t.to_f64(), &labels))
                .ok_or_else(|| Error::new("there are no logits"))
        };
        let (mut differences, mut slopes): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        let mut best: Option<Window> = None;
        for k in 0..STEPS {
            let h = largest / f64::from(1u32 << k);
            differences.push(at(h)? - at(-h)?);
            let [.., wide, narrow] = differences.as_slice() else { continue };
            slopes.push((8.0 * narrow - wide) / (12.0 * h));
            let Some(recent) = slopes.len().checked_sub(WINDOW).map(|first| &slopes[first..]) else { continue };
            let (low, high) = recent.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |r, s| (r.0.min(*s), r.1.max(*s)));
            let mean = recent.iter().sum::<f64>() / WINDOW as f64;
            let range = high - low;
            let excess = ((low - exact).max(exact - high) - range).max(0.0);
            let window = Window { error: (mean - exact).abs(), range, excess };
            // A slope larger than the gradient allows is no reason to look away.
            let tells = window.range <= BLIND * scale.max(mean.abs());
            if tells && best.as_ref().is_none_or(|b| (window.excess, window.range) < (b.excess, b.range)) {
                best = Some(window);
            }
            if best.as_ref().is_some_and(|b| b.error.max(b.range) <= tolerance * scale) {
                break;
            }
        }
        Ok(best)
    }
}

/// The middle one; of two, the larger.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Mean cross-entropy of logits [N, K] against `labels` [N].
fn cross_entropy(logits: &[f64], labels: &[i64]) -> f64 {
    let n = labels.len().max(1);
    let classes = (logits.len() / n).max(1);
    let one = |(row, label): (&[f64], &i64)| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|z| (z - largest).exp()).sum();
        largest + sum.ln() - row.get(*label as usize).copied().unwrap_or(f64::NAN)
    };
    logits.chunks(classes).zip(labels).map(one).sum::<f64>() / n as f64
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

    /// The logits (0, f) of label 0 have the loss ln(1 + e^f).
    fn check(f: impl Fn(&[f64]) -> f64, gradient: impl Fn(f64) -> [f64; 2]) -> Verdict {
        let w = Tensor::from_f64(DType::F32, &[2], &[0.5, -1.0]);
        let at = |feeds: &[(&str, &Tensor)]| feeds.iter().find(|(n, _)| *n == "w").map_or(0.0, |(_, t)| f(&t.to_f64()));
        let check = Check {
            gradient: Graph::default(),
            logits: Graph::default(),
            labels: "labels".into(),
            feeds: BTreeMap::from([("w".into(), w), ("labels".into(), Tensor::ints(&[0]))]),
            parameters: vec![("w".into(), Some(1))],
        };
        let mut both = |feeds: &[(&str, &Tensor)]| {
            let slope = 1.0 / (1.0 + (-at(feeds)).exp());
            let g = gradient(slope);
            Ok(vec![Tensor::scalar(DType::F32, 0.0), Tensor::from_f64(DType::F32, &[2], &g)])
        };
        let mut logits = |feeds: &[(&str, &Tensor)]| Ok(vec![Tensor::from_f64(DType::F32, &[1, 2], &[0.0, at(feeds)])]);
        check.rows(&mut both, &mut logits, 3, 1e-2, 0).expect("runs").remove(0).verdict
    }

    #[test]
    fn a_right_gradient_passes_and_a_wrong_one_does_not() {
        let f = |w: &[f64]| w[0].powi(3) + (2.0 * w[1]).sin();
        let (a, b) = (3.0 * 0.25, 2.0 * (-2.0f64).cos());
        assert_eq!(check(f, |s| [s * a, s * b]), Verdict::Right);
        assert_eq!(check(f, |s| [s * a, -s * b]), Verdict::Off);
        assert_eq!(check(f, |s| [s * a, 0.9 * s * b]), Verdict::Off);
        assert_eq!(check(f, |_| [0.0, 0.0]), Verdict::Off);
    }

    #[test]
    fn noise_alone_decides_nothing() {
        let f = |w: &[f64]| (1e9 * w[0]).sin();
        assert_eq!(check(f, |_| [1.0, 0.0]), Verdict::Undecided);
    }
}
