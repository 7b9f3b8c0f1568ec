//! The stages that run the model: `grad`, `score`, `eval`.

use super::account::{nothing_learnable, where_gradients_end};
use super::ascent::ascent_loss;
use super::gradient::output;
use super::options::{Ascent, Kernels, StepOptions};
use super::precision::{Precision, round_factors};
use super::prepare::{OwnLoss, Prepared};
use super::{loss, names};
use crate::adapt::{BatchNorm, KEY, Mode, set_mode};
use crate::autodiff::{Keep, differentiate, differentiate_keeping, fuse, lower, lower_batch_norm, lower_uniform};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{DType, Declared, Graph, Source, Tensor, Type, ValueId};
use std::collections::HashSet;

/// One parameter as the stages see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name: an initializer of the file, or the name untying gave it.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The `grad` stage's input.
    pub input: String,
    /// The `grad` stage's output.
    pub output: String,
}

/// A running statistic as the stages see it.
#[derive(Debug, Clone, PartialEq)]
pub struct StatSlot {
    /// Its name, shape, input of `eval` and output of `grad`.
    pub slot: Slot,
    /// How fast it follows the batch's.
    pub rate: Rate,
}

/// How fast a running statistic r follows the statistic s of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// r + a(s − r); a is 1 − ONNX's momentum, for one application of the normalization.
    Share(f32),
    /// The average over all batches.
    Average,
}

impl Rate {
    /// The share of s that moves in after `moves` moves.
    pub fn share(self, moves: u64) -> f32 {
        match self {
            Self::Share(share) => share,
            Self::Average => 1.0 / (moves as f32 + 1.0),
        }
    }
}

/// `grad` with respect to some parameters.
#[derive(Debug, Clone)]
pub struct Subset {
    /// The graph.
    pub grad: Graph,
    /// Which of the parameters, in their order.
    pub chosen: Vec<bool>,
}

/// The graphs that depend on the model, and their interface. `perturb` and `update` depend on lengths only.
#[derive(Debug, Clone)]
pub struct Stages {
    /// (parameters, batch, phase) → loss, correct, gradient, statistics of the batch.
    pub grad: Graph,
    /// `grad` with respect to some of the parameters, for the ascent pass: one of them is drawn in every step.
    pub subsets: Vec<Subset>,
    /// (parameters, batch) → cross-entropy of each sample in training mode, correct; where samples are chosen by it.
    pub score: Option<Graph>,
    /// (parameters, statistics, batch) → logits, where there are some, and the model's own loss, where it is trained on that.
    pub eval: Graph,
    /// Trained parameters, in the order of the file.
    pub params: Vec<Slot>,
    /// Running statistics that training moves.
    pub stats: Vec<StatSlot>,
    /// Whether a batch of one sample has no variance, since some normalization sees one value per channel and sample.
    pub needs_two: bool,
    /// What is worth saying about normalization and randomness, a sentence each.
    pub notes: Vec<String>,
    /// Number of classes; 0 where the model shows no logits beside its own loss.
    pub classes: usize,
    /// Whether the loss is the model's own.
    pub own_loss: bool,
    /// The model's own input for labels, which the batch's labels take the place of.
    pub label_input: Option<String>,
    /// Name and type of the model's inputs.
    pub inputs: Vec<(String, Type)>,
    /// Input of `grad` that takes the labels.
    pub labels: String,
    /// Input of `grad` that takes the phase; none without an ascent pass.
    pub phase: Option<String>,
    /// Input of `grad` and `score` that takes the key of random values, see [`KEY`]; none where nothing is random.
    pub random: Option<String>,
}

impl Stages {
    /// Samples of a batch.
    pub fn batch(&self) -> usize {
        self.inputs.first().map_or(0, |(_, ty)| ty.shape.first().copied().unwrap_or(0))
    }
}

/// Builds `grad` and `eval` from a prepared model.
///
/// # Errors
/// A node without a gradient rule on the way to a parameter, or parameters that are not f32.
pub fn build(prepared: &Prepared, options: &StepOptions) -> Result<Stages> {
    let stages = build_in(prepared, options, Mode::Train)?;
    let eval = eval_stage(prepared, &stages.params, &stages.stats, Mode::Eval)?;
    Ok(Stages { eval, ..stages })
}

/// As [`build`], with normalization and dropout in `mode` in every stage, `eval` too: for probing a model, not for training.
///
/// # Errors
/// As [`build`].
pub fn build_in(prepared: &Prepared, options: &StepOptions, mode: Mode) -> Result<Stages> {
    options.validate()?;
    let mut graph = prepared.graph.clone();
    lower(&mut graph)?;
    let norms = set_mode(&mut graph, mode)?;
    match options.kernels {
        Kernels::Fused => fuse(&mut graph)?,
        Kernels::Plain => lower_uniform(&mut graph)?,
    }
    if options.precision == Precision::Bf16 {
        round_factors(&mut graph, DType::BF16)?;
    }
    let classes = prepared.classes()?;
    let inputs = prepared.inputs()?;
    for v in graph.params() {
        let dtype = graph.ty(v)?.dtype;
        if dtype != DType::F32 {
            let cause = format!("parameter `{}` is of type {dtype}; only f32 is trained", graph[v].name);
            return Err(Error::new(cause).hint("export the model in float32"));
        }
    }
    graph.outputs.clear();
    let logits = prepared.logits.map(|v| matrix(&mut graph, v, classes));
    let labels = add_input(&mut graph, names::LABELS, Type::new(DType::I64, &[prepared.batch]));
    let phase = options.ascent.map(|_| add_input(&mut graph, names::PHASE, Type::new(DType::Bool, &[])));
    let (loss, seeds) = match prepared.loss {
        Some(own) => own_loss_and_seeds(&mut graph, own, logits, labels, phase, options)?,
        None => {
            let logits = logits.ok_or_else(|| needs_logits("cross-entropy"))?;
            let (loss, cotangent) = loss_and_cotangent(&mut graph, logits, labels, phase, options)?;
            (loss, vec![(logits, cotangent)])
        }
    };
    let mut b = Builder::new(&mut graph, "metrics");
    let correct = match logits {
        Some(logits) => loss::correct(&mut b, logits, labels)?,
        None => b.scalar(0.0, DType::F32),
    };
    let score = options.selects().then(|| {
        let logits = logits.ok_or_else(|| needs_logits("choosing samples by their loss (top-k, sds-gamma)"))?;
        score_stage(&mut graph, logits, labels, correct)
    });
    let score = score.transpose()?;
    output(&mut graph, names::LOSS, loss);
    output(&mut graph, names::CORRECT, correct);
    let forward = (options.swp_beta < 1.0).then(|| graph.clone());
    let wrt = graph.params();
    let (params, stats) = finish(&mut graph, &seeds, &wrt, &norms, options)?;
    let subset = |(chosen, mut graph): (Vec<bool>, Graph)| -> Result<Subset> {
        let place = |v: &ValueId| params.iter().position(|p| p.name == graph[*v].name);
        let of: Vec<ValueId> = wrt.iter().copied().filter(|v| place(v).is_some_and(|i| chosen[i])).collect();
        let unreached: Vec<ValueId> = wrt.iter().copied().filter(|v| place(v).is_none()).collect();
        unreached.into_iter().for_each(|v| freeze_value(&mut graph, v));
        finish(&mut graph, &seeds, &of, &norms, options)?;
        Ok(Subset { grad: graph, chosen })
    };
    let chosen = forward.iter().flat_map(|f| options.subsets(params.len()).into_iter().map(|c| (c, f.clone())));
    let subsets = chosen.map(subset).collect::<Result<_>>()?;
    let eval = eval_stage(prepared, &params, &stats, mode)?;
    let averages = stats.iter().filter(|s| s.rate == Rate::Average).count() / 2;
    let mut notes = Vec::new();
    if averages > 0 {
        notes.push(format!("{averages} normalizations have momentum 1, PyTorch's momentum=None: their running statistics become the averages of all batches of this run"));
    }
    let needs_two = norms.iter().any(|n| n.count == prepared.batch);
    let labels = graph[labels].name.clone();
    let phase = phase.map(|p| graph[p].name.clone());
    let random = graph.inputs.iter().map(|v| graph[*v].name.clone()).find(|n| n == KEY);
    let (own_loss, label_input) = (prepared.loss.is_some(), prepared.label_input().map(str::to_owned));
    Ok(Stages {
        grad: graph,
        subsets,
        score,
        eval,
        params,
        stats,
        needs_two,
        notes,
        classes,
        own_loss,
        label_input,
        inputs,
        labels,
        phase,
        random,
    })
}

/// The error of something that works on the logits of a model that shows none beside its own loss.
fn needs_logits(what: &str) -> Error {
    let cause = format!("{what} needs the logits of classes, and the model shows none beside its own loss");
    Error::new(cause).hint("name the output that holds them with --logits NAME, or leave this setting out")
}

/// Adds the gradients with respect to `wrt` and the batch's statistics to a forward graph with its losses.
fn finish(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
    norms: &[BatchNorm],
    options: &StepOptions,
) -> Result<(Vec<Slot>, Vec<StatSlot>)> {
    let keep = if options.recompute { Keep::Least } else { Keep::All };
    let gradients = differentiate_keeping(keep, graph, seeds, wrt)?;
    let mut params = Vec::new();
    for (v, gradient) in wrt.iter().zip(gradients) {
        let name = graph[*v].name.clone();
        match gradient {
            Some(g) => {
                let output = output(graph, &format!("grad/{name}"), g);
                let shape = graph.ty(*v)?.shape.clone();
                params.push(Slot { input: name.clone(), name, shape, output });
            }
            // Nothing it does reaches the logits: it is no parameter of this model.
            None => freeze_value(graph, *v),
        }
    }
    if params.is_empty() {
        let ends: Vec<ValueId> = seeds.iter().map(|(v, _)| *v).collect();
        if let Some(refused) = nothing_learnable(graph, &ends) {
            return Err(refused);
        }
        let end =
            where_gradients_end(graph).map_or(String::new(), |node| format!(": no gradient flows through {node}"));
        return Err(Error::new(format!("no parameter of the model reaches the logits{end}"))
            .hint("`bisam inspect` shows the parameters"));
    }
    let stats = statistics(graph, norms)?;
    keep_statistics(graph, &stats);
    lower_batch_norm(graph)?;
    graph.remove_dead_nodes();
    graph.check_typed()?;
    Ok((params, stats))
}

/// The loss that `phase` selects, and the cotangent of the logits.
///
/// Each loss is differentiated by itself and the cotangents are selected with Where, so that an overflow on the unused side
/// cannot leak; everything below the logits is one graph for both passes.
fn loss_and_cotangent(
    graph: &mut Graph,
    logits: ValueId,
    labels: ValueId,
    phase: Option<ValueId>,
    options: &StepOptions,
) -> Result<(ValueId, ValueId)> {
    let mut b = Builder::new(graph, "descent");
    let one_hot = loss::one_hot(&mut b, logits, labels);
    let descent = loss::cross_entropy(&mut b, logits, one_hot, options.label_smoothing)?;
    let (Some(ascent), Some(phase)) = (options.ascent, phase) else {
        let cotangent = gradient_at(graph, descent, logits)?;
        return Ok((descent, cotangent));
    };
    b.scope("ascent");
    let q = ascent_loss(&mut b, ascent, logits, one_hot, options)?;
    if q == descent {
        let cotangent = gradient_at(graph, descent, logits)?;
        return Ok((descent, cotangent));
    }
    let up = gradient_at(graph, q, logits)?;
    let down = gradient_at(graph, descent, logits)?;
    let mut b = Builder::new(graph, "phase");
    let loss = b.select(phase, q, descent)?;
    let cotangent = b.select(phase, up, down)?;
    Ok((loss, cotangent))
}

/// The loss that `phase` selects when the model computes the descent's loss itself, and the cotangents that lead to its gradient.
///
/// The labels of the batch take the place of the model's own input for them. An ascent on cross-entropy is one on the model's own
/// loss; a bound works on the logits.
fn own_loss_and_seeds(
    graph: &mut Graph,
    own: OwnLoss,
    logits: Option<ValueId>,
    labels: ValueId,
    phase: Option<ValueId>,
    options: &StepOptions,
) -> Result<(ValueId, Vec<(ValueId, ValueId)>)> {
    if let Some(input) = own.labels {
        take_labels(graph, input, labels)?;
    }
    let mut b = Builder::new(graph, "descent");
    let descent = b.reshape(own.value, &[]);
    let one = b.scalar_like(1.0, descent);
    let (Some(ascent), Some(phase)) = (options.ascent.filter(|a| *a != Ascent::CrossEntropy), phase) else {
        return Ok((descent, vec![(descent, one)]));
    };
    let Some(logits) = logits else {
        let cause = "BiSAM's ascent is a bound on the logits of classes, and the model shows none beside its own loss";
        return Err(Error::new(cause).hint(
            "choose --optimizer sam, which ascends the model's own loss, or name the logits with --logits NAME",
        ));
    };
    b.scope("ascent");
    let one_hot = loss::one_hot(&mut b, logits, labels);
    let q = ascent_loss(&mut b, ascent, logits, one_hot, options)?;
    let up = gradient_at(graph, q, logits)?;
    let mut b = Builder::new(graph, "phase");
    let loss = b.select(phase, q, descent)?;
    let (zero, none) = (b.scalar_like(0.0, up), b.scalar_like(0.0, one));
    let (at_logits, at_loss) = (b.select(phase, up, zero)?, b.select(phase, none, one)?);
    Ok((loss, vec![(logits, at_logits), (descent, at_loss)]))
}

/// Feeds `labels`, i64 `[N]`, to whatever reads the model's own label input, which is an input no more.
fn take_labels(graph: &mut Graph, input: ValueId, labels: ValueId) -> Result<()> {
    let Type { dtype, shape } = graph.ty(input)?.clone();
    let before = graph.nodes.len();
    let mut b = Builder::new(graph, "labels");
    let given = b.cast(labels, dtype);
    let given = b.reshape(given, &shape);
    // Before everything that reads them.
    let made = graph.nodes.len() - before;
    graph.nodes.rotate_right(made);
    let nodes = graph.nodes.iter_mut().skip(made).flat_map(|n| n.inputs.iter_mut().flatten());
    nodes.filter(|v| **v == input).for_each(|v| *v = given);
    graph.inputs.retain(|v| *v != input);
    graph.set_source(input, Source::Constant(Tensor::full(dtype, &shape, 0.0)));
    Ok(())
}

fn gradient_at(graph: &mut Graph, loss: ValueId, logits: ValueId) -> Result<ValueId> {
    let one = Builder::new(graph, "seed").scalar_like(1.0, loss);
    let gradient = differentiate(graph, &[(loss, one)], &[logits])?;
    gradient[0].ok_or_else(|| Error::new("the loss does not depend on the logits"))
}

/// The logits as [N, K], without trailing dimensions of size 1.
fn matrix(graph: &mut Graph, logits: ValueId, classes: usize) -> ValueId {
    let mut b = Builder::new(graph, "logits");
    let rows = b.shape(logits)[0];
    b.reshape(logits, &[rows, classes])
}

pub(super) fn add_input(graph: &mut Graph, name: &str, ty: Type) -> ValueId {
    let declared = Declared { dtype: ty.dtype, dims: None };
    let v = graph.add_value(name, Some(ty), Source::Input(declared));
    graph.inputs.push(v);
    v
}

fn freeze_value(graph: &mut Graph, v: ValueId) {
    if let Some(t) = graph.param(v).cloned() {
        graph.set_source(v, Source::Constant(t));
    }
}

/// Outputs the mean and the unbiased variance (n/(n − 1) of the biased one) of the batch for every normalization.
///
/// One that is applied several times moves at each application, in their order: r ← r + a(sᵢ − r) for i = 1…k is one move by 1 − (1 − a)ᵏ
/// towards the mean of the sᵢ with weights a(1 − a)ᵏ⁻ⁱ.
fn statistics(graph: &mut Graph, norms: &[BatchNorm]) -> Result<Vec<StatSlot>> {
    let mut slots = Vec::new();
    let mut seen = HashSet::new();
    for norm in norms {
        for (i, running) in norm.running.into_iter().enumerate() {
            if !seen.insert(running) {
                continue;
            }
            let applied: Vec<&BatchNorm> = norms.iter().filter(|n| n.running[i] == running).collect();
            let share = 1.0 - f64::from(norm.momentum);
            let kept = |k: usize| (1.0 - share).powi(k as i32);
            let total = 1.0 - kept(applied.len());
            let averages = share == 0.0;
            let mut b = Builder::new(graph, "statistics");
            let mut batch: Option<ValueId> = None;
            for (k, one) in applied.iter().enumerate() {
                let n = one.count as f64;
                let unbiased = if i == 1 { n / (n - 1.0).max(1.0) } else { 1.0 };
                let rest = applied.len() - 1 - k;
                let weight = if averages { 1.0 / applied.len() as f64 } else { share * kept(rest) / total };
                let factor = unbiased * weight;
                let part = if factor == 1.0 { one.batch[i] } else { b.scale(one.batch[i], factor)? };
                batch = Some(match batch {
                    Some(sum) => b.add(sum, part)?,
                    None => part,
                });
            }
            let Some(batch) = batch else { continue };
            let name = graph[running].name.clone();
            let output = output(graph, &format!("batch/{name}"), batch);
            let shape = graph.ty(running)?.shape.clone();
            let rate = if averages { Rate::Average } else { Rate::Share(total as f32) };
            slots.push(StatSlot { slot: Slot { input: name.clone(), name, shape, output }, rate });
        }
    }
    Ok(slots)
}

/// Turns statistics that training does not move into constants.
fn keep_statistics(graph: &mut Graph, moved: &[StatSlot]) {
    for v in graph.value_ids().collect::<Vec<_>>() {
        if let Source::Stat(t) = graph[v].source.clone()
            && !moved.iter().any(|s| s.slot.name == graph[v].name)
        {
            graph.set_source(v, Source::Constant(t));
        }
    }
}

/// The `score` stage; `graph`, of which it is the forward part, gives the scores too.
fn score_stage(graph: &mut Graph, logits: ValueId, labels: ValueId, correct: ValueId) -> Result<Graph> {
    let mut b = Builder::new(graph, "scores");
    let one_hot = loss::one_hot(&mut b, logits, labels);
    let scores = loss::scores(&mut b, logits, one_hot)?;
    output(graph, names::SCORES, scores);
    let mut score = graph.clone();
    output(&mut score, names::CORRECT, correct);
    keep_statistics(&mut score, &[]);
    lower_batch_norm(&mut score)?;
    score.remove_dead_nodes();
    score.check_typed()?;
    Ok(score)
}

/// The `eval` stage with the file's own weights in it: batch → logits, own loss. Nothing is differentiated, so any model that runs has
/// one.
///
/// # Errors
/// A graph that is not concretized.
pub fn evaluation_stage(prepared: &Prepared) -> Result<Graph> {
    eval_stage(prepared, &[], &[], Mode::Eval)
}

fn eval_stage(prepared: &Prepared, params: &[Slot], stats: &[StatSlot], mode: Mode) -> Result<Graph> {
    let mut graph = prepared.graph.clone();
    set_mode(&mut graph, mode)?;
    keep_statistics(&mut graph, stats);
    for v in graph.params() {
        if !params.iter().any(|p| p.name == graph[v].name) {
            freeze_value(&mut graph, v);
        }
    }
    graph.outputs.clear();
    if let Some(input) = prepared.loss.and_then(|l| l.labels) {
        let labels = add_input(&mut graph, names::LABELS, Type::new(DType::I64, &[prepared.batch]));
        take_labels(&mut graph, input, labels)?;
    }
    if let Some(logits) = prepared.logits {
        let logits = matrix(&mut graph, logits, prepared.classes()?);
        output(&mut graph, names::LOGITS, logits);
    }
    if let Some(own) = prepared.loss {
        let loss = Builder::new(&mut graph, "loss").reshape(own.value, &[]);
        output(&mut graph, names::LOSS, loss);
    }
    if mode == Mode::Train {
        lower_batch_norm(&mut graph)?;
    }
    graph.remove_dead_nodes();
    graph.check_typed()?;
    Ok(graph)
}
