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

pub(super) fn bias_gradient(b: &mut Builder<'_>, dy: ValueId) -> ValueId {
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
/// With strides of 1 it is a convolution with the weight turned round, which ONNX Runtime spreads over its threads, unlike the
/// transposed convolution that serves for other strides. (128, 16→16, 32², 3/1: 11 ms each with one thread, 5.5 and 8.9 with two.
/// 16→32, 3/2: 5.3, against 10.7 for a convolution per stride phase and 35 for one over Ȳ with zeros between.) Few channels from
/// many are better transposed: a convolution unfolds M channels, the transposed one folds C (64, 10→20, 12², 5/1: 3.0 and 0.7).
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
    let narrow = groups == 1 && window.taps() > 1 && inputs <= 32 && 2 * inputs <= shape[0];
    if window.strides.iter().all(|s| *s == 1) && !narrow {
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

/// How a weight gradient is computed; `docs/conv-lowering.md` explains the forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A matrix product.
    Product {
        /// The product of each sample, then the sum over samples; otherwise one product over all samples and positions.
        per_sample: bool,
        /// Along the first spatial dimension the copies are of Ȳ, along the others of X; otherwise all are of X.
        rows: bool,
    },
    /// A convolution with samples and channels in each other's place.
    Swapped,
    /// A convolution with each channel of each sample as a group of its own.
    Depthwise,
}

/// The fastest of the forms, which depends on how much they copy.
///
/// A product needs a copy of X for every element of a window, K₁·K₂·C·|O| numbers a sample. With strides of 1 along the first
/// dimension it does with K₁ copies of Ȳ and K₂ of X over the rows of X: (K₁·M + K₂·C)·|rows·O₂|. Milliseconds on ONNX Runtime
/// 1.32, one thread (`benches/conv_lowering.py`):
///
/// | N, C→M, input, kernel/stride | X, per sample | X, whole | X and Ȳ, per sample | X and Ȳ, whole | swapped |
/// |---|---|---|---|---|---|
/// | 128, 16→16, 32², 3/1 | 25.0 | 28.6 | 15.5 | 18.1 | 42.3 |
/// | 128, 32→32, 16², 3/1 | 17.9 | 18.3 | 13.1 | 13.1 | 25.2 |
/// | 128, 64→64, 8², 3/1 | 15.3 | 13.4 | 13.4 | 10.8 | 19.3 |
/// | 128, 48→12, 32², 3/1 | 84.4 | 87.2 | 37.2 | 38.7 | 109.7 |
/// | 128, 16→16, 28², 7/1 | 109.6 | 116.8 | 44.5 | 47.5 | 85.4 |
/// | 128, 3→16, 32², 3/1 | 3.9 | 4.3 | 6.8 | 7.0 | 7.4 |
/// | 128, 1→32, 28², 5/1 | 4.0 | 5.4 | 19.6 | 19.5 | 5.5 |
/// | 128, 16→32, 32², 3/2 | 12.2 | 13.4 | – | – | 13.3 |
/// | 16, 3→64, 112², 7/2 | 23.4 | 25.1 | – | – | 19.5 |
/// | 128, 128→128, 16², 1/1 | 15.9 | 21.3 | – | – | 66.9 |
/// | 128, 256→512, 4², 1/1 | 14.2 | 7.2 | – | – | 18.5 |
///
/// Depthwise, `X and Ȳ, per sample` against a group per channel and sample: 35 and 54 (128, 32, 32², 3/1), 47 and 63 (32, 96, 28²,
/// 7/1), 33 and 32 (128, 256, 8², 3/1).
fn form(b: &Builder<'_>, x: ValueId, dy: ValueId, window: &Window, groups: usize) -> Form {
    // Per group.
    let (m, c) = (b.shape(dy)[1] / groups, b.shape(x)[1] / groups);
    let (taps, positions) = (window.taps(), window.output.iter().product::<usize>());
    let first = window.kernel[0];
    let extent = window.input[0] * positions / window.output[0].max(1);
    let rows = first > 1 && window.strides[0] == 1 && (first * m + taps / first * c) * extent < taps * c * positions;
    if groups > 1 && c == 1 && (m > 1 || !rows || positions < 256) {
        return Form::Depthwise;
    }
    if !rows && taps >= 49 && groups == 1 && !window.tiles() {
        return Form::Swapped;
    }
    // A product per sample writes the weight once a sample, one for all transposes X and Ȳ.
    let (left, right, depth) = if rows { (first * m, taps / first * c, extent) } else { (m, taps * c, positions) };
    Form::Product { per_sample: 2 * left * right <= depth * (left + right), rows }
}

/// The cotangent of the weight of a convolution of `x` whose output has the cotangent `dy`.
fn weight_gradient(b: &mut Builder<'_>, x: ValueId, dy: ValueId, window: &Window, groups: usize) -> Result<ValueId> {
    let (outputs, channels) = (b.shape(dy)[1], b.shape(x)[1] / groups);
    let mut target = vec![outputs, channels];
    target.extend(&window.kernel);
    let (per_sample, rows) = match form(b, x, dy, window, groups) {
        Form::Swapped => return Ok(swapped(b, x, dy, window)),
        Form::Depthwise => return Ok(depthwise(b, x, dy, window, &target)),
        Form::Product { per_sample, rows } => (per_sample, rows),
    };
    let mut sum: Option<ValueId> = None;
    for range in chunks(b, x, dy, window, per_sample, rows) {
        let part = |b: &mut Builder<'_>, v| b.slice(v, &[0], &[range.start], &[range.end]);
        let (x, dy) = (part(b, x), part(b, dy));
        let product = if per_sample {
            let (x, dy) = copies(b, x, dy, window, rows, 1)?;
            let (x, dy) = (grouped(b, x, groups, 1), grouped(b, dy, groups, 1));
            let x = b.transpose_last(x);
            let each = b.matmul(dy, x)?;
            b.sum(each, &[0], false)
        } else {
            // [M,N,…] from [N,M,…].
            let swap: Vec<usize> = [1, 0].into_iter().chain(2..target.len()).collect();
            let (x, dy) = (b.transpose(x, &swap), b.transpose(dy, &swap));
            let (x, dy) = copies(b, x, dy, window, rows, 0)?;
            let (x, dy) = (grouped(b, x, groups, 0), grouped(b, dy, groups, 0));
            if groups == 1 {
                linalg::gemm(b, dy, false, x, true, 1.0)
            } else {
                let x = b.transpose_last(x);
                b.matmul(dy, x)?
            }
        };
        sum = Some(match sum {
            Some(sum) => b.add(sum, product)?,
            None => product,
        });
    }
    let mut dw = sum.ok_or_else(|| crate::Error::new("its input has no samples"))?;
    if rows {
        let (first, rest) = (window.kernel[0], window.taps() / window.kernel[0]);
        dw = b.reshape(dw, &[outputs, first, channels, rest]);
        dw = b.transpose(dw, &[0, 2, 1, 3]);
    }
    Ok(b.reshape(dw, &target))
}

/// Ranges of samples whose copies are small enough: per sample they then stay in the cache, and always they bound the memory.
fn chunks(
    b: &Builder<'_>,
    x: ValueId,
    dy: ValueId,
    window: &Window,
    per_sample: bool,
    rows: bool,
) -> Vec<std::ops::Range<usize>> {
    let (n, m, c) = (b.shape(x)[0], b.shape(dy)[1], b.shape(x)[1]);
    let (taps, positions) = (window.taps(), window.output.iter().product::<usize>());
    let first = window.kernel[0];
    let copied = match rows {
        true => (first * m + taps / first * c) * window.input[0] * positions / window.output[0].max(1),
        false if taps > 1 => taps * c * positions,
        false => 0,
    };
    let limit: usize = if per_sample { 16 << 20 } else { 64 << 20 };
    let count = (n * copied * b.dtype(x).width()).div_ceil(limit).clamp(1, n.max(1));
    (0..count).map(|i| i * n / count..(i + 1) * n / count).filter(|r| !r.is_empty()).collect()
}

/// The factors of the product: [.., channels, copies, positions] of `x` and of `dy`, whose channels are dimension `axis`; with
/// `axis` 0 the samples are part of the positions.
fn copies(
    b: &mut Builder<'_>,
    x: ValueId,
    dy: ValueId,
    window: &Window,
    rows: bool,
    axis: usize,
) -> Result<(ValueId, ValueId)> {
    if !rows {
        let framed = window.frame(b, x);
        let parts = window.slices(b, framed);
        return Ok((stack(b, &parts, axis), stack(b, &[dy], axis)));
    }
    // Row i of the copy of Ȳ for element t of the first dimension is the output that reads row i of X there.
    let (first, size) = (window.begin[0] as i64, window.input[0]);
    let down: Vec<ValueId> =
        (0..window.kernel[0]).map(|t| b.shift(dy, 2, first - (t * window.dilations[0]) as i64, size)).collect();
    let across = match window.kernel.len() {
        2 if window.strides[1] == 1 => {
            let start = |t: usize| (t * window.dilations[1]) as i64 - window.begin[1] as i64;
            (0..window.kernel[1]).map(|t| b.shift(x, 3, start(t), window.output[1])).collect()
        }
        _ => {
            let rest = window.without_first();
            let framed = rest.frame(b, x);
            rest.slices(b, framed)
        }
    };
    Ok((stack(b, &across, axis), stack(b, &down, axis)))
}

/// `parts` as [.., channels, parts, positions], with the channels as dimension `axis`.
fn stack(b: &mut Builder<'_>, parts: &[ValueId], axis: usize) -> ValueId {
    let shape = b.shape(parts[0]);
    let view = [&shape[..=axis], &[1, shape[axis + 1..].iter().product()]].concat();
    let parts: Vec<ValueId> = parts.iter().map(|p| b.reshape(*p, &view)).collect();
    b.concat(&parts, axis + 1)
}

/// [.., channels, copies, positions] as [.., groups, channels of a group · copies, positions], without a single group.
fn grouped(b: &mut Builder<'_>, v: ValueId, groups: usize, axis: usize) -> ValueId {
    let shape = b.shape(v).to_vec();
    let rows = shape[axis] / groups * shape[axis + 1];
    let mut view = shape[..axis].to_vec();
    if groups > 1 {
        view.push(groups);
    }
    view.extend([rows, shape[axis + 2]]);
    b.reshape(v, &view)
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
fn swapped(b: &mut Builder<'_>, x: ValueId, dy: ValueId, window: &Window) -> ValueId {
    let swap: Vec<usize> = [1, 0].into_iter().chain(2..b.rank(x)).collect();
    let framed = window.frame(b, x);
    let framed = b.transpose(framed, &swap);
    let dy = b.transpose(dy, &swap);
    // The frame ends where the last window does: exactly the kernel's size comes out.
    let mut shape = vec![b.shape(framed)[0], b.shape(dy)[0]];
    shape.extend(&window.kernel);
    let dw = emit(b, "Conv", framed, dy, &shape, &window.dilations, &window.strides, 1, attrs([]));
    b.transpose(dw, &swap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Graph, Source};

    fn form_of(n: usize, c: usize, m: usize, input: usize, kernel: usize, stride: usize, groups: usize) -> Form {
        let pad = kernel / 2;
        let output = (input + 2 * pad - kernel) / stride + 1;
        let two = |v: usize| vec![v; 2];
        let window = Window {
            input: two(input),
            output: two(output),
            kernel: two(kernel),
            strides: two(stride),
            dilations: two(1),
            begin: two(pad),
            end: two(pad),
        };
        let mut graph = Graph::default();
        let mut value = |shape: &[usize]| graph.add_value("v", Some(Type::new(DType::F32, shape)), Source::Node);
        let (x, dy) = (value(&[n, c, input, input]), value(&[n, m, output, output]));
        form(&Builder::new(&mut graph, "t"), x, dy, &window, groups)
    }

    #[test]
    fn the_form_follows_the_measurements() {
        let product = |per_sample, rows| Form::Product { per_sample, rows };
        assert_eq!(form_of(128, 16, 16, 32, 3, 1, 1), product(true, true));
        assert_eq!(form_of(128, 64, 64, 8, 3, 1, 1), product(false, true));
        assert_eq!(form_of(128, 3, 16, 32, 3, 1, 1), product(true, false));
        assert_eq!(form_of(128, 16, 32, 32, 3, 2, 1), product(true, false));
        assert_eq!(form_of(128, 256, 512, 4, 1, 1, 1), product(false, false));
        assert_eq!(form_of(16, 3, 64, 112, 7, 2, 1), Form::Swapped);
        assert_eq!(form_of(128, 32, 32, 32, 3, 1, 32), product(true, true));
        assert_eq!(form_of(128, 64, 64, 32, 3, 2, 64), Form::Depthwise);
    }
}
