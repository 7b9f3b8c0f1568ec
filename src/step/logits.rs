//! The logits of a graph as one value [N, K], made where the file has none, and what there is to say about them.

use crate::adapt::{Found, Meaning, find_logits};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{DType, Declared, Graph, Source, Tensor, Type, ValueId};
use crate::onnx::{Weights, emit};
use crate::trace::{Evaluator, encode, probe};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// What is added to a probability before its logarithm is taken: nothing to any that f32 training tells from zero.
const TINY: f64 = 1e-30;

/// How far the sum of a row of probabilities may be from one.
const TOLERANCE: f32 = 1e-4;

/// How the logits follow from the file's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// They are that value, which nothing was found behind.
    Scores,
    /// They are that value, and the output is their softmax.
    Softmax,
    /// It is the log-odds z of class 1 against class 0: they are [0, z].
    LogOdds,
    /// It is the log-odds of class 0 against class 1, or of its opposite: they are [z, 0].
    LogOddsOfFirst,
    /// It is the probabilities of the classes: they are its logarithm.
    Probabilities,
    /// It is the probability p of class 1: they are [log (1 − p), log p].
    Probability,
}

/// Where the logits come from, for people to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The output that was looked at, or the value that was asked for.
    pub output: String,
    /// The value of the file that the logits are, or are made of.
    pub value: String,
    /// The operators between, from the output inwards.
    pub behind: Vec<String>,
    /// How the logits follow from the value.
    pub form: Form,
    /// Number of classes.
    pub classes: usize,
    /// Other outputs that class scores could be.
    pub others: Vec<String>,
}

impl Origin {
    /// Whether the logits are the output's own numbers, which only data can tell from probabilities.
    pub fn unproven(&self) -> bool {
        self.form == Form::Scores
    }

    /// Whether a last layer alone gives the logits, or one number that several can take the place of.
    pub fn has_a_layer_of_classes(&self) -> bool {
        matches!(self.form, Form::Scores | Form::Softmax) || self.is_one_number()
    }

    /// Whether the logits are made of one number a sample that no sigmoid makes a probability.
    pub fn is_one_number(&self) -> bool {
        self.form == Form::LogOdds && self.behind.iter().all(|op| op == "Identity")
    }

    /// Whether these logits, which are not the values of a last layer alone, are those of `classes` classes.
    ///
    /// # Errors
    /// When they are not: another number needs another model.
    pub fn of_classes(&self, classes: usize) -> Result<()> {
        if self.classes == classes {
            return Ok(());
        }
        let Self { output, classes: has, .. } = self;
        let cause = format!("output `{output}` tells {has} classes apart, and cannot be given {classes}");
        Err(Error::new(cause).hint("export the model with one logit for each class"))
    }

    /// What is worth saying before the logits are used: nothing about an output that is the logits.
    pub fn note(&self) -> Option<String> {
        let Self { output, value, classes, .. } = self;
        let through =
            if self.behind.is_empty() { String::new() } else { format!(" (through {})", self.behind.join(", ")) };
        let what = match self.form {
            Form::Scores if self.behind.iter().all(|op| op == "Identity") => None,
            Form::Scores => Some(format!(
                "`{value}` behind output `{output}`{through} is taken for the logits of {classes} classes"
            )),
            Form::Softmax => Some(format!(
                "output `{output}` is probabilities of {classes} classes{through}: `{value}` behind them is the logits"
            )),
            Form::LogOdds if self.is_one_number() => Some(format!(
                "output `{output}` is one number a sample: it is taken for the log-odds of class 1 of two"
            )),
            Form::LogOdds => Some(format!(
                "output `{output}` is probabilities of two classes{through}: `{value}` behind them is the log-odds of class 1"
            )),
            Form::LogOddsOfFirst => Some(format!(
                "output `{output}` is probabilities of two classes{through}: `{value}` behind them is the log-odds of class 0"
            )),
            Form::Probabilities => Some(format!(
                "output `{output}` is probabilities of {classes} classes, and no logits were found behind them: their logarithms are taken"
            )),
            Form::Probability => Some(format!(
                "output `{output}` is one number from 0 to 1 a sample, and no log-odds were found behind it: it is taken for the probability of class 1 of two"
            )),
        };
        let others = (!self.others.is_empty()).then(|| {
            let others = self.others.iter().map(|o| format!("`{o}`")).collect::<Vec<_>>().join(", ");
            format!("output `{output}` is taken for the class scores, not {others} (--logits chooses)")
        });
        match (what, others) {
            (Some(a), Some(b)) => Some(format!("{a}; {b}")),
            (a, b) => a.or(b),
        }
    }
}

/// Finds the logits of a graph with types and makes them one value [N, K] of it, and an output, behind those that it has.
///
/// # Errors
/// As [`find_logits`]; an output of one number a sample that is neither a probability nor comes from a linear layer.
pub(super) fn logits(
    graph: &mut Graph,
    batch: usize,
    name: Option<&str>,
    run: &dyn Evaluator,
) -> Result<(ValueId, Origin)> {
    let found = find_logits(graph, batch, name)?;
    let columns = graph.ty(found.value)?.len() / batch.max(1);
    let form = match found.meaning {
        Meaning::Softmax => Form::Softmax,
        Meaning::Sigmoid { negated: false } | Meaning::Pair { flipped: false } => Form::LogOdds,
        Meaning::Sigmoid { negated: true } | Meaning::Pair { flipped: true } => Form::LogOddsOfFirst,
        Meaning::Scores if found.linear => {
            if columns == 1 {
                Form::LogOdds
            } else {
                Form::Scores
            }
        }
        Meaning::Scores => {
            let rows = at_random_inputs(graph, found.value, run).unwrap_or_default();
            match columns {
                1 if within(&rows) => Form::Probability,
                1 if name.is_some() => Form::LogOdds,
                1 => return Err(no_score(graph, &found)),
                _ if are_probabilities(&rows, columns) => Form::Probabilities,
                _ => Form::Scores,
            }
        }
    };
    make(graph, &found, batch, columns, form)
}

fn no_score(graph: &Graph, found: &Found) -> Error {
    let name = &graph[found.output].name;
    Error::new(format!(
        "output `{name}` is one number a sample, but neither a probability nor made by a linear layer: what it says about classes is not known"
    ))
    .hint(format!("name the value that holds the logits with --logits; if this is the log-odds of class 1, --logits '{name}'"))
}

fn make(graph: &mut Graph, found: &Found, batch: usize, columns: usize, form: Form) -> Result<(ValueId, Origin)> {
    let name = |v: ValueId| graph[v].name.clone();
    let mut origin = Origin {
        output: name(found.output),
        value: name(found.value),
        behind: found.through.clone(),
        form,
        classes: columns,
        others: found.others.iter().copied().map(name).collect(),
    };
    let value = found.value;
    let mut b = Builder::new(graph, "logits");
    let z = if b.shape(value).starts_with(&[batch, columns]) { value } else { b.reshape(value, &[batch, columns]) };
    let logits = match form {
        Form::Scores | Form::Softmax => z,
        Form::LogOdds | Form::LogOddsOfFirst => {
            let z = b.reshape(z, &[batch, 1]);
            let zero = b.constant(Tensor::full(b.dtype(z), &[batch, 1], 0.0));
            b.concat(&if form == Form::LogOdds { [zero, z] } else { [z, zero] }, 1)
        }
        Form::Probabilities => logarithm(&mut b, z)?,
        Form::Probability => {
            let p = b.reshape(z, &[batch, 1]);
            let other = b.one_minus(p)?;
            let both = b.concat(&[other, p], 1);
            logarithm(&mut b, both)?
        }
    };
    origin.classes = graph.ty(logits)?.shape[1];
    // Other passes take out of the graph what nothing needs, and what lies inside a pattern that they fuse, but no output.
    if !graph.outputs.contains(&logits) {
        graph.outputs.push(logits);
    }
    Ok((logits, origin))
}

/// log p, which is finite where rounding made p 0 or less, and has no gradient there.
fn logarithm(b: &mut Builder<'_>, p: ValueId) -> Result<ValueId> {
    let p = b.unary("Relu", p);
    let p = b.offset(p, TINY)?;
    Ok(b.unary("Log", p))
}

/// Whether every row of `values` is a set of probabilities: from 0 to 1, and 1 in sum.
fn are_probabilities(values: &[f32], classes: usize) -> bool {
    classes > 1 && within(values) && values.chunks(classes).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < TOLERANCE)
}

/// Whether all values are from 0 to 1.
fn within(values: &[f32]) -> bool {
    !values.is_empty() && values.iter().all(|v| (-TOLERANCE..=1.0 + TOLERANCE).contains(v))
}

/// Refuses logits of real samples, row by row, that are probabilities. One row may be so by chance.
///
/// # Errors
/// When every row of several is from 0 to 1 and 1 in sum.
pub fn refuse_probabilities(origin: &Origin, rows: &[f32], classes: usize) -> Result<()> {
    if !origin.unproven() || rows.len() < 2 * classes || !are_probabilities(rows, classes) {
        return Ok(());
    }
    let cause = format!(
        "output `{}` is probabilities: of each of {} samples they are from 0 to 1 and 1 in sum, but the loss works on logits",
        origin.output,
        rows.len() / classes
    );
    Err(Error::new(cause).hint(
        "name the value that the probabilities are made of with --logits, or export the model without its last softmax",
    ))
}

/// The values of `v` at random inputs.
///
/// # Errors
/// When the graph does not run on them.
fn at_random_inputs(graph: &Graph, v: ValueId, run: &dyn Evaluator) -> Result<Vec<f32>> {
    let mut part = graph.clone();
    part.outputs = vec![v];
    part.remove_dead_nodes();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut feeds: Vec<(String, Tensor)> = Vec::new();
    for input in &part.inputs {
        let ty = part.ty(*input)?;
        let mut draw = |_| rng.random_range(-1.7..1.7);
        let tensor = if ty.dtype.is_float() {
            Tensor::from_f64(ty.dtype, &ty.shape, &(0..ty.len()).map(&mut draw).collect::<Vec<f64>>())
        } else {
            probe(ty)
        };
        feeds.push((part[*input].name.clone(), tensor));
    }
    let read: Vec<ValueId> = part.nodes.iter().flat_map(|n| n.inputs.iter().flatten().copied()).collect();
    for w in part.value_ids().filter(|w| read.contains(w)).collect::<Vec<_>>() {
        // Large weights are passed: written into the model they would be there several times.
        let Some(tensor) = graph.tensor(w).filter(|t| t.dtype() == DType::F32 && t.len() > LARGE) else { continue };
        feeds.push((graph[w].name.clone(), tensor.clone()));
        part.set_source(w, Source::Input(Declared { dtype: DType::F32, dims: None }));
        part[w].ty = Some(Type::new(DType::F32, tensor.shape()));
        part.inputs.push(w);
    }
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let values = run.evaluate(&encode(&emit(&part, Weights::Initializers))?, &feeds)?;
    Ok(values.first().map(Tensor::to_f32).unwrap_or_default())
}

/// Elements from which on a weight is passed to the runtime.
const LARGE: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_probabilities_are_told_from_scores() {
        assert!(are_probabilities(&[0.2, 0.8, 1.0, 0.0], 2));
        assert!(!are_probabilities(&[0.2, 0.8, 1.0, 0.1], 2), "a sum of 1.1");
        assert!(!are_probabilities(&[-0.5, 1.5, 0.5, 0.5], 2), "outside of 0 to 1");
        assert!(!are_probabilities(&[1.0, 1.0], 1), "one class");
        assert!(!are_probabilities(&[f32::NAN, 1.0], 2));
        assert!(!are_probabilities(&[], 2));
    }
}
