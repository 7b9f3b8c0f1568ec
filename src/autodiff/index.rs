//! Operators that move elements to places given by an integer input.
//!
//! Cotangents of elements read more than once add up. ONNX Runtime's `ScatterND` with `reduction = add` runs its rows on several
//! threads without a lock and loses additions to equal indices (seen with 1.32 on CPU), so it is never emitted. Left are, by
//! what is known of the indices: a padding (they form a progression), `ScatterND` without reduction (all different), a product
//! with one-hot rows (few places), and `ScatterElements`, which is sequential (about 9 ns an element).

use super::layout::spread;
use super::{Call, Cotangents, Lowered};
use crate::builder::{Builder, attrs};
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Tensor, Type, ValueId};
use std::collections::HashSet;

/// Y = X at `indices` along `axis`: X̄ adds each slice of Ȳ to the slice it was read from; ONNX Gather-13.
///
/// X [A…,d,B…], indices [I…], Y [A…,I…,B…].
pub fn gather(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, indices) = (c.x(0)?, c.x(1)?);
    let axis = b.axis(x, c.attrs.int("axis", 0)?)?;
    Ok(vec![Some(ungather(b, c.dy()?, x, axis, indices)?)])
}

/// The cotangent of `x`, of which `dy` holds the slices at `indices` along `axis`.
fn ungather(b: &mut Builder<'_>, dy: ValueId, x: ValueId, axis: usize, indices: ValueId) -> Result<ValueId> {
    let shape = b.shape(x).to_vec();
    let n = b.len(indices);
    let flat = linear(b, indices, &[], &shape[axis..=axis])?;
    if let Some((first, step)) = progression(b, flat) {
        let mut view = shape.clone();
        view[axis] = n;
        let dy = b.reshape(dy, &view);
        let dy = if step < 0 { b.reverse(dy, &[axis]) } else { dy };
        let (mut start, mut stride) = (vec![0; shape.len()], vec![1; shape.len()]);
        start[axis] = if step < 0 { first + (n as i64 - 1) * step } else { first } as usize;
        stride[axis] = step.unsigned_abs() as usize;
        return Ok(spread(b, dy, &start, &stride, &shape));
    }
    let (outer, inner): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    let dy = b.reshape(dy, &[outer, n, inner]);
    let rows = b.transpose(dy, &[1, 0, 2]);
    let rows = b.reshape(rows, &[n, outer * inner]);
    let sums = add_rows(b, rows, flat, shape[axis])?;
    if outer == 1 {
        // At the end of a graph, every further view of a large table would be a copy.
        return Ok(b.reshape(sums, &shape));
    }
    let sums = b.reshape(sums, &[shape[axis], outer, inner]);
    let dx = b.transpose(sums, &[1, 0, 2]);
    Ok(b.reshape(dx, &shape))
}

/// First element and step of a constant arithmetic progression with a step other than 0.
fn progression(b: &Builder<'_>, indices: ValueId) -> Option<(i64, i64)> {
    let values = b.graph.constant(indices)?.to_i64()?;
    let (first, step) = match values.as_slice() {
        [] => return None,
        [only] => (*only, 1),
        [first, second, ..] => (*first, second - first),
    };
    let regular = step != 0 && values.windows(2).all(|w| w[1] - w[0] == step);
    regular.then_some((first, step))
}

/// Row numbers of index tuples: `indices` [B…,M…,k] point into dimensions `dims` (k of them) after the dimensions `batch`, whose own
/// index is the place in B…. The result is a flat i64 vector without negative numbers; a constant if `indices` is.
///
/// With k = 1 the last dimension may be missing.
fn linear(b: &mut Builder<'_>, indices: ValueId, batch: &[usize], dims: &[usize]) -> Result<ValueId> {
    let (k, size) = (dims.len(), dims.iter().product::<usize>());
    let n = b.len(indices) / k;
    let batches: usize = batch.iter().product();
    let strides: Vec<i64> = (0..k).map(|i| dims[i + 1..].iter().product::<usize>() as i64).collect();
    let sizes: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
    let offset = |i: usize| (i / (n / batches).max(1) * size) as i64;
    if let Some(values) = b.graph.constant(indices).and_then(Tensor::to_i64) {
        let place = |t: &[i64]| t.iter().zip(&sizes).zip(&strides).map(|((v, d), s)| v.rem_euclid(*d) * s).sum::<i64>();
        let rows: Vec<i64> = values.chunks_exact(k).enumerate().map(|(i, t)| place(t) + offset(i)).collect();
        return Ok(b.ints(&rows));
    }
    let indices = b.cast(indices, DType::I64);
    let tuples = b.reshape(indices, &[n, k]);
    // Mod takes the sign of its divisor: negative indices become positive ones.
    let sizes = b.ints(&sizes);
    let mut rows = b.binary("Mod", tuples, sizes)?;
    if k > 1 {
        let strides = b.ints(&strides);
        rows = b.binary("Mul", rows, strides)?;
        rows = b.sum(rows, &[1], false);
    }
    let mut rows = b.reshape(rows, &[n]);
    if batches > 1 {
        let offsets = b.ints(&(0..n).map(offset).collect::<Vec<_>>());
        rows = b.binary("Add", rows, offsets)?;
    }
    Ok(rows)
}

/// Adds row i of `rows` [M,D] to row `places[i]` of `count` rows of zeros.
fn add_rows(b: &mut Builder<'_>, rows: ValueId, places: ValueId, count: usize) -> Result<ValueId> {
    let (m, d) = (b.shape(rows)[0], b.shape(rows)[1]);
    let ty = Type::new(b.dtype(rows), &[count, d]);
    if m == 0 {
        return Ok(b.zeros(&ty));
    }
    let constant = b.graph.constant(places).and_then(Tensor::to_i64);
    if constant.is_some_and(|p| p.iter().collect::<HashSet<_>>().len() == m) {
        let zeros = b.zeros(&ty);
        let places = b.reshape(places, &[m, 1]);
        return Ok(b.op("ScatterND", &[zeros, places, rows], attrs([]), ty));
    }
    // Building and multiplying one-hot rows costs about count·(D + 16) per row, the scatter 256·D.
    if count * (d + 16) <= 256 * d {
        let numbers: Vec<i64> = (0..count as i64).collect();
        let numbers = b.constant(Tensor::new(&[count, 1], &numbers)?);
        let hot = b.mask("Equal", numbers, places, rows)?;
        return b.matmul(hot, rows);
    }
    let zeros = b.zeros(&ty);
    let places = b.reshape(places, &[m, 1]);
    let places = b.expand(places, &[m, d]);
    Ok(b.scatter_elements(zeros, places, rows, 0, "add"))
}

/// Y = X at `indices` along `axis`, element by element: X̄ adds each element of Ȳ to where it was read; ONNX GatherElements-13.
pub fn gather_elements(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let x = c.x(0)?;
    let axis = b.axis(x, c.attrs.int("axis", 0)?)?;
    let indices = wrapped(b, c.x(1)?, b.shape(x)[axis])?;
    let zeros = b.zeros(&b.ty(x));
    Ok(vec![Some(b.scatter_elements(zeros, indices, c.dy()?, axis, "add"))])
}

/// Indices as i64 with the negative ones made positive.
fn wrapped(b: &mut Builder<'_>, indices: ValueId, dim: usize) -> Result<ValueId> {
    if let Some(t) = b.graph.constant(indices).cloned() {
        let values: Vec<i64> = t.to_i64().unwrap_or_default().iter().map(|v| v.rem_euclid(dim as i64)).collect();
        return Ok(b.constant(Tensor::new(t.shape(), &values)?));
    }
    let indices = b.cast(indices, DType::I64);
    let dim = b.scalar(dim as f64, DType::I64);
    b.binary("Mod", indices, dim)
}

/// Y = X at the index tuples in the last dimension of `indices`: X̄ adds each slice of Ȳ to where it was read; ONNX GatherND-13.
///
/// X [B…,d₁…dₖ,R…], indices [B…,M…,k], Y [B…,M…,R…], with `batch_dims` dimensions B.
pub fn gather_nd(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, indices) = (c.x(0)?, c.x(1)?);
    let batch = c.attrs.int("batch_dims", 0)?.max(0) as usize;
    let shape = b.shape(x).to_vec();
    let k = b.shape(indices).last().copied().unwrap_or(1);
    if batch + k > shape.len() || k == 0 {
        crate::bail!("index tuples of {k} after {batch} batch dimensions do not fit shape {shape:?}");
    }
    let flat = linear(b, indices, &shape[..batch], &shape[batch..batch + k])?;
    let width: usize = shape[batch + k..].iter().product();
    let rows = b.reshape(c.dy()?, &[b.len(flat), width]);
    let sums = add_rows(b, rows, flat, shape[..batch + k].iter().product())?;
    Ok(vec![Some(b.reshape(sums, &shape))])
}

/// Y is X with the elements at `indices` along `axis` replaced by U, or reduced with it; ONNX ScatterElements-18.
///
/// Replaced (the indices are all different): X̄ = Ȳ with 0 there, Ū = Ȳ there. `add`: X̄ = Ȳ, Ū = Ȳ there. `mul`: X̄ = Ȳ·Π U, Ū = Ȳ·X·Π of
/// the others. `max`, `min`: those of X and U that equal Y share Ȳ evenly, as PyTorch's `scatter_reduce`.
pub fn scatter_elements(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let axis = b.axis(c.x(0)?, c.attrs.int("axis", 0)?)?;
    let indices = wrapped(b, c.x(1)?, b.shape(c.x(0)?)[axis])?;
    let reduction = c.attrs.str("reduction", "none")?;
    scattered(b, [c.x(0)?, indices, c.x(2)?, c.y(0)?, c.dy()?], axis, reduction)
}

/// The cotangents of ScatterElements of X, indices and U, from Y and Ȳ.
fn scattered(
    b: &mut Builder<'_>,
    [x, indices, updates, y, dy]: [ValueId; 5],
    axis: usize,
    reduction: &str,
) -> Cotangents {
    match reduction {
        "none" => {
            let zeros = b.zeros(&b.ty(updates));
            let dx = b.scatter_elements(dy, indices, zeros, axis, "none");
            Ok(vec![Some(dx), None, Some(b.gather_elements(dy, indices, axis))])
        }
        "add" => Ok(vec![Some(dy), None, Some(b.gather_elements(dy, indices, axis))]),
        "mul" => {
            let ones = b.constant(Tensor::full(b.dtype(x), b.shape(x), 1.0));
            let product = b.scatter_elements(ones, indices, updates, axis, "mul");
            let dx = b.mul(dy, product)?;
            // The product of the factors that are not 0, and how many are: a 0 has that product as its own, others have 0.
            let zero = b.scalar_like(0.0, updates);
            let empty = b.mask("Equal", updates, zero, updates)?;
            let factors = b.add(updates, empty)?;
            let rest = b.scatter_elements(x, indices, factors, axis, "mul");
            let zeros = b.zeros(&b.ty(x));
            let count = b.scatter_elements(zeros, indices, empty, axis, "add");
            let [rest, count, there] = [rest, count, dy].map(|v| b.gather_elements(v, indices, axis));
            let others = b.sub(count, empty)?;
            let alone = b.mask("Equal", others, zero, updates)?;
            let others = b.div(rest, factors)?;
            let others = b.mul(others, alone)?;
            Ok(vec![Some(dx), None, Some(b.mul(there, others)?)])
        }
        "max" | "min" => {
            let reached = b.gather_elements(y, indices, axis);
            let (from_x, from_u) = (b.mask("Equal", x, y, y)?, b.mask("Equal", updates, reached, y)?);
            let count = b.scatter_elements(from_x, indices, from_u, axis, "add");
            let share = b.div(dy, count)?;
            let dx = b.mul(share, from_x)?;
            let there = b.gather_elements(share, indices, axis);
            Ok(vec![Some(dx), None, Some(b.mul(there, from_u)?)])
        }
        other => crate::bail!("reduction = `{other}` has no gradient rule"),
    }
}

/// Y is X with the slices at the index tuples replaced by U, or reduced with it; ONNX ScatterND-18.
///
/// Replaced (the tuples are all different): X̄ = Ȳ with 0 there, Ū = Ȳ there. `add`: X̄ = Ȳ, Ū = Ȳ there. `mul`, `max`, `min`: as ScatterElements
/// of the slices as rows.
pub fn scatter_nd(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, indices, updates, dy) = (c.x(0)?, c.x(1)?, c.x(2)?, c.dy()?);
    let ty = b.ty(updates);
    let dx = match c.attrs.str("reduction", "none")? {
        "none" => {
            let zeros = b.zeros(&ty);
            let out = b.ty(dy);
            b.op("ScatterND", &[dy, indices, zeros], attrs([]), out)
        }
        "add" => dy,
        other => {
            let (shape, k) = (b.shape(x).to_vec(), b.shape(indices).last().copied().unwrap_or(1));
            let rows = linear(b, indices, &[], &shape[..k])?;
            let (n, width) = (b.len(rows), shape[k..].iter().product::<usize>());
            let rows = b.reshape(rows, &[n, 1]);
            let rows = b.expand(rows, &[n, width]);
            let all = [shape[..k].iter().product(), width];
            let [x, y, dy] = [x, c.y(0)?, dy].map(|v| b.reshape(v, &all));
            let updates = b.reshape(updates, &[n, width]);
            let flat = scattered(b, [x, rows, updates, y, dy], 0, other)?;
            let dx = flat[0].map(|v| b.reshape(v, &shape));
            return Ok(vec![dx, None, flat[2].map(|v| b.reshape(v, &ty.shape))]);
        }
    };
    let du = c.wants(2).then(|| b.op("GatherND", &[dy, indices], attrs([]), ty));
    Ok(vec![Some(dx), None, du])
}

/// Y = off + H·(on − off) with one-hot H and values [off, on]: their cotangent is [Σ Ȳ(1 − H), Σ Ȳ·H]; ONNX OneHot-11.
pub fn one_hot(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    let ty = b.ty(dy);
    let zero_one = b.constant(Tensor::from_f64(ty.dtype, &[2], &[0.0, 1.0]));
    let hot = b.op("OneHot", &[c.x(0)?, c.x(1)?, zero_one], c.attrs.all().clone(), ty);
    let on = b.mul(dy, hot)?;
    let (on, all) = (b.sum_all(on), b.sum_all(dy));
    let off = b.sub(all, on)?;
    let parts = [b.reshape(off, &[1]), b.reshape(on, &[1])];
    Ok(vec![None, None, Some(b.concat(&parts, 0))])
}

/// Y, I = the k largest or smallest elements along `axis` and where they were: X̄ is Ȳ at I, else 0; ONNX TopK-11.
pub fn top_k(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let x = c.x(0)?;
    let axis = b.axis(x, c.attrs.int("axis", -1)?)?;
    // Which elements were taken, and in what order, stands in I.
    c.attrs.ignore(&["largest", "sorted"]);
    let zeros = b.zeros(&b.ty(x));
    Ok(vec![Some(b.scatter_elements(zeros, c.y(1)?, c.dy()?, axis, "none"))])
}

/// Y = the slices of X along `axis` (elements of flat X without it) where the condition holds, which must be a constant: X̄ is Ȳ there,
/// else 0; ONNX Compress-11.
pub fn compress(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let condition = c.constant_ints(b, 1, "condition")?.ok_or_else(|| Error::new("input 1 is missing"))?;
    let taken: Vec<i64> = (0..).zip(&condition).filter(|(_, c)| **c != 0).map(|(i, _)| i).collect();
    let indices = b.ints(&taken);
    match c.attrs.get("axis") {
        Some(Attr::Int(axis)) => {
            let axis = b.axis(x, *axis)?;
            Ok(vec![Some(ungather(b, dy, x, axis, indices)?)])
        }
        _ => {
            let n = b.len(x);
            let flat = b.reshape(x, &[n]);
            let dx = ungather(b, dy, flat, 0, indices)?;
            let shape = b.shape(x).to_vec();
            Ok(vec![Some(b.reshape(dx, &shape))])
        }
    }
}

/// Y = X at places of its last dimension: written out as Gather; X […,d], `indices` [I], Y […,I], or [1,I] of a vector; ONNX
/// ai.onnx.ml ArrayFeatureExtractor-1.
pub fn array_feature_extractor(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, indices, shape) = (c.x(0)?, c.x(1)?, b.shape(c.y(0)?).to_vec());
    let n = b.len(indices);
    let indices = b.reshape(indices, &[n]);
    let last = b.axis(x, -1)?;
    let y = b.gather(x, indices, last);
    Ok(vec![Some(b.reshape(y, &shape))])
}
