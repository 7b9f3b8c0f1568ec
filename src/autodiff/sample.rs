//! Operators that read images between pixels, at places computed at run time. All are written out: their gradients with respect to
//! the places come from the weights of the pixels around.

use super::{Call, Lowered};
use crate::builder::{Builder, attrs};
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Tensor, Type, ValueId};

/// How the value between pixels is made of those around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Nearest,
    Linear,
    Cubic,
}

/// What lies outside of the image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outside {
    Zeros,
    Border,
    /// Mirrored at the centres of the outermost pixels.
    ReflectCentres,
    /// Mirrored at the outer edges of the outermost pixels.
    ReflectEdges,
}

/// One of the pixels around a place, along one dimension.
struct Tap {
    /// Whole numbers within the image, in the float type.
    index: ValueId,
    /// Its share; none stands for 1.
    weight: Option<ValueId>,
}

/// The convolution coefficient of cubic interpolation in PyTorch and ONNX Runtime.
const CUBIC: f64 = -0.75;

/// `x` mirrored into [low, high].
fn reflect(b: &mut Builder<'_>, x: ValueId, low: f64, high: f64) -> Result<ValueId> {
    let span = high - low;
    if span <= 0.0 {
        return b.scale(x, 0.0);
    }
    let from = b.offset(x, -low)?;
    let from = b.unary("Abs", from);
    let twice = b.scalar_like(2.0 * span, x);
    let ty = b.ty(from);
    let rest = b.op("Mod", &[from, twice], attrs([("fmod", Attr::Int(1))]), ty);
    let off = b.offset(rest, -span)?;
    let off = b.unary("Abs", off);
    let off = b.neg(off);
    b.offset(off, span + low)
}

/// `x` kept within [low, high].
fn clamp(b: &mut Builder<'_>, x: ValueId, low: f64, high: f64) -> ValueId {
    let (low, high) = (b.scalar_like(low, x), b.scalar_like(high, x));
    let ty = b.ty(x);
    b.op("Clip", &[x, low, high], attrs([]), ty)
}

/// The pixel `index` along a dimension of `size`, with what lies outside.
fn tap(b: &mut Builder<'_>, index: ValueId, weight: Option<ValueId>, size: usize, outside: Outside) -> Result<Tap> {
    let last = size as f64 - 1.0;
    let (index, weight) = match outside {
        Outside::Zeros => {
            let (low, high) = (b.scalar_like(-0.5, index), b.scalar_like(last + 0.5, index));
            let (above, below) = (b.mask("Greater", index, low, index)?, b.mask("Less", index, high, index)?);
            let inside = b.mul(above, below)?;
            let weight = match weight {
                Some(weight) => b.mul(weight, inside)?,
                None => inside,
            };
            (index, Some(weight))
        }
        Outside::Border => (index, weight),
        Outside::ReflectCentres => (reflect(b, index, 0.0, last)?, weight),
        Outside::ReflectEdges => (reflect(b, index, -0.5, last + 0.5)?, weight),
    };
    Ok(Tap { index: clamp(b, index, 0.0, last), weight })
}

/// The pixels around `place`, in pixels along a dimension of `size`.
fn taps(b: &mut Builder<'_>, place: ValueId, size: usize, between: Between, outside: Outside) -> Result<Vec<Tap>> {
    let last = size as f64 - 1.0;
    let place = match outside {
        _ if between == Between::Cubic => place,
        Outside::Zeros => place,
        Outside::Border => clamp(b, place, 0.0, last),
        Outside::ReflectCentres => reflect(b, place, 0.0, last)?,
        Outside::ReflectEdges => {
            let place = reflect(b, place, -0.5, last + 0.5)?;
            clamp(b, place, 0.0, last)
        }
    };
    if between == Between::Nearest {
        let index = b.unary("Round", place);
        return Ok(vec![tap(b, index, None, size, outside)?]);
    }
    let low = b.unary("Floor", place);
    let t = b.sub(place, low)?;
    if between == Between::Linear {
        let (high, rest) = (b.offset(low, 1.0)?, b.one_minus(t)?);
        return Ok(vec![tap(b, low, Some(rest), size, outside)?, tap(b, high, Some(t), size, outside)?]);
    }
    let mut taps = Vec::with_capacity(4);
    for i in 0..4 {
        let index = b.offset(low, f64::from(i) - 1.0)?;
        // Distance to the pixel: t + 1, t, 1 − t, 2 − t.
        let distance = match i {
            0 => b.offset(t, 1.0)?,
            1 => t,
            2 => b.one_minus(t)?,
            _ => {
                let minus = b.neg(t);
                b.offset(minus, 2.0)?
            }
        };
        let coefficients = if i == 1 || i == 2 {
            [CUBIC + 2.0, -(CUBIC + 3.0), 0.0, 1.0]
        } else {
            [CUBIC, -5.0 * CUBIC, 8.0 * CUBIC, -4.0 * CUBIC]
        };
        let weight = polynomial(b, distance, &coefficients)?;
        taps.push(tap(b, index, Some(weight), size, outside)?);
    }
    Ok(taps)
}

/// c₀x³ + c₁x² + c₂x + c₃ by Horner's scheme.
fn polynomial(b: &mut Builder<'_>, x: ValueId, c: &[f64; 4]) -> Result<ValueId> {
    let mut sum = b.scale(x, c[0])?;
    for (i, c) in c[1..].iter().enumerate() {
        if i > 0 {
            sum = b.mul(sum, x)?;
        }
        sum = b.offset(sum, *c)?;
    }
    Ok(sum)
}

/// Reads images `x` [M,C,D…] at `places`, one [I,Q] per spatial dimension, in pixels; image i is number `image[i]` of `x`, or i. The
/// result is [I,C,Q].
fn read(
    b: &mut Builder<'_>,
    x: ValueId,
    image: Option<ValueId>,
    places: &[ValueId],
    between: Between,
    outside: Outside,
) -> Result<ValueId> {
    let Type { dtype, shape } = b.ty(x);
    let (m, channels, sizes) = (shape[0], shape[1], &shape[2..]);
    let [images, q] = [0, 1].map(|i| b.shape(places[0])[i]);
    let pixels: usize = sizes.iter().product();
    // The taps of all dimensions combined: linear index and weight.
    let mut all: Vec<Tap> = Vec::new();
    for (place, size) in places.iter().zip(sizes) {
        let along = taps(b, *place, *size, between, outside)?;
        if all.is_empty() {
            all = along;
            continue;
        }
        let mut product = Vec::with_capacity(all.len() * along.len());
        for slow in &all {
            let row = b.scale(slow.index, *size as f64)?;
            for fast in &along {
                let index = b.add(row, fast.index)?;
                let weight = match (slow.weight, fast.weight) {
                    (Some(s), Some(f)) => Some(b.mul(s, f)?),
                    (one, other) => one.or(other),
                };
                product.push(Tap { index, weight });
            }
        }
        all = product;
    }
    // [I,T,Q]
    let view = [images, 1, q];
    let n = all.len();
    let stack = |b: &mut Builder<'_>, values: Vec<ValueId>| {
        let parts: Vec<ValueId> = values.into_iter().map(|v| b.reshape(v, &view)).collect();
        b.concat(&parts, 1)
    };
    let weights: Option<Vec<ValueId>> = all.iter().map(|t| t.weight).collect();
    let index = stack(b, all.iter().map(|t| t.index).collect());
    let index = b.cast(index, DType::I64);
    let first = match image {
        Some(image) => {
            let (image, size) = (b.cast(image, DType::I64), b.scalar(pixels as f64, DType::I64));
            b.binary("Mul", image, size)?
        }
        None => b.ints(&(0..images).map(|i| (i * pixels) as i64).collect::<Vec<_>>()),
    };
    let first = b.reshape(first, &[images, 1, 1]);
    let index = b.binary("Add", index, first)?;
    // Rows are pixels, [M·D…,C].
    let flat = b.reshape(x, &[m, channels, pixels]);
    let rows = b.transpose(flat, &[0, 2, 1]);
    let rows = b.reshape(rows, &[m * pixels, channels]);
    let mut values = b.gather(rows, index, 0);
    if let Some(weights) = weights {
        let weights = stack(b, weights);
        let weights = b.reshape(weights, &[images, n, q, 1]);
        values = b.mul(values, weights)?;
    }
    let sum = b.sum(values, &[1], false);
    let sum = b.cast(sum, dtype);
    Ok(b.transpose(sum, &[0, 2, 1]))
}

/// Y = X at the places of `grid`, −1 and 1 being the ends of each dimension, between pixels by `mode`, outside by `padding_mode`:
/// written out; X [N,C,D…], grid [N,O…,k] with the last dimension of X first, Y [N,C,O…]; ONNX GridSample-22.
pub fn grid_sample(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, grid) = (c.x(0)?, c.x(1)?);
    let aligned = c.attrs.flag("align_corners", false)?;
    let between = match c.attrs.str("mode", "linear")? {
        "nearest" => Between::Nearest,
        "linear" | "bilinear" => Between::Linear,
        "cubic" | "bicubic" => Between::Cubic,
        other => crate::bail!("`mode` is `{other}`"),
    };
    let outside = match c.attrs.str("padding_mode", "zeros")? {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" if aligned => Outside::ReflectCentres,
        "reflection" => Outside::ReflectEdges,
        other => crate::bail!("`padding_mode` is `{other}`"),
    };
    let (shape, grid_shape) = (b.shape(x).to_vec(), b.shape(grid).to_vec());
    let (rank, last) = (shape.len() - 2, grid_shape.len() - 1);
    let [n, k] = [grid_shape[0], grid_shape[last]];
    let positions = &grid_shape[1..last];
    let q: usize = positions.iter().product();
    if k != rank {
        crate::bail!("a grid of {k} coordinates for {rank} spatial dimensions");
    }
    let mut places = Vec::with_capacity(rank);
    for (i, size) in shape[2..].iter().enumerate() {
        let at = b.slice(grid, &[last], &[rank - 1 - i], &[rank - i]);
        let at = b.reshape(at, &[n, q]);
        let at = b.cast(at, b.dtype(x));
        // (g + 1)/2·(D − 1), or ((g + 1)·D − 1)/2
        let (scale, offset) = if aligned { ((*size as f64 - 1.0) / 2.0, 0.0) } else { (*size as f64 / 2.0, -0.5) };
        let at = b.offset(at, 1.0)?;
        let at = b.scale(at, scale)?;
        places.push(b.offset(at, offset)?);
    }
    let y = read(b, x, None, &places, between, outside)?;
    Ok(vec![Some(b.reshape(y, &[&shape[..2], positions].concat()))])
}

/// Y = θ applied to the places of an image's pixels, −1 and 1 being the ends of each dimension: written out as a product; θ [N,k,k+1],
/// Y [N,D…,k] with the last dimension first; ONNX AffineGrid-20.
pub fn affine_grid(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let theta = c.x(0)?;
    let aligned = c.attrs.flag("align_corners", false)?;
    let size = c.constant_ints(b, 1, "size")?.unwrap_or_default();
    let Type { dtype, shape } = b.ty(theta);
    let sizes: Vec<usize> = size.iter().skip(2).map(|d| *d as usize).collect();
    let (k, n): (usize, usize) = (sizes.len(), sizes.iter().product());
    let mut base = Vec::with_capacity(n * (k + 1));
    for p in 0..n {
        let (mut rest, mut at) = (p, vec![1.0; k + 1]);
        for (i, d) in sizes.iter().enumerate().rev() {
            let (index, d) = ((rest % d) as f64, *d as f64);
            rest /= sizes[i];
            let line = if aligned { 2.0 * index / (d - 1.0).max(1.0) } else { (2.0 * index + 1.0) / d };
            at[k - 1 - i] = line - 1.0;
        }
        base.extend(at);
    }
    let base = b.constant(Tensor::from_f64(dtype, &[n, k + 1], &base));
    let theta = b.transpose(theta, &[0, 2, 1]);
    let grid = b.matmul(base, theta)?;
    Ok(vec![Some(b.reshape(grid, &[&shape[..1], sizes.as_slice(), &[k]].concat()))])
}

/// Y = mean of `sampling_ratio`² values, linear between pixels, in each of H×W bins of each region: written out; X [B,C,D₁,D₂], regions
/// [R,4], `batch_indices` `[R]`, Y [R,C,H,W]; ONNX RoiAlign-16, mode `avg`.
pub fn roi_align(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, rois, image) = (c.x(0)?, c.x(1)?, c.x(2)?);
    if c.attrs.str("mode", "avg")? != "avg" {
        crate::bail!("RoiAlign with mode `max` is not supported: its runtime takes the largest weighted pixel");
    }
    let half = c.attrs.str("coordinate_transformation_mode", "half_pixel")? == "half_pixel";
    let [height, width] = ["output_height", "output_width"].map(|n| c.attrs.int(n, 1).map(|v| v.max(1) as usize));
    let (bins, ratio) = ([height?, width?], c.attrs.int("sampling_ratio", 0)?);
    if ratio < 1 {
        return Err(Error::new("the number of samples depends on the regions (sampling_ratio 0)")
            .hint("export the model with a fixed sampling_ratio"));
    }
    let ratio = ratio as usize;
    let scale = f64::from(c.attrs.float("spatial_scale", 1.0)?);
    let Type { dtype, shape } = b.ty(x);
    let r = b.shape(rois)[0];
    let offset = if half { -0.5 } else { 0.0 };
    let corner = |b: &mut Builder<'_>, i: usize| -> Result<ValueId> {
        let at = b.slice(rois, &[1], &[i], &[i + 1]);
        let at = b.scale(at, scale)?;
        b.offset(at, offset)
    };
    let mut lines = Vec::with_capacity(2);
    for (i, n) in bins.iter().enumerate() {
        let (start, end) = (corner(b, 1 - i)?, corner(b, 3 - i)?);
        let mut extent = b.sub(end, start)?;
        if !half {
            let one = b.scalar_like(1.0, extent);
            extent = b.binary("Max", extent, one)?;
        }
        // Sample s lies at (s + ½)/(n·ratio) of the region.
        let samples = n * ratio;
        let share: Vec<f64> = (0..samples).map(|s| (s as f64 + 0.5) / samples as f64).collect();
        let share = b.constant(Tensor::from_f64(dtype, &[1, samples], &share));
        let along = b.mul(extent, share)?;
        lines.push(b.add(along, start)?);
    }
    let samples = bins.map(|n| n * ratio);
    let q = samples[0] * samples[1];
    let (mut places, mut inside) = (Vec::with_capacity(2), Vec::with_capacity(2));
    for (i, line) in lines.into_iter().enumerate() {
        let size = shape[2 + i] as f64;
        // Up to a pixel outside of the image counts as its border; what is further out is 0.
        let (low, high) = (b.scalar_like(-1.0, line), b.scalar_like(size, line));
        let (above, below) = (b.mask("GreaterOrEqual", line, low, x)?, b.mask("LessOrEqual", line, high, x)?);
        let counts = b.mul(above, below)?;
        let thin = if i == 0 { [r, samples[0], 1] } else { [r, 1, samples[1]] };
        for (list, v) in [(&mut places, line), (&mut inside, counts)] {
            let v = b.reshape(v, &thin);
            let v = b.expand(v, &[r, samples[0], samples[1]]);
            list.push(b.reshape(v, &[r, q]));
        }
    }
    let values = read(b, x, Some(image), &places, Between::Linear, Outside::Border)?;
    let counts = b.mul(inside[0], inside[1])?;
    let counts = b.reshape(counts, &[r, 1, q]);
    let values = b.mul(values, counts)?;
    let values = b.reshape(values, &[r, shape[1], bins[0], ratio, bins[1], ratio]);
    Ok(vec![Some(b.mean(values, &[3, 5], false))])
}

/// As Conv, but every element of a window is read at its place plus an offset, linear between pixels, times a mask: written out; X
/// [N,C,D₁,D₂], W [M,C/g,K₁,K₂], offset [N,o·K₁K₂·2,O₁,O₂], mask [N,o·K₁K₂,O₁,O₂]; ONNX DeformConv-22.
pub fn deform_conv(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, weight, offset) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let Type { dtype, shape } = b.ty(x);
    let weight_shape = b.shape(weight).to_vec();
    if shape.len() != 4 {
        crate::bail!("DeformConv over {} dimensions is not supported", shape.len().saturating_sub(2));
    }
    c.attrs.ignore(&["kernel_shape"]);
    let pair = |name: &'static str, default: i64| -> Result<Vec<i64>> {
        Ok(c.attrs.ints(name)?.unwrap_or_else(|| vec![default; 2]))
    };
    let (strides, dilations) = (pair("strides", 1)?, pair("dilations", 1)?);
    let pads = c.attrs.ints("pads")?.unwrap_or_else(|| vec![0; 4]);
    let group = c.attrs.int("group", 1)?.max(1) as usize;
    let parts = c.attrs.int("offset_group", 1)?.max(1) as usize;
    let [n, channels] = [shape[0], shape[1]];
    let (m, kernel) = (weight_shape[0], &weight_shape[2..]);
    let taps = kernel[0] * kernel[1];
    let output = b.shape(offset)[2..].to_vec();
    let positions = output[0] * output[1];
    let q = taps * positions;
    let offset = b.reshape(offset, &[n * parts, taps, 2, positions]);
    let mut places = Vec::with_capacity(2);
    for i in 0..2 {
        let off = b.slice(offset, &[2], &[i], &[i + 1]);
        let off = b.reshape(off, &[n * parts, q]);
        let mut base = Vec::with_capacity(q);
        for tap in 0..taps {
            let t = if i == 0 { tap / kernel[1] } else { tap % kernel[1] } as i64;
            for p in 0..positions {
                let o = if i == 0 { p / output[1] } else { p % output[1] } as i64;
                base.push((o * strides[i] - pads[i] + t * dilations[i]) as f64);
            }
        }
        let base = b.constant(Tensor::from_f64(dtype, &[1, q], &base));
        places.push(b.add(off, base)?);
    }
    let images = b.reshape(x, &[n * parts, channels / parts, shape[2], shape[3]]);
    let mut columns = read(b, images, None, &places, Between::Linear, Outside::Zeros)?;
    if let Some(mask) = c.opt(4) {
        let mask = b.reshape(mask, &[n * parts, 1, q]);
        columns = b.mul(columns, mask)?;
    }
    let columns = b.reshape(columns, &[n, group, channels / group * taps, positions]);
    let weight = b.reshape(weight, &[1, group, m / group, channels / group * taps]);
    let mut y = b.matmul(weight, columns)?;
    y = b.reshape(y, &[n, m, output[0], output[1]]);
    if let Some(bias) = c.opt(3) {
        let bias = b.reshape(bias, &[1, m, 1, 1]);
        y = b.add(y, bias)?;
    }
    Ok(vec![Some(y)])
}
