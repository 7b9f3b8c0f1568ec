//! Operators that move elements to places known beforehand.

use super::{Call, Cotangents, Lowered};
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::{Tensor, ValueId};

/// Y = X in another shape: X̄ = Ȳ in X's shape; ONNX Reshape-14, Flatten-13, Squeeze-13, Unsqueeze-13.
pub fn reshape(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    // Both shapes are known.
    c.attrs.ignore(&["allowzero", "axis"]);
    let shape = b.shape(c.x(0)?).to_vec();
    Ok(vec![Some(b.reshape(c.dy()?, &shape))])
}

/// Dimension i of Y is dimension pᵢ of X (p reverses if absent): X̄ is Ȳ transposed by p⁻¹; ONNX Transpose-13.
pub fn transpose(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let rank = b.rank(c.x(0)?);
    let perm = c.attrs.ints("perm")?.unwrap_or_else(|| (0..rank as i64).rev().collect());
    let mut inverse = vec![0; rank];
    for (i, p) in perm.iter().enumerate() {
        inverse[*p as usize] = i;
    }
    Ok(vec![Some(b.transpose(c.dy()?, &inverse))])
}

/// Y = X₁ … Xₙ joined along `axis`: X̄ᵢ is the i-th part of Ȳ; ONNX Concat-13.
pub fn concat(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    let axis = b.axis(dy, c.attrs.int("axis", 0)?)?;
    let mut start = 0;
    let mut parts = Vec::new();
    for i in 0..c.node.inputs.len() {
        let end = start + b.shape(c.x(i)?)[axis];
        parts.push(c.wants(i).then(|| b.slice(dy, &[axis], &[start], &[end])));
        start = end;
    }
    Ok(parts)
}

/// Y₁ … Yₙ are the parts of X along `axis`: X̄ is Ȳ₁ … Ȳₙ joined, 0 for parts without cotangent; ONNX Split-18.
pub fn split(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let x = b.ty(c.x(0)?);
    let axis = b.axis(c.x(0)?, c.attrs.int("axis", 0)?)?;
    let n = c.attrs.int("num_outputs", c.node.outputs.len() as i64)?.max(1) as usize;
    let sizes: Vec<usize> = match c.constant_ints(b, 1, "split")? {
        Some(sizes) => sizes.iter().map(|s| *s as usize).collect(),
        None => {
            let size = x.shape[axis].div_ceil(n);
            (0..n).map(|i| size.min(x.shape[axis].saturating_sub(i * size))).collect()
        }
    };
    let given: Vec<usize> = (0..sizes.len()).filter(|i| c.dy_of(*i).is_some()).collect();
    if let ([only], Some(dy)) = (given.as_slice(), given.first().and_then(|i| c.dy_of(*i))) {
        let (mut before, mut after) = (vec![0; x.shape.len()], vec![0; x.shape.len()]);
        before[axis] = sizes[..*only].iter().sum();
        after[axis] = sizes[only + 1..].iter().sum();
        return Ok(vec![Some(b.pad(dy, &before, &after))]);
    }
    let mut parts = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let mut part = x.clone();
        part.shape[axis] = *size;
        parts.push(c.dy_of(i).unwrap_or_else(|| b.zeros(&part)));
    }
    Ok(vec![Some(b.concat(&parts, axis))])
}

/// Y takes every `step`-th element of X from `start` to `end` along each of `axes`: X̄ is Ȳ at those places, else 0; ONNX Slice-13.
pub fn slice(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let shape = b.shape(x).to_vec();
    let starts = c.constant_ints(b, 1, "starts")?.unwrap_or_default();
    let axes = c.constant_ints(b, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = c.constant_ints(b, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if axes.len() != starts.len() || steps.len() != starts.len() || steps.contains(&0) {
        crate::bail!("starts {starts:?}, axes {axes:?} and steps {steps:?} do not fit");
    }
    let (mut first, mut stride) = (vec![0; shape.len()], vec![1; shape.len()]);
    let mut backwards = Vec::new();
    for ((start, axis), step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = b.axis(x, *axis)?;
        let (dim, taken) = (shape[axis] as i64, b.shape(dy)[axis] as i64);
        let start = if *start < 0 { start.saturating_add(dim) } else { *start };
        let start = start.clamp(0, if *step > 0 { dim } else { dim - 1 });
        stride[axis] = step.unsigned_abs() as usize;
        first[axis] = start as usize;
        if *step < 0 && taken > 0 {
            backwards.push(axis);
            first[axis] = (start + (taken - 1) * step) as usize;
        }
    }
    let dy = b.reverse(dy, &backwards);
    Ok(vec![Some(spread(b, dy, &first, &stride, &shape))])
}

/// Zeros of `shape` with element i of `v` at `first + i·stride`, along every dimension.
pub(super) fn spread(b: &mut Builder<'_>, v: ValueId, first: &[usize], stride: &[usize], shape: &[usize]) -> ValueId {
    let mut ty = b.ty(v);
    if ty.is_empty() {
        ty.shape = shape.to_vec();
        return b.zeros(&ty);
    }
    // A strided dimension is seen as [blocks, stride], and both of these are padded.
    let (mut view, mut before, mut after, mut padded) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (((n, dim), first), stride) in ty.shape.iter().zip(shape).zip(first).zip(stride) {
        let stride = if *n == 1 { 1 } else { *stride };
        let blocks = dim.div_ceil(stride);
        view.push(*n);
        before.push(first / stride);
        after.push(blocks - n - first / stride);
        if stride > 1 {
            view.push(1);
            before.push(first % stride);
            after.push(stride - 1 - first % stride);
        }
        padded.push(blocks * stride);
    }
    let v = b.reshape(v, &view);
    let v = b.pad(v, &before, &after);
    let v = b.reshape(v, &padded);
    let axes: Vec<usize> = (0..shape.len()).collect();
    b.slice(v, &axes, &vec![0; shape.len()], shape)
}

/// Y = X broadcast to a shape: X̄ = Ȳ summed down by the driver; ONNX Expand-13.
pub fn expand(_: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    Ok(vec![Some(c.dy()?)])
}

/// Y repeats X rᵢ times along dimension i: X̄ sums Ȳ over the repetitions; ONNX Tile-13.
pub fn tile(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let shape = b.shape(c.x(0)?).to_vec();
    let repeats = c.constant_ints(b, 1, "repeats")?.unwrap_or_default();
    let (mut view, mut axes) = (Vec::new(), Vec::new());
    for (dim, r) in shape.iter().zip(&repeats) {
        if *r != 1 {
            axes.push(view.len());
            view.push(*r as usize);
        }
        view.push(*dim);
    }
    let dy = b.reshape(c.dy()?, &view);
    let dx = b.sum(dy, &axes, false);
    Ok(vec![Some(b.reshape(dx, &shape))])
}

/// Y is X with `pads` elements more (or, where negative, fewer) on each side; ONNX Pad-19.
///
/// Mode `constant` puts a number there: X̄ is the inner part of Ȳ, the number's cotangent the sum of the rest. Modes `reflect`, `edge`
/// and `wrap` repeat elements of X: X̄ adds up the places each element went to.
pub fn pad(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let shape = b.shape(x).to_vec();
    let pads = c.constant_ints(b, 1, "pads")?.unwrap_or_default();
    let axes = match c.constant_ints(b, 3, "axes")? {
        Some(axes) => axes.iter().map(|a| b.axis(x, *a)).collect::<Result<Vec<_>>>()?,
        None => (0..shape.len()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        crate::bail!("{} pads for {} axes", pads.len(), axes.len());
    }
    let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
    for (i, axis) in axes.iter().enumerate() {
        (before[*axis], after[*axis]) = (pads[i], pads[axes.len() + i]);
    }
    let mode = c.attrs.str("mode", "constant")?;
    if mode == "constant" {
        let all: Vec<usize> = (0..shape.len()).collect();
        let count = |p: i64| p.max(0) as usize;
        let start: Vec<usize> = before.iter().map(|p| count(*p)).collect();
        let end: Vec<usize> = all.iter().map(|i| b.shape(dy)[*i] - count(after[*i])).collect();
        let inner = b.slice(dy, &all, &start, &end);
        let cut = |pads: &[i64]| pads.iter().map(|p| count(-p)).collect::<Vec<_>>();
        let dx = b.pad(inner, &cut(&before), &cut(&after));
        let mut dvalue = None;
        if c.wants(2) {
            let (total, kept) = (b.sum_all(dy), b.sum_all(inner));
            dvalue = Some(b.sub(total, kept)?);
        }
        return Ok(vec![Some(dx), None, dvalue]);
    }
    let mut dx = dy;
    for (axis, dim) in shape.iter().enumerate() {
        if (before[axis], after[axis]) == (0, 0) {
            continue;
        }
        if before[axis].min(after[axis]) < 0 && before[axis].max(after[axis]) > 0 {
            crate::bail!("mode `{mode}` with a positive and a negative pad on axis {axis} has no gradient rule");
        }
        let sources = (0..b.shape(dy)[axis] as i64).map(|i| source(mode, i - before[axis], *dim as i64));
        let sources = sources.collect::<Result<Vec<_>>>()?;
        dx = fold(b, dx, axis, &sources, *dim)?;
    }
    Ok(vec![Some(dx)])
}

/// The element of a dimension of size `dim` that stands at `i`, inside or outside of it.
fn source(mode: &str, i: i64, dim: i64) -> Result<usize> {
    let j = match mode {
        "edge" => i.clamp(0, dim - 1),
        "wrap" => i.rem_euclid(dim),
        "reflect" => {
            let period = (2 * (dim - 1)).max(1);
            let j = i.rem_euclid(period);
            j.min(period - j)
        }
        other => crate::bail!("mode `{other}` is not known"),
    };
    Ok(j as usize)
}

/// Adds element i of `v` along `axis` to place `sources[i]` of `dim` places. Runs of neighbours move as one slice.
fn fold(b: &mut Builder<'_>, v: ValueId, axis: usize, sources: &[usize], dim: usize) -> Result<ValueId> {
    let mut total: Option<ValueId> = None;
    let mut start = 0;
    while start < sources.len() {
        let slope = |i: usize| sources.get(i + 1).map(|next| *next as i64 - sources[i] as i64);
        let direction = slope(start).filter(|s| s.abs() <= 1);
        let mut end = start + 1;
        while direction.is_some() && slope(end - 1) == direction {
            end += 1;
        }
        let mut part = b.slice(v, &[axis], &[start], &[end]);
        let mut place = sources[start];
        match direction {
            Some(0) => part = b.sum(part, &[axis], true),
            Some(-1) => {
                part = b.reverse(part, &[axis]);
                place = sources[end - 1];
            }
            _ => {}
        }
        let rank = b.rank(v);
        let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
        before[axis] = place;
        after[axis] = dim - place - b.shape(part)[axis];
        part = b.pad(part, &before, &after);
        total = Some(match total {
            Some(sum) => b.add(sum, part)?,
            None => part,
        });
        start = end;
    }
    total.ok_or_else(|| crate::Error::new("its output is empty"))
}

/// Y moves blocks of channels into b×b squares: X̄ moves them back; [N,C,H,W] → [N,C/b²,bH,bW]; ONNX DepthToSpace-13, both modes.
pub fn depth_to_space(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let [n, channels, h, w] = image(b, c.x(0)?)?;
    let block = c.attrs.int("blocksize", 1)?.max(1) as usize;
    let depth = channels / (block * block);
    let squares = b.reshape(c.dy()?, &[n, depth, h, block, w, block]);
    let perm = match c.attrs.str("mode", "DCR")? {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => crate::bail!("mode `{other}` is not known"),
    };
    let moved = b.transpose(squares, &perm);
    Ok(vec![Some(b.reshape(moved, &[n, channels, h, w]))])
}

/// Y moves b×b squares into blocks of channels: X̄ moves them back; [N,C,H,W] → [N,b²C,H/b,W/b]; ONNX SpaceToDepth-28, both modes.
pub fn space_to_depth(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let [n, channels, h, w] = image(b, c.x(0)?)?;
    let block = c.attrs.int("blocksize", 1)?.max(1) as usize;
    let (blocks, perm) = match c.attrs.str("mode", "DCR")? {
        "DCR" => ([n, block, block, channels, h / block, w / block], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n, channels, block, block, h / block, w / block], [0, 1, 4, 2, 5, 3]),
        other => crate::bail!("mode `{other}` is not known"),
    };
    let blocks = b.reshape(c.dy()?, &blocks);
    let moved = b.transpose(blocks, &perm);
    Ok(vec![Some(b.reshape(moved, &[n, channels, h, w]))])
}

fn image(b: &Builder<'_>, x: ValueId) -> Result<[usize; 4]> {
    let shape = b.shape(x);
    <[usize; 4]>::try_from(shape).map_err(|_| crate::Error::new(format!("shape {shape:?} should have rank 4")))
}

/// Y is X with one triangle of each matrix set to 0: X̄ is Ȳ with the same triangle set to 0; ONNX Trilu-14.
pub fn trilu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    let ty = b.ty(dy);
    Ok(vec![Some(b.raw("", "Trilu", &[Some(dy), c.opt(1)], c.attrs.all().clone(), &[ty])[0])])
}

/// Y reverses the first `sequence_lens[i]` steps of sequence i: X̄ reverses them back; ONNX ReverseSequence-10.
pub fn reverse_sequence(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    let ty = b.ty(dy);
    Ok(vec![Some(b.op("ReverseSequence", &[dy, c.x(1)?], c.attrs.all().clone(), ty))])
}

/// Y = X cut or filled with zeros at both ends of `axes` to a shape: written out; ONNX CenterCropPad-18.
pub fn center_crop_pad(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    // Where the shape says it, the output's shape does too.
    c.attrs.ignore(&["axes"]);
    let mut y = c.x(0)?;
    let target = b.shape(c.y(0)?).to_vec();
    for (axis, to) in target.into_iter().enumerate() {
        let from = b.shape(y)[axis];
        let start = if from > to { ((from - to) / 2) as i64 } else { -(((to - from) / 2) as i64) };
        y = b.shift(y, axis, start, to);
    }
    Ok(vec![Some(y)])
}

/// Y sums the columns of X into the windows they stand for: X̄ reads Ȳ's windows as columns, 0 in the padding; X [N,C·ΠK,L], Y [N,C,D…]; ONNX
/// Col2Im-18.
pub fn col2im(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let kernel = c.constant_ints(b, 2, "block_shape")?.unwrap_or_default();
    let rank = kernel.len();
    let each = |name: &'static str, default: i64, n: usize| -> Result<Vec<i64>> {
        Ok(c.attrs.ints(name)?.unwrap_or_else(|| vec![default; n]))
    };
    let (strides, dilations) = (each("strides", 1, rank)?, each("dilations", 1, rank)?);
    let pads = each("pads", 0, 2 * rank)?;
    let (from, to) = (b.shape(x).to_vec(), b.shape(dy).to_vec());
    let image = &to[2..];
    // For each dimension, the padded place of tap t of window o.
    let windows = |i: usize| {
        let extent = dilations[i] * (kernel[i] - 1) + 1;
        (image[i] as i64 + pads[i] + pads[rank + i] - extent) / strides[i] + 1
    };
    let counts: Vec<i64> = (0..rank).map(windows).collect();
    let padded: Vec<i64> = (0..rank).map(|i| image[i] as i64 + pads[i] + pads[rank + i]).collect();
    let (taps, places) = (kernel.iter().product::<i64>(), counts.iter().product::<i64>());
    let mut indices = Vec::with_capacity((taps * places) as usize);
    for tap in 0..taps {
        for place in 0..places {
            let (mut t, mut o, mut stride, mut index) = (tap, place, 1, 0);
            for i in (0..rank).rev() {
                index += (o % counts[i] * strides[i] + t % kernel[i] * dilations[i]) * stride;
                (t, o, stride) = (t / kernel[i], o / counts[i], stride * padded[i]);
            }
            indices.push(index);
        }
    }
    let around = |pads: &[i64]| -> Vec<usize> { [0, 0].into_iter().chain(pads.iter().map(|p| *p as usize)).collect() };
    let framed = b.pad(dy, &around(&pads[..rank]), &around(&pads[rank..]));
    let flat = b.reshape(framed, &[to[0], to[1], padded.iter().product::<i64>() as usize]);
    let indices = b.ints(&indices);
    let columns = b.gather(flat, indices, 2);
    Ok(vec![Some(b.reshape(columns, &from))])
}

/// Yᵢ = Π_{j ≤ i} Xⱼ along an axis (j < i if exclusive, j ≥ i if reverse): written out as products over a square of which one half is 1;
/// ONNX CumProd-26.
pub fn cum_prod(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let x = c.x(0)?;
    let (exclusive, reverse) = (c.attrs.flag("exclusive", false)?, c.attrs.flag("reverse", false)?);
    let axis = c.constant_ints(b, 1, "axis")?.and_then(|a| a.first().copied()).unwrap_or(0);
    let axis = b.axis(x, axis)?;
    let shape = b.shape(x).to_vec();
    let n = shape[axis];
    // Element j of row i counts.
    let counts = |i: usize, j: usize| match (reverse, exclusive) {
        (false, false) => j <= i,
        (false, true) => j < i,
        (true, false) => j >= i,
        (true, true) => j > i,
    };
    let square: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(counts(k / n, k % n)))).collect();
    let mut view = vec![1; shape.len() + 1];
    (view[axis], view[axis + 1]) = (n, n);
    let square = b.constant(Tensor::from_f64(crate::ir::DType::Bool, &view, &square));
    let mut row = shape.clone();
    row.insert(axis, 1);
    let rows = b.reshape(x, &row);
    let one = b.scalar_like(1.0, x);
    let wide = b.select(square, rows, one)?;
    Ok(vec![Some(b.reduce("ReduceProd", wide, &[axis + 1], false))])
}
