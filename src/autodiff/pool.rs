//! Pooling over windows and over all positions; X [N,C,D…], Y [N,C,O…].

use super::norm::nonzero;
use super::window::{Window, resize};
use super::{Call, Cotangents, Lowered, conv};
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, DType, Tensor, Type, ValueId};

/// The window of a pooling, whose size is an attribute.
pub(super) fn window(b: &Builder<'_>, c: &Call<'_>) -> Result<Window> {
    let kernel = c.attrs.ints("kernel_shape")?.unwrap_or_default();
    if kernel.is_empty() || kernel.iter().any(|k| *k < 1) {
        crate::bail!("`kernel_shape` is {kernel:?}");
    }
    // The output's shape is known.
    c.attrs.ignore(&["ceil_mode"]);
    Window::new(b, c, kernel.into_iter().map(|k| k as usize).collect())
}

/// Y = max of each window: each Ȳ goes to the place where its maximum was found, the node's second output, which is asked for
/// where the file leaves it out; ONNX MaxPool-12.
///
/// Of equal elements ONNX Runtime takes the first, as PyTorch does.
pub fn max_pool(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let columns = c.attrs.int("storage_order", 0)? != 0;
    let window = window(b, c)?;
    let ty = b.ty(x);
    let mut indices = c.ask_output(b, 1, Type::new(DType::I64, b.shape(dy)))?;
    if columns {
        indices = row_major(b, indices, &window.input)?;
    }
    let (n, flat) = (b.len(dy), Type::new(ty.dtype, &[ty.len()]));
    // Indices count through the whole input.
    let (indices, dy) = (b.reshape(indices, &[n]), b.reshape(dy, &[n]));
    let zeros = b.zeros(&flat);
    let reduction = if window.apart() { "none" } else { "add" };
    let dx = b.scatter_elements(zeros, indices, dy, 0, reduction);
    Ok(vec![Some(b.reshape(dx, &ty.shape))])
}

/// Indices into planes of this shape stored with the first dimension next to each other, turned into indices of the usual order.
fn row_major(b: &mut Builder<'_>, indices: ValueId, plane: &[usize]) -> Result<ValueId> {
    let int = |b: &mut Builder<'_>, v: usize| b.constant(Tensor::scalar(DType::I64, v as f64));
    let size = int(b, plane.iter().product());
    let mut rest = b.binary("Mod", indices, size)?;
    let mut place = b.binary("Sub", indices, rest)?;
    for (i, d) in plane.iter().enumerate() {
        let (d, stride) = (int(b, *d), int(b, plane[i + 1..].iter().product()));
        let at = b.binary("Mod", rest, d)?;
        rest = b.binary("Div", rest, d)?;
        let at = b.binary("Mul", at, stride)?;
        place = b.binary("Add", place, at)?;
    }
    Ok(place)
}

/// Y = Σ of each window/n: X̄ sums Ȳ/n over the windows an element is in; n is the size of the window, without its elements in
/// the padding unless `count_include_pad`; ONNX AveragePool-19.
pub fn average_pool(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let window = window(b, c)?;
    let padding = c.attrs.flag("count_include_pad", false)?;
    let Type { dtype, shape } = b.ty(x);
    let rank = window.kernel.len();
    let view = [&[1, 1], window.output.as_slice()].concat();
    // 1/#elements of X in each window.
    let share = Tensor::from_f64(dtype, &view, &shares(&window));
    let mut share = match share.uniform() {
        Some(share) => b.scalar(share, dtype),
        None => b.constant(share),
    };
    let padded = |i: usize| window.begin[i] + window.end[i] > 0 || window.reach(i) > window.input[i];
    if padding && (0..rank).any(padded) {
        // The pooling of ones is that number over n, whatever the runtime counts (ONNX Runtime 1.23 and 1.32 differ).
        let ones = b.constant(Tensor::full(dtype, &[&[1, 1], window.input.as_slice()].concat(), 1.0));
        let ratio = b.op("AveragePool", &[ones], c.node.attrs.clone(), Type::new(dtype, &view));
        share = b.mul(ratio, share)?;
    }
    let dy = b.mul(dy, share)?;
    if window.tiles() {
        // [N,C,O₁,1,O₂,1,…] repeated to [N,C,O₁,K₁,O₂,K₂,…]
        let (mut thin, mut wide) = (shape[..2].to_vec(), shape[..2].to_vec());
        for (o, k) in window.output.iter().zip(&window.kernel) {
            thin.extend([*o, 1]);
            wide.extend([*o, *k]);
        }
        let dy = b.reshape(dy, &thin);
        let dy = b.expand(dy, &wide);
        let covered: Vec<usize> = (0..rank).map(|i| window.reach(i)).collect();
        let dx = b.reshape(dy, &[&shape[..2], &covered].concat());
        let rest: Vec<i64> = (0..rank).map(|i| (shape[i + 2] - covered[i]) as i64).collect();
        return Ok(vec![Some(resize(b, dx, &vec![0; rank], &rest))]);
    }
    // Every channel is a sample of its own, under a weight of ones.
    let dy = b.reshape(dy, &[&[shape[0] * shape[1], 1], window.output.as_slice()].concat());
    let ones = b.constant(Tensor::full(dtype, &[&[1, 1], window.kernel.as_slice()].concat(), 1.0));
    let dx = conv::input_gradient(b, dy, ones, &window, 1);
    Ok(vec![Some(b.reshape(dx, &shape))])
}

/// 1/#elements of X in every window, in row-major order.
fn shares(window: &Window) -> Vec<f64> {
    let count = |i: usize, o: usize| {
        let inside = window.begin[i]..window.begin[i] + window.input[i];
        let place = |t: usize| o * window.strides[i] + t * window.dilations[i];
        (0..window.kernel[i]).filter(|t| inside.contains(&place(*t))).count()
    };
    let mut shares = vec![1.0];
    for i in 0..window.kernel.len() {
        let line: Vec<f64> = (0..window.output[i]).map(|o| 1.0 / count(i, o).max(1) as f64).collect();
        shares = shares.iter().flat_map(|s| line.iter().map(move |l| s * l)).collect();
    }
    shares
}

/// Y = mean over all positions: X̄ = Ȳ/n, n positions; ONNX GlobalAveragePool-1.
pub fn global_average_pool(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let shape = b.shape(c.x(0)?).to_vec();
    let positions: usize = shape[2..].iter().product();
    let share = b.scale(c.dy()?, 1.0 / positions as f64)?;
    Ok(vec![Some(b.expand(share, &shape))])
}

/// Y = max over all positions: X̄ = Ȳ·[X = Y]/#{X = Y}; ONNX GlobalMaxPool-1.
///
/// Equal maxima share the cotangent evenly, as `torch.amax`.
pub fn global_max_pool(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, y) = (c.x(0)?, c.y(0)?);
    let axes: Vec<usize> = (2..b.rank(x)).collect();
    let mask = b.mask("Equal", x, y, x)?;
    let count = b.sum(mask, &axes, true);
    let share = b.div(c.dy()?, count)?;
    Ok(vec![Some(b.mul(share, mask)?)])
}

/// Y = (Σ |X|ᵖ)^(1/p) of each window, 0 where the sum is: written out, the sum as a convolution with ones; ONNX LpPool-22.
pub fn lp_pool(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let x = c.x(0)?;
    let p = c.attrs.int("p", 2)?;
    let w = window(b, c)?;
    let (shape, out) = (b.shape(x).to_vec(), b.ty(c.y(0)?));
    let power = magnitude(b, x, p)?;
    // Every channel is a sample of its own.
    let single = [&[shape[0] * shape[1], 1], &shape[2..]].concat();
    let power = b.reshape(power, &single);
    let framed = w.frame(b, power);
    let ones = b.constant(Tensor::full(out.dtype, &[&[1, 1], w.kernel.as_slice()].concat(), 1.0));
    let list = |v: &[usize]| Attr::Ints(v.iter().map(|v| *v as i64).collect());
    let window = attrs([("strides", list(&w.strides)), ("dilations", list(&w.dilations))]);
    let view = [&[shape[0] * shape[1], 1], w.output.as_slice()].concat();
    let sum = b.op("Conv", &[framed, ones], window, Type::new(out.dtype, &view));
    let sum = b.reshape(sum, &out.shape);
    Ok(vec![Some(root(b, sum, p)?)])
}

/// Y = (Σ |X|ᵖ)^(1/p) over all positions, 0 where the sum is: written out; ONNX GlobalLpPool-22.
pub fn global_lp_pool(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let x = c.x(0)?;
    let p = c.attrs.int("p", 2)?;
    let axes: Vec<usize> = (2..b.rank(x)).collect();
    let power = magnitude(b, x, p)?;
    let sum = b.sum(power, &axes, true);
    Ok(vec![Some(root(b, sum, p)?)])
}

/// |X|ᵖ
fn magnitude(b: &mut Builder<'_>, x: ValueId, p: i64) -> Result<ValueId> {
    match p {
        1 => Ok(b.unary("Abs", x)),
        2 => b.square(x),
        _ => {
            let (size, p) = (b.unary("Abs", x), b.scalar_like(p as f64, x));
            b.binary("Pow", size, p)
        }
    }
}

/// X^(1/p), whose gradient is 0 at 0.
fn root(b: &mut Builder<'_>, x: ValueId, p: i64) -> Result<ValueId> {
    if p == 1 {
        return Ok(x);
    }
    let (zero, exponent) = (b.scalar_like(0.0, x), b.scalar_like(1.0 / p as f64, x));
    let empty = b.binary("Equal", x, zero)?;
    let safe = nonzero(b, x)?;
    let root = if p == 2 { b.unary("Sqrt", safe) } else { b.binary("Pow", safe, exponent)? };
    b.select(empty, zero, root)
}

/// Y is 0 but for X at the places `indices` of the flat Y: X̄ = Ȳ there; X, `indices` [N,C,D…]; ONNX MaxUnpool-22.
pub fn max_unpool(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    // The output's shape is known.
    c.attrs.ignore(&["kernel_shape", "strides", "pads"]);
    let (x, dy) = (c.x(0)?, c.dy()?);
    let (n, shape) = (b.len(dy), b.shape(x).to_vec());
    let flat = b.reshape(dy, &[n]);
    let indices = b.reshape(c.x(1)?, &[shape.iter().product()]);
    let dx = b.gather(flat, indices, 0);
    Ok(vec![Some(b.reshape(dx, &shape))])
}
