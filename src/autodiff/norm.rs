//! Normalizations: x̂ = (X − μ)/σ over some axes, then a gain and a bias.
//!
//! Everything is computed from X − μ. A sum such as Σ Ȳ·X − μ·Σ Ȳ would save a pass and lose half of the digits where |μ| ≫ σ.

use super::{Call, Cotangents, Lowered};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Graph, Node, Tensor, Type, ValueId};
use std::collections::HashMap;

/// Puts a value per channel into the shape [1,C,1,…] of rank `rank`, in type `dtype`.
fn per_channel(b: &mut Builder<'_>, v: ValueId, rank: usize, dtype: DType) -> ValueId {
    let mut shape = vec![1; rank];
    shape[1] = b.len(v);
    let v = b.cast(v, dtype);
    b.reshape(v, &shape)
}

/// A value per channel [1,C,1,…] in the type and shape of input `i`.
fn like_input(b: &mut Builder<'_>, c: &Call<'_>, v: ValueId, i: usize) -> Result<ValueId> {
    let ty = b.ty(c.x(i)?);
    let v = b.cast(v, ty.dtype);
    Ok(b.reshape(v, &ty.shape))
}

/// 1/√(variance + ε).
fn inverse_deviation(b: &mut Builder<'_>, variance: ValueId, epsilon: f64) -> Result<ValueId> {
    let sum = b.offset(variance, epsilon)?;
    let root = b.unary("Sqrt", sum);
    Ok(b.unary("Reciprocal", root))
}

/// Y = γ(X − μ)/√(v + ε) + β; X [N,C,D…], γ, β, μ, v `[C]`; with r = 1/√(v + ε), x̂ = (X − μ)r and sums over all but C; ONNX
/// BatchNormalization-15.
///
/// In evaluation μ and v are inputs: X̄ = γrȲ, γ̄ = Σ Ȳx̂, β̄ = Σ Ȳ, μ̄ = −γr·Σ Ȳ, v̄ = −½γr²·Σ Ȳx̂. In training they are the batch's mean
/// and biased variance over n elements: γ̄ and β̄ as before, X̄ = γr(Ȳ − β̄/n − x̂γ̄/n), and through the moved running statistics (1 − m)(μ̄ +
/// 2v̄(X − μ))/n for a momentum m, which leave m·μ̄ and m·v̄ for the old ones. With a momentum of 0 the second and third output are these μ and v; with another they are computed again.
pub fn batch_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let x = c.x(0)?;
    let Type { dtype, shape } = b.ty(x);
    let dy = c.dy_of(0).unwrap_or_else(|| b.zeros(&Type::new(dtype, &shape)));
    let rank = shape.len();
    if rank < 2 {
        crate::bail!("its gradient needs an input of rank 2 or more");
    }
    let epsilon = f64::from(c.attrs.float("epsilon", 1e-5)?);
    let momentum = c.attrs.float("momentum", 0.9)?;
    let training = c.attrs.flag("training_mode", false)?;
    let axes: Vec<usize> = (0..rank).filter(|a| *a != 1).collect();
    let gain = per_channel(b, c.x(1)?, rank, dtype);
    let (mean, variance) = match (training, c.node.output(1), c.node.output(2)) {
        (false, ..) => (Some(c.x(3)?), Some(c.x(4)?)),
        (true, mean, variance) if momentum == 0.0 => (mean, variance),
        (true, ..) => (None, None),
    };
    let mean = match mean {
        Some(mean) => per_channel(b, mean, rank, dtype),
        None => b.mean(x, &axes, true),
    };
    let variance = match variance {
        Some(variance) => per_channel(b, variance, rank, dtype),
        None => {
            let centred = b.sub(x, mean)?;
            let square = b.square(centred)?;
            b.mean(square, &axes, true)
        }
    };
    let rstd = inverse_deviation(b, variance, epsilon)?;
    let slope = b.mul(gain, rstd)?;
    let wants_stats = !training && (c.wants(3) || c.wants(4));
    let sum_dy = (c.wants(2) || wants_stats || (training && c.wants(0))).then(|| b.sum(dy, &axes, true));
    let centred = (training || c.wants(1) || wants_stats).then(|| b.sub(x, mean)).transpose()?;
    // Σ Ȳ(X − μ)
    let moment = match centred {
        Some(centred) => {
            let product = b.mul(dy, centred)?;
            Some(b.sum(product, &axes, true))
        }
        None => None,
    };
    let dx = match (c.wants(0), centred, moment, sum_dy) {
        (false, ..) => None,
        (true, Some(centred), Some(moment), Some(sum_dy)) if training => {
            // aȲ + b(X − μ) + c with a = γr, b = −ar²·Σ Ȳ(X − μ)/n, c = −a·Σ Ȳ/n
            let n: usize = axes.iter().map(|a| shape[*a]).product();
            let minus = b.scale(slope, -1.0 / n as f64)?;
            let square = b.square(rstd)?;
            let weight = b.mul(minus, square)?;
            let weight = b.mul(weight, moment)?;
            let shift = b.mul(minus, sum_dy)?;
            let first = b.mul(dy, slope)?;
            let second = b.mul(centred, weight)?;
            let sum = b.add(first, second)?;
            Some(b.add(sum, shift)?)
        }
        _ => Some(b.mul(dy, slope)?),
    };
    let dgain = match moment.filter(|_| c.wants(1)) {
        Some(moment) => {
            let dgain = b.mul(moment, rstd)?;
            Some(like_input(b, c, dgain, 1)?)
        }
        None => None,
    };
    let dbias = match sum_dy.filter(|_| c.wants(2)) {
        Some(sum) => Some(like_input(b, c, sum, 2)?),
        None => None,
    };
    let dmean = match sum_dy.filter(|_| wants_stats && c.wants(3)) {
        Some(sum) => {
            let product = b.mul(slope, sum)?;
            let dmean = b.neg(product);
            Some(like_input(b, c, dmean, 3)?)
        }
        None => None,
    };
    let dvariance = match moment.filter(|_| wants_stats && c.wants(4)) {
        Some(moment) => {
            let square = b.square(rstd)?;
            let weight = b.mul(slope, square)?;
            let product = b.mul(weight, moment)?;
            let dvariance = b.scale(product, -0.5)?;
            Some(like_input(b, c, dvariance, 4)?)
        }
        None => None,
    };
    if training {
        let [dx, kept_mean, kept_variance] = moved_statistics(b, c, [x, mean], dx, f64::from(momentum))?;
        return Ok(vec![dx, dgain, dbias, kept_mean, kept_variance]);
    }
    Ok(vec![dx, dgain, dbias, dmean, dvariance])
}

/// X̄ with what comes through the running statistics that a BatchNormalization in training mode moves, and what is left for the old ones.
fn moved_statistics(
    b: &mut Builder<'_>,
    c: &Call<'_>,
    [x, mean]: [ValueId; 2],
    mut dx: Option<ValueId>,
    momentum: f64,
) -> Result<[Option<ValueId>; 3]> {
    let Type { dtype, shape } = b.ty(x);
    let n = Type::new(dtype, &shape).len() / shape[1].max(1);
    let mut kept = [None; 2];
    for (i, kept) in kept.iter_mut().enumerate() {
        let Some(d) = c.dy_of(i + 1) else { continue };
        *kept = Some(b.scale(d, momentum)?);
        let mut share = per_channel(b, d, shape.len(), dtype);
        share = b.scale(share, (1.0 - momentum) / n as f64)?;
        if i == 1 {
            let centred = b.sub(x, mean)?;
            let twice = b.scale(centred, 2.0)?;
            share = b.mul(share, twice)?;
        }
        dx = Some(plus(b, dx, share)?);
    }
    Ok([dx.map(|dx| b.expand(dx, &shape)), kept[0], kept[1]])
}

/// Writes every BatchNormalization in training mode as ReduceMean, the centred variance and a BatchNormalization in evaluation
/// mode, the only form that CUDA runs.
///
/// Its outputs (Y, and the running mean and variance moved by 1 − momentum) stay the same values. ONNX Runtime's own kernel for
/// CPU writes the moved statistics over the memory of the old ones, which a caller may have bound.
///
/// The gradient computed from such a node repeats X − μ; it reads what is computed here instead.
///
/// # Errors
/// When the graph is not concretized, or an input is missing.
pub fn lower_batch_norm(graph: &mut Graph) -> Result<()> {
    graph.check_typed()?;
    let mut shared = Shared::default();
    for mut node in std::mem::take(&mut graph.nodes) {
        let training = node.is("BatchNormalization") && node.attrs.get("training_mode") == Some(&Attr::Int(1));
        shared.rename(&mut node);
        if training {
            lower(graph, &node, &mut shared).map_err(|e| node.blame(e))?;
        } else if !shared.replaces(graph, &node) {
            graph.nodes.push(node);
        }
    }
    graph.check_typed()
}

fn lower(graph: &mut Graph, node: &Node, shared: &mut Shared) -> Result<()> {
    let missing = || Error::new("an input or the first output is missing");
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Err(missing()) };
    let momentum = match node.attrs.get("momentum") {
        Some(Attr::Float(m)) => f64::from(*m),
        _ => 0.9,
    };
    let mut b = Builder::new(graph, &node.name);
    let Type { dtype, shape } = b.ty(x);
    let axes: Vec<usize> = (0..shape.len()).filter(|a| *a != 1).collect();
    let mut mean = b.mean(x, &axes, false);
    mean = stand_for(&mut b, mean, node, 1, momentum)?;
    let wide = per_channel(&mut b, mean, shape.len(), dtype);
    let centred = b.sub(x, wide)?;
    let square = b.square(centred)?;
    let mut variance = b.mean(square, &axes, false);
    variance = stand_for(&mut b, variance, node, 2, momentum)?;
    shared.add(mean, wide, x, centred);
    // X − μ in place of X: it can take X's memory, and the kernel does not subtract μγ/σ once more.
    let dtype = b.dtype(mean);
    let zero = b.constant(Tensor::full(dtype, &[shape[1]], 0.0));
    let mut lowered = node.clone();
    lowered.attrs.remove("training_mode");
    lowered.attrs.remove("momentum");
    lowered.inputs = vec![Some(centred), node.input(1), node.input(2), Some(zero), Some(variance)];
    lowered.outputs = vec![Some(y)];
    graph.nodes.push(lowered);
    Ok(())
}

/// Makes output `slot` of `node` from the batch's `statistic`, and returns what holds the statistic.
fn stand_for(b: &mut Builder<'_>, statistic: ValueId, node: &Node, slot: usize, momentum: f64) -> Result<ValueId> {
    let Some(output) = node.output(slot) else { return Ok(statistic) };
    let mut moved = statistic;
    if momentum != 0.0 {
        let running = node.input(slot + 2).ok_or_else(|| Error::new("a running statistic is missing"))?;
        let dtype = b.dtype(running);
        let share = b.cast(statistic, dtype);
        let (kept, share) = (b.scale(running, momentum)?, b.scale(share, 1.0 - momentum)?);
        moved = b.add(kept, share)?;
    }
    let dtype = b.dtype(output);
    moved = b.cast(moved, dtype);
    // The node that made the value makes the output instead.
    let maker = b.graph.nodes.iter_mut().rev().flat_map(|n| n.outputs.iter_mut()).find(|o| **o == Some(moved));
    let maker = maker.ok_or_else(|| Error::new("a statistic of the batch is not computed"))?;
    *maker = Some(output);
    Ok(if moved == statistic { output } else { statistic })
}

/// What lowering computes and the gradient computes again.
#[derive(Default)]
struct Shared {
    /// From a mean [C] to it as [1,C,1,…].
    wide: HashMap<ValueId, ValueId>,
    /// From X and its mean to X − μ.
    centred: HashMap<(ValueId, ValueId), ValueId>,
    renamed: HashMap<ValueId, ValueId>,
}

impl Shared {
    fn add(&mut self, mean: ValueId, wide: ValueId, x: ValueId, centred: ValueId) {
        self.wide.insert(mean, wide);
        self.centred.insert((x, wide), centred);
    }

    fn rename(&self, node: &mut Node) {
        for v in node.inputs.iter_mut().flatten() {
            *v = self.renamed.get(v).copied().unwrap_or(*v);
        }
    }

    /// Whether the node computes what is known already.
    fn replaces(&mut self, graph: &Graph, node: &Node) -> bool {
        let (Some(first), Some(output)) = (node.input(0), node.output(0)) else { return false };
        let known = match node.input(1) {
            Some(_) if node.is("Reshape") => self.wide.get(&first),
            Some(second) if node.is("Sub") => self.centred.get(&(first, second)),
            _ => None,
        };
        let same = |v: &&ValueId| graph[**v].ty == graph[output].ty && !graph.outputs.contains(&output);
        let Some(known) = known.filter(same).copied() else { return false };
        self.renamed.insert(output, known);
        true
    }
}

/// What every normalization over the axes of one sample has in common.
struct Normalized {
    /// x̂.
    hat: ValueId,
    /// 1/σ, with the reduced axes as size 1.
    rstd: ValueId,
    axes: Vec<usize>,
    centred: bool,
}

impl Normalized {
    /// x̂ over `axes` of `x`; without `centred` μ is 0.
    fn new(b: &mut Builder<'_>, x: ValueId, axes: &[usize], epsilon: f64, centred: bool) -> Result<Self> {
        let x = if centred {
            let mean = b.mean(x, axes, true);
            b.sub(x, mean)?
        } else {
            x
        };
        let square = b.square(x)?;
        let variance = b.mean(square, axes, true);
        let rstd = inverse_deviation(b, variance, epsilon)?;
        let hat = b.mul(x, rstd)?;
        Ok(Self { hat, rstd, axes: axes.to_vec(), centred })
    }

    /// X̄ = (G − mean G − x̂·mean(Gx̂))/σ with G the cotangent of x̂; mean G is left out if μ is.
    fn vjp(&self, b: &mut Builder<'_>, g: ValueId) -> Result<ValueId> {
        let product = b.mul(g, self.hat)?;
        let mean = b.mean(product, &self.axes, true);
        let along = b.mul(self.hat, mean)?;
        let mut rest = b.sub(g, along)?;
        if self.centred {
            let mean = b.mean(g, &self.axes, true);
            rest = b.sub(rest, mean)?;
        }
        b.mul(rest, self.rstd)
    }
}

/// Y = γx̂ + β, x̂ = (X − μ)/√(v + ε) with mean and variance over the axes from `axis` on: X̄ from Ḡ = γȲ as for every
/// normalization, γ̄ = Σ Ȳx̂, β̄ = Σ Ȳ; the mean and 1/σ, the second and third output, carry gradients too; X [A…,B…], γ, β broadcast to B…;
/// ONNX LayerNormalization-17.
pub fn layer_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    trailing(b, c, true)
}

/// Y = γx̂, x̂ = X/√(mean X² + ε) over the axes from `axis` on: X̄ = (G − x̂·mean(Gx̂))/√(…) with G = γȲ, γ̄ = Σ Ȳx̂; ONNX
/// RMSNormalization-23.
pub fn rms_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    trailing(b, c, false)
}

/// As RMSNormalization, which it was called before; ONNX Runtime SimplifiedLayerNormalization-1.
pub fn simplified_layer_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    trailing(b, c, false)
}

fn trailing(b: &mut Builder<'_>, c: &Call<'_>, centred: bool) -> Cotangents {
    let (x, gain) = (c.x(0)?, c.x(1)?);
    // The precision inside the forward kernel; the gradient is computed in the type of X.
    c.attrs.ignore(&["stash_type"]);
    let epsilon = f64::from(c.attrs.float("epsilon", 1e-5)?);
    let first = b.axis(x, c.attrs.int("axis", -1)?)?;
    let axes: Vec<usize> = (first..b.rank(x)).collect();
    let normalized = Normalized::new(b, x, &axes, epsilon, centred)?;
    let dy = c.dy_of(0);
    let mut dx = match dy.filter(|_| c.wants(0)) {
        Some(dy) => {
            let g = b.mul(dy, gain)?;
            Some(normalized.vjp(b, g)?)
        }
        None => None,
    };
    let n: usize = axes.iter().map(|a| b.shape(x)[*a]).product();
    if let Some(dmean) = c.dy_of(1).filter(|_| c.wants(0)) {
        let share = b.scale(dmean, 1.0 / n as f64)?;
        let share = b.cast(share, b.dtype(x));
        dx = Some(plus(b, dx, share)?);
    }
    if let Some(drstd) = c.dy_of(2).filter(|_| c.wants(0)) {
        // ∂r/∂x = −r²x̂/n
        let share = b.scale(drstd, -1.0 / n as f64)?;
        let share = b.cast(share, b.dtype(x));
        let square = b.square(normalized.rstd)?;
        let share = b.mul(share, square)?;
        let share = b.mul(share, normalized.hat)?;
        dx = Some(plus(b, dx, share)?);
    }
    if let Some(part) = dx {
        let shape = b.shape(x).to_vec();
        dx = Some(b.expand(part, &shape));
    }
    let dgain = match dy.filter(|_| c.wants(1)) {
        Some(dy) => Some(b.mul(dy, normalized.hat)?),
        None => None,
    };
    Ok(vec![dx, dgain, dy])
}

/// `sum` + `part`, where there is a sum.
fn plus(b: &mut Builder<'_>, sum: Option<ValueId>, part: ValueId) -> Result<ValueId> {
    match sum {
        Some(sum) => b.add(sum, part),
        None => Ok(part),
    }
}

/// Y = γx̂ + β, x̂ = (X − μ)/√(v + ε) over the positions of each sample and channel: X̄ from G = γȲ, γ̄ = Σ Ȳx̂, β̄ = Σ Ȳ over all
/// but C; X [N,C,D…], γ, β `[C]`; ONNX InstanceNormalization-6.
pub fn instance_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let groups = b.shape(c.x(0)?).get(1).copied().unwrap_or(1);
    grouped(b, c, groups)
}

/// As InstanceNormalization, but over groups of neighbouring channels; γ, β `[C]` (opset 21) or one per group (opset 18); ONNX
/// GroupNormalization-18, -21.
pub fn group_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    // The precision inside the forward kernel; the gradient is computed in the type of X.
    c.attrs.ignore(&["stash_type"]);
    let groups = c.attrs.int("num_groups", 1)?;
    grouped(b, c, groups.max(1) as usize)
}

fn grouped(b: &mut Builder<'_>, c: &Call<'_>, groups: usize) -> Cotangents {
    let (x, gain, dy) = (c.x(0)?, c.x(1)?, c.dy()?);
    let epsilon = f64::from(c.attrs.float("epsilon", 1e-5)?);
    let shape = b.shape(x).to_vec();
    if shape.len() < 2 || !shape[1].is_multiple_of(groups) {
        crate::bail!("{groups} groups do not divide an input of shape {shape:?}");
    }
    // [N, groups, channels of a group, positions]
    let view = [shape[0], groups, shape[1] / groups, shape[2..].iter().product()];
    let x = b.reshape(x, &view);
    let dy = b.reshape(dy, &view);
    // One gain per channel, or one per group.
    let per_group = b.len(gain) == groups;
    let coefficient = if per_group { [1, groups, 1, 1] } else { [1, groups, view[2], 1] };
    let gain = b.reshape(gain, &coefficient);
    let normalized = Normalized::new(b, x, &[2, 3], epsilon, true)?;
    let dx = if c.wants(0) {
        let g = b.mul(dy, gain)?;
        let dx = normalized.vjp(b, g)?;
        Some(b.reshape(dx, &shape))
    } else {
        None
    };
    let dgain = if c.wants(1) {
        let product = b.mul(dy, normalized.hat)?;
        let sum = b.unbroadcast(product, &coefficient);
        Some(like_input(b, c, sum, 1)?)
    } else {
        None
    };
    let dbias = if c.wants(2) {
        let sum = b.unbroadcast(dy, &coefficient);
        Some(like_input(b, c, sum, 2)?)
    } else {
        None
    };
    Ok(vec![dx, dgain, dbias])
}

/// Y = X/(b + α/n·Σ X²)^β, the sum over the n channels around each (fewer at the ends): written out, the sum as a product with a
/// band of ones; X [N,C,D…]; ONNX LRN-13.
pub fn local_response_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let x = c.x(0)?;
    let size = c.attrs.int("size", 1)?.max(1);
    let (alpha, beta) = (c.attrs.float("alpha", 1e-4)?, c.attrs.float("beta", 0.75)?);
    let bias = c.attrs.float("bias", 1.0)?;
    let Type { dtype, shape } = b.ty(x);
    let channels = *shape.get(1).ok_or_else(|| Error::new("its input has no channels"))? as i64;
    let (before, after) = ((size - 1) / 2, size - 1 - (size - 1) / 2);
    let near = |i: i64, j: i64| f64::from(u8::from((i - before..=i + after).contains(&j)));
    let band: Vec<f64> = (0..channels).flat_map(|i| (0..channels).map(move |j| near(i, j))).collect();
    let band = b.constant(Tensor::from_f64(dtype, &[channels as usize; 2], &band));
    let square = b.square(x)?;
    let square = b.reshape(square, &[shape[0], shape[1], shape[2..].iter().product()]);
    let sum = b.matmul(band, square)?;
    let sum = b.reshape(sum, &shape);
    let scaled = b.scale(sum, f64::from(alpha) / size as f64)?;
    let base = b.offset(scaled, f64::from(bias))?;
    let exponent = b.scalar_like(-f64::from(beta), x);
    let factor = b.binary("Pow", base, exponent)?;
    Ok(vec![Some(b.mul(x, factor)?)])
}

/// Y = X/‖X‖ along `axis`, in the norm L1 or L2, and 0 where the norm is: written out; ONNX LpNormalization-22.
pub fn lp_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let x = c.x(0)?;
    let axis = b.axis(x, c.attrs.int("axis", -1)?)?;
    let op = match c.attrs.int("p", 2)? {
        1 => "ReduceL1",
        2 => "ReduceL2",
        p => crate::bail!("a norm with p = {p} is not known"),
    };
    let norm = b.reduce(op, x, &[axis], true);
    let norm = nonzero(b, norm)?;
    Ok(vec![Some(b.div(x, norm)?)])
}

/// `x`, with 1 in the place of 0.
pub(super) fn nonzero(b: &mut Builder<'_>, x: ValueId) -> Result<ValueId> {
    let (zero, one) = (b.scalar_like(0.0, x), b.scalar_like(1.0, x));
    let empty = b.binary("Equal", x, zero)?;
    b.select(empty, one, x)
}

/// Y = (X − μ)/(σ + 10⁻⁹) with mean and deviation over `axes`: written out; ONNX MeanVarianceNormalization-13.
pub fn mean_variance_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let x = c.x(0)?;
    let axes = c.attrs.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let axes: Vec<usize> = axes.into_iter().map(|a| b.axis(x, a)).collect::<Result<_>>()?;
    let mean = b.mean(x, &axes, true);
    let centred = b.sub(x, mean)?;
    let square = b.square(centred)?;
    let variance = b.mean(square, &axes, true);
    let deviation = b.unary("Sqrt", variance);
    let deviation = b.offset(deviation, 1e-9)?;
    Ok(vec![Some(b.div(centred, deviation)?)])
}
