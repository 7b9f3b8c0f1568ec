//! Convolutions.
//!
//! X [N,C,D…] are the inputs, W [M,C/g,K…] the weights and Y [N,M,O…] the outputs of a convolution with g groups; a transposed
//! convolution is the same with X and Y in each other's place.

use super::window::{Window, resize};
use super::{Call, Cotangents, linalg};
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Attrs, Type, ValueId};

fn list(values: &[usize]) -> Attr {
    Attr::Ints(values.iter().map(|v| *v as i64).collect())
}

/// Y = W ∗ X + B: X̄ is the transposed convolution of Ȳ with W, W̄ the correlation of X with Ȳ, B̄ = Σ Ȳ over all but M; ONNX Conv-11.
pub fn conv(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, weight, dy) = (c.x(0)?, c.x(1)?, c.dy()?);
    let groups = groups(c)?;
    let window = Window::new(b, c, kernel(b, weight)?)?;
    let dx = if c.wants(0) { Some(input_gradient(b, dy, weight, &window, groups)) } else { None };
    let dw = if c.wants(1) { Some(weight_gradient(b, x, dy, &window, groups)?) } else { None };
    Ok(vec![dx, dw, c.wants(2).then(|| bias_gradient(b, dy))])
}

/// Y = Wᵀ ∗ X + B: X̄ is the convolution of Ȳ with W, W̄ the correlation of Ȳ with X, B̄ = Σ Ȳ over all but M; X [N,C,D…],
/// W [C,M/g,K…], Y [N,M,O…]; ONNX ConvTranspose-11.
pub fn conv_transpose(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, weight, dy) = (c.x(0)?, c.x(1)?, c.dy()?);
    let groups = groups(c)?;
    let window = Window::transposed(b, c, kernel(b, weight)?)?;
    let dx = c.wants(0).then(|| {
        let framed = window.frame(b, dy);
        let mut shape = b.shape(x)[..2].to_vec();
        shape.extend(&window.output);
        emit(b, "Conv", framed, weight, &shape, &window.strides, &window.dilations, groups, attrs([]))
    });
    let dw = if c.wants(1) { Some(weight_gradient(b, dy, x, &window, groups)?) } else { None };
    Ok(vec![dx, dw, c.wants(2).then(|| bias_gradient(b, dy))])
}

fn groups(c: &Call<'_>) -> Result<usize> {
    Ok(c.attrs.int("group", 1)?.max(1) as usize)
}

fn kernel(b: &Builder<'_>, weight: ValueId) -> Result<Vec<usize>> {
    let shape = b.shape(weight);
    if shape.len() < 3 {
        crate::bail!("a weight of shape {shape:?} has no spatial dimensions");
    }
    Ok(shape[2..].to_vec())
}

fn bias_gradient(b: &mut Builder<'_>, dy: ValueId) -> ValueId {
    let axes: Vec<usize> = (0..b.rank(dy)).filter(|a| *a != 1).collect();
    b.sum(dy, &axes, false)
}

/// Appends a Conv or ConvTranspose without bias.
#[allow(clippy::too_many_arguments)]
fn emit(
    b: &mut Builder<'_>,
    op: &str,
    x: ValueId,
    weight: ValueId,
    shape: &[usize],
    strides: &[usize],
    dilations: &[usize],
    groups: usize,
    mut more: Attrs,
) -> ValueId {
    more.extend(attrs([("strides", list(strides)), ("dilations", list(dilations))]));
    more.insert("kernel_shape".into(), list(&b.shape(weight)[2..]));
    if groups != 1 {
        more.insert("group".into(), Attr::Int(groups as i64));
    }
    let ty = Type::new(b.dtype(x), shape);
    b.op(op, &[x, weight], more, ty)
}

/// The cotangent of the input of a convolution whose output has the cotangent `dy`.
///
/// With strides of 1 it is a convolution with the weight turned round, which ONNX Runtime runs faster than the transposed
/// convolution that serves for other strides.
pub(super) fn input_gradient(
    b: &mut Builder<'_>,
    dy: ValueId,
    weight: ValueId,
    window: &Window,
    groups: usize,
) -> ValueId {
    let shape = b.shape(weight).to_vec();
    let inputs = shape[1] * groups;
    let mut target = vec![b.shape(dy)[0], inputs];
    target.extend(&window.input);
    let rank = window.kernel.len();
    if window.strides.iter().all(|s| *s == 1) {
        let before: Vec<i64> = (0..rank).map(|i| window.extent(i) as i64 - 1 - window.begin[i] as i64).collect();
        let grown = |i: usize| window.output[i] as i64 + before[i] + 1 - window.extent(i) as i64;
        let after: Vec<i64> = (0..rank).map(|i| window.input[i] as i64 - grown(i)).collect();
        // More padding than a window is wide: the outermost outputs saw nothing but zeros.
        let crop = |pads: &[i64]| -> Vec<i64> { pads.iter().map(|p| *p.min(&0)).collect() };
        let dy = resize(b, dy, &crop(&before), &crop(&after));
        let pads: Vec<usize> = before.iter().chain(&after).map(|p| *p.max(&0) as usize).collect();
        let turned = turn(b, weight, groups);
        let pads = attrs([("pads", list(&pads))]);
        return emit(b, "Conv", dy, turned, &target, &window.strides, &window.dilations, groups, pads);
    }
    let pads = [window.begin.as_slice(), window.end.as_slice()].concat();
    // What the last window leaves over of the input, less than a stride.
    let padded = |i: usize| window.input[i] + window.begin[i] + window.end[i];
    if (0..rank).all(|i| (window.reach(i)..window.reach(i) + window.strides[i]).contains(&padded(i))) {
        let rest: Vec<usize> = (0..rank).map(|i| padded(i) - window.reach(i)).collect();
        let more = attrs([("pads", list(&pads)), ("output_padding", list(&rest))]);
        return emit(b, "ConvTranspose", dy, weight, &target, &window.strides, &window.dilations, groups, more);
    }
    let mut full = target[..2].to_vec();
    full.extend((0..rank).map(|i| window.reach(i)));
    let dx = emit(b, "ConvTranspose", dy, weight, &full, &window.strides, &window.dilations, groups, attrs([]));
    let before: Vec<i64> = window.begin.iter().map(|p| -(*p as i64)).collect();
    let missing = |i: usize| (window.input[i] + window.begin[i]) as i64 - window.reach(i) as i64;
    let after: Vec<i64> = (0..rank).map(missing).collect();
    resize(b, dx, &before, &after)
}

/// W [M,C/g,K…] with input and output channels swapped within each group, [C,M/g,K…], and every window in the opposite order.
fn turn(b: &mut Builder<'_>, weight: ValueId, groups: usize) -> ValueId {
    let shape = b.shape(weight).to_vec();
    let (m, c) = (shape[0] / groups, shape[1]);
    let axes: Vec<usize> = (2..shape.len()).collect();
    let weight = b.reverse(weight, &axes);
    let split = [&[groups, m, c], &shape[2..]].concat();
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..split.len()).collect();
    let joined = [&[groups * c, m], &shape[2..]].concat();
    if groups == 1 {
        let perm: Vec<usize> = [1, 0].into_iter().chain(2..shape.len()).collect();
        return b.transpose(weight, &perm);
    }
    let weight = b.reshape(weight, &split);
    let weight = b.transpose(weight, &perm);
    b.reshape(weight, &joined)
}

/// How a weight gradient is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A matrix product over all samples and positions at once.
    Whole,
    /// A matrix product over the positions of each sample, then the sum over samples.
    PerSample,
    /// A convolution with samples and channels in each other's place.
    Swapped,
}

/// The fastest of the forms for a weight of `m` outputs, `c` inputs and `taps` elements of a window, at `positions` per sample.
///
/// Milliseconds on ONNX Runtime 1.32, two threads:
///
/// | N, C→M, input, kernel/stride | whole | per sample | swapped |
/// |---|---|---|---|
/// | 128, 16→16, 32², 3/1 | 19.1 | 16.2 | 53.9 |
/// | 128, 32→32, 16², 3/1 | 11.2 | 11.5 | 25.6 |
/// | 128, 64→64, 8², 3/1 | 9.0 | 10.5 | 16.8 |
/// | 128, 16→32, 32², 3/2 | 10.9 | 9.8 | 18.1 |
/// | 128, 32→64, 16², 3/2 | 6.5 | 7.2 | 10.4 |
/// | 16, 512→512, 7², 3/1 | 23.0 | 44.7 | 40.0 |
/// | 128, 64→64, 16², 1/1 | 5.7 | 2.5 | 27.9 |
/// | 16, 256→1024, 14², 1/1 | 8.7 | 11.5 | 28.7 |
/// | 16, 3→64, 112², 7/2 | 22.9 | 16.1 | 12.5 |
/// | 128, 16→16, 28², 7/1 | 71.2 | 76.5 | 43.3 |
/// | 128, 32→32, 16², 5/1 | 30.0 | 32.7 | 162.3 |
///
/// Per sample it writes the weight once a sample; whole it transposes X and Ȳ. Many slices of few channels are the worst case of
/// both.
fn form(m: usize, c: usize, taps: usize, positions: usize) -> Form {
    match () {
        () if taps >= 25 && c <= 16 => Form::Swapped,
        () if 2 * m * c * taps <= positions * (m + c) => Form::PerSample,
        () => Form::Whole,
    }
}

/// The cotangent of the weight of a convolution of `x` whose output has the cotangent `dy`.
///
/// Whole: W̄ [M,C·K] = Ȳ [M,N·O] · (X at each element of a window) [C·K,N·O]ᵀ.
fn weight_gradient(b: &mut Builder<'_>, x: ValueId, dy: ValueId, window: &Window, groups: usize) -> Result<ValueId> {
    let (n, m, channels) = (b.shape(x)[0], b.shape(dy)[1] / groups, b.shape(x)[1] / groups);
    let (taps, positions) = (window.taps(), window.output.iter().product::<usize>());
    let mut target = vec![groups * m, channels];
    target.extend(&window.kernel);
    let rank = target.len();
    // [M,N,…] from [N,M,…].
    let swap: Vec<usize> = [1, 0].into_iter().chain(2..rank).collect();
    let form = form(m, channels, taps, positions);
    if form == Form::Swapped && groups == 1 && !window.tiles() {
        return Ok(swapped(b, x, dy, window, &swap));
    }
    if groups > 1 && channels == 1 {
        return Ok(depthwise(b, x, dy, window, &target));
    }
    let framed = window.frame(b, x);
    if form == Form::PerSample {
        let columns = columns(b, framed, window, &[n, groups, channels, positions], 2);
        let columns = b.transpose_last(columns);
        let dy = b.reshape(dy, &[n, groups, m, positions]);
        let each = b.matmul(dy, columns)?;
        let sum = b.sum(each, &[0], false);
        return Ok(gather_taps(b, sum, groups * m, channels, taps, &target));
    }
    let framed = b.transpose(framed, &swap);
    let dy = b.transpose(dy, &swap);
    let product = if groups == 1 {
        let columns = columns(b, framed, window, &[channels, n * positions], 0);
        let dy = b.reshape(dy, &[m, n * positions]);
        linalg::gemm(b, dy, false, columns, true, 1.0)
    } else {
        let columns = columns(b, framed, window, &[groups, channels, n * positions], 1);
        let columns = b.transpose_last(columns);
        let dy = b.reshape(dy, &[groups, m, n * positions]);
        b.matmul(dy, columns)?
    };
    Ok(gather_taps(b, product, groups * m, channels, taps, &target))
}

/// The elements of every window, each viewed as `view` and joined along `axis`.
fn columns(b: &mut Builder<'_>, framed: ValueId, window: &Window, view: &[usize], axis: usize) -> ValueId {
    let parts: Vec<ValueId> = window.slices(b, framed).into_iter().map(|part| b.reshape(part, view)).collect();
    b.concat(&parts, axis)
}

/// A weight from its elements in the order [M,K,C/g].
fn gather_taps(
    b: &mut Builder<'_>,
    product: ValueId,
    outputs: usize,
    channels: usize,
    taps: usize,
    target: &[usize],
) -> ValueId {
    if taps > 1 {
        let product = b.reshape(product, &[outputs, taps, channels]);
        let product = b.transpose(product, &[0, 2, 1]);
        return b.reshape(product, target);
    }
    b.reshape(product, target)
}

/// W̄ [M,1,K…] of one input channel per group: a convolution in which each channel of each sample is a group of its own, then the
/// sum over samples.
///
/// 32 samples of 96 channels of 28², kernel 3: 4.8 ms with a stride of 2, 14.6 with 1; as matrix products 10 and 15, as
/// a product and a sum for each element of a window 29 and 48. With a kernel of 7, 16.7 to 34.5 and 150.
fn depthwise(b: &mut Builder<'_>, x: ValueId, dy: ValueId, window: &Window, target: &[usize]) -> ValueId {
    let framed = window.frame(b, x);
    let (n, groups) = (b.shape(framed)[0], b.shape(framed)[1]);
    let data = [&[1, n * groups], &b.shape(framed)[2..]].concat();
    let weight = [&[n * target[0], 1], window.output.as_slice()].concat();
    let (data, weight) = (b.reshape(framed, &data), b.reshape(dy, &weight));
    let shape = [&[1, n * target[0]], window.kernel.as_slice()].concat();
    let each = emit(b, "Conv", data, weight, &shape, &window.dilations, &window.strides, n * groups, attrs([]));
    let each = b.reshape(each, &[&[n], target].concat());
    b.sum(each, &[0], false)
}

/// W̄ᵀ [C,M,K…] as the convolution of Xᵀ [C,N,D…] with Ȳᵀ [M,N,O…]; strides and dilations swap.
fn swapped(b: &mut Builder<'_>, x: ValueId, dy: ValueId, window: &Window, swap: &[usize]) -> ValueId {
    let framed = window.frame(b, x);
    let framed = b.transpose(framed, swap);
    let dy = b.transpose(dy, swap);
    // The frame ends where the last window does: exactly the kernel's size comes out.
    let mut shape = vec![b.shape(framed)[0], b.shape(dy)[0]];
    shape.extend(&window.kernel);
    let dw = emit(b, "Conv", framed, dy, &shape, &window.dilations, &window.strides, 1, attrs([]));
    b.transpose(dw, swap)
}
