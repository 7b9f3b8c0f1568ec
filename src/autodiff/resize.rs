//! Resizing of images.

use super::{Call, Cotangents};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Tensor, Type, ValueId};

/// Y = X interpolated along some axes, which is linear and acts on each axis by itself: X̄ = Ȳ times the transpose of each axis's matrix,
/// which the operator itself makes of the unit vectors (sums of blocks where it only repeats elements); ONNX Resize-19.
pub fn resize(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let x = c.x(0)?;
    let mut dy = c.dy()?;
    let (from, to) = (b.shape(x).to_vec(), b.shape(dy).to_vec());
    let rank = from.len();
    let axes: Vec<usize> = match c.attrs.ints("axes")? {
        Some(axes) => axes.into_iter().map(|a| b.axis(x, a)).collect::<Result<_>>()?,
        None => (0..rank).collect(),
    };
    let mode = c.attrs.str("coordinate_transformation_mode", "half_pixel")?;
    // Outside the input, where the gradient is 0.
    c.attrs.ignore(&["extrapolation_value", "mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "antialias"]);
    let policy = c.attrs.str("keep_aspect_ratio_policy", "stretch")?;
    let roi = if mode == "tf_crop_and_resize" { constant(b, c, 1, "roi")? } else { None };
    let scales = constant(b, c, 2, "scales")?.filter(|s| !s.is_empty());
    let sizes = if scales.is_none() { c.constant_ints(b, 3, "sizes")? } else { None };
    // With a policy one axis decides the scale of all.
    let ratio = |i: &usize| sizes.as_ref().map_or(1.0, |s| s[*i] as f64 / from[axes[*i]] as f64);
    let order = |a: &usize, b: &usize| ratio(a).total_cmp(&ratio(b));
    let leader = match policy {
        _ if sizes.is_none() => None,
        "not_larger" => (0..axes.len()).min_by(order),
        "not_smaller" => (0..axes.len()).max_by(order),
        _ => None,
    };
    for (i, axis) in axes.iter().copied().enumerate() {
        let scale = scales.as_ref().and_then(|s| s.get(i).copied());
        let crop = roi.as_ref().and_then(|r| Some([*r.get(i)?, *r.get(i + axes.len())?]));
        if from[axis] == to[axis] && scale.is_none_or(|s| s == 1.0) && crop.is_none_or(|c| c == [0.0, 1.0]) {
            continue;
        }
        let n = from[axis];
        let whole = (to[axis] % n == 0).then(|| to[axis] / n);
        let even = |k: &usize| scale.is_none_or(|s| s == *k as f64) && leader.is_none() && repeats(c, mode);
        match whole.filter(even) {
            Some(k) => {
                let mut view = b.shape(dy).to_vec();
                view.splice(axis..=axis, [n, k]);
                let blocks = b.reshape(dy, &view);
                dy = b.sum(blocks, &[axis + 1], false);
            }
            None => {
                let size = |i: usize| sizes.as_ref().map_or(0, |s| s[i]);
                let lead = leader.map(|j| ([from[axes[j]], to[axes[j]]], [size(j), size(i)]));
                let matrix = matrix(b, c, [n, to[axis]], scale, crop, lead, b.dtype(x));
                dy = along(b, dy, matrix, axis)?;
            }
        }
    }
    Ok(vec![Some(dy)])
}

/// The floats of input `i`, if it is there.
fn constant(b: &Builder<'_>, c: &Call<'_>, i: usize, name: &str) -> Result<Option<Vec<f64>>> {
    let Some(v) = c.opt(i) else { return Ok(None) };
    let values = b.graph.constant(v).map(Tensor::to_f64);
    values
        .map(Some)
        .ok_or_else(|| Error::new(format!("`{name}` is computed at run time; its gradient needs a constant")))
}

/// Whether an enlargement by a whole number repeats each element that often.
fn repeats(c: &Call<'_>, mode: &str) -> bool {
    let text = |name: &str, default: &str| match c.node.attrs.get(name) {
        Some(Attr::Str(s)) => s.clone(),
        _ => default.to_owned(),
    };
    let rounding = text("nearest_mode", "round_prefer_floor");
    text("mode", "nearest") == "nearest"
        && match mode {
            "asymmetric" => rounding == "floor",
            "half_pixel" | "pytorch_half_pixel" => rounding.starts_with("round"),
            _ => false,
        }
}

/// The matrix [n,o] of an axis: row i is what the operator makes of the i-th unit vector.
///
/// `lead` is the axis that decides the scale, as its size before and after, with the wanted sizes of both: it lies beside the unit
/// vectors, which are the same along it.
fn matrix(
    b: &mut Builder<'_>,
    c: &Call<'_>,
    [n, o]: [usize; 2],
    scale: Option<f64>,
    crop: Option<[f64; 2]>,
    lead: Option<([usize; 2], [i64; 2])>,
    dtype: DType,
) -> ValueId {
    let unit: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
    let unit = b.constant(Tensor::from_f64(dtype, &[n, 1, 1, n], &unit));
    let mut attrs = c.node.attrs.clone();
    if let Some(([before, after], sizes)) = lead {
        let wide = b.expand(unit, &[n, 1, before, n]);
        attrs.insert("axes".into(), Attr::Ints(vec![2, 3]));
        let sizes = b.ints(&sizes);
        let ty = Type::new(dtype, &[n, 1, after, o]);
        let made = b.raw("", "Resize", &[Some(wide), None, None, Some(sizes)], attrs, &[ty])[0];
        let row = b.slice(made, &[2], &[0], &[1]);
        return b.reshape(row, &[n, o]);
    }
    for name in ["axes", "keep_aspect_ratio_policy", "extrapolation_value"] {
        attrs.remove(name);
    }
    let roi =
        crop.map(|[start, end]| b.constant(Tensor::from_f64(dtype, &[8], &[0.0, 0.0, 0.0, start, 1.0, 1.0, 1.0, end])));
    let (scales, sizes) = match scale {
        Some(s) => (Some(b.constant(Tensor::from_f64(DType::F32, &[4], &[1.0, 1.0, 1.0, s]))), None),
        None => (None, Some(b.ints(&[n as i64, 1, 1, o as i64]))),
    };
    let made = b.raw("", "Resize", &[Some(unit), roi, scales, sizes], attrs, &[Type::new(dtype, &[n, 1, 1, o])]);
    b.reshape(made[0], &[n, o])
}

/// `dy` times the transpose of `matrix` [n,o] along `axis`.
fn along(b: &mut Builder<'_>, dy: ValueId, matrix: ValueId, axis: usize) -> Result<ValueId> {
    let shape = b.shape(dy).to_vec();
    let (outer, inner): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    let [n, o] = [0, 1].map(|i| b.shape(matrix)[i]);
    let mut to = shape.clone();
    to[axis] = n;
    let dx = if inner == 1 {
        let flat = b.reshape(dy, &[outer, o]);
        let transposed = b.transpose_last(matrix);
        b.matmul(flat, transposed)?
    } else {
        let slices = b.reshape(dy, &[outer, o, inner]);
        b.matmul(matrix, slices)?
    };
    Ok(b.reshape(dx, &to))
}
