//! Elementwise arithmetic and functions, with numpy broadcasting. The driver sums each cotangent down to its operand's shape.

use super::{Call, Cotangents, Lowered};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{Attrs, DType, Type, ValueId};

/// Y = A + B: Ā = Ȳ, B̄ = Ȳ; ONNX Add-14.
pub fn add(_: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    Ok(vec![Some(dy), Some(dy)])
}

/// Y = A − B: Ā = Ȳ, B̄ = −Ȳ; ONNX Sub-14.
pub fn sub(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    Ok(vec![Some(dy), c.wants(1).then(|| b.neg(dy))])
}

/// Y = A·B: Ā = Ȳ·B, B̄ = Ȳ·A; ONNX Mul-14.
pub fn mul(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    let da = if c.wants(0) { Some(b.mul(dy, c.x(1)?)?) } else { None };
    let db = if c.wants(1) { Some(b.mul(dy, c.x(0)?)?) } else { None };
    Ok(vec![da, db])
}

/// Y = A/B: Ā = Ȳ/B, B̄ = −Ȳ·Y/B; ONNX Div-14.
pub fn div(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    let da = b.div(dy, c.x(1)?)?;
    let db = if c.wants(1) {
        let t = b.mul(da, c.y(0)?)?;
        Some(b.neg(t))
    } else {
        None
    };
    Ok(vec![Some(da), db])
}

/// Y = A − B·n with an integer n (n = trunc(A/B) with fmod, else ⌊A/B⌋): Ā = Ȳ, B̄ = −n·Ȳ, n = (A − Y)/B rounded; ONNX Mod-28.
pub fn modulo(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    // Either way of rounding n is recovered from Y.
    c.attrs.ignore(&["fmod"]);
    let db = if c.wants(1) {
        let multiple = b.sub(c.x(0)?, c.y(0)?)?;
        let n = b.div(multiple, c.x(1)?)?;
        let n = b.unary("Round", n);
        // Where Y is no number nothing is learned from it.
        let ty = Type::new(DType::Bool, b.shape(n));
        let (none, zero) = (b.op("IsNaN", &[n], Attrs::new(), ty), b.scalar_like(0.0, n));
        let n = b.select(none, zero, n)?;
        let t = b.mul(dy, n)?;
        Some(b.neg(t))
    } else {
        None
    };
    Ok(vec![Some(dy), db])
}

/// Y = A^P: Ā = Ȳ·P·A^(P−1), P̄ = Ȳ·Y·log A; ONNX Pow-15.
///
/// As in PyTorch, Ā is 0 where P = 0 and P̄ is 0 where A = 0 and P ≥ 0. Where A < 0, P̄ is NaN.
pub fn pow(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (dy, a, p, y) = (c.dy()?, c.x(0)?, c.x(1)?, c.y(0)?);
    let da = if c.wants(0) { pow_base(b, dy, a, p, y)? } else { None };
    let dp = if c.wants(1) {
        let (zero_a, zero_p) = (b.scalar_like(0.0, a), b.scalar_like(0.0, p));
        let at_zero = b.binary("Equal", a, zero_a)?;
        let not_negative = b.binary("GreaterOrEqual", p, zero_p)?;
        let flat = b.binary("And", at_zero, not_negative)?;
        let flat = b.cast(flat, b.dtype(a));
        // log(0 + 1) = 0 at the flat places, so that no infinity meets a zero.
        let safe = b.add(a, flat)?;
        let log = b.unary("Log", safe);
        let slope = b.mul(y, log)?;
        let dp = b.mul(dy, slope)?;
        Some(b.cast(dp, b.dtype(p)))
    } else {
        None
    };
    Ok(vec![da, dp])
}

/// Ȳ·P·A^(P−1), in fewer nodes where P is one constant number.
fn pow_base(b: &mut Builder<'_>, dy: ValueId, a: ValueId, p: ValueId, y: ValueId) -> Result<Option<ValueId>> {
    let exponents = b.graph.constant(p).cloned();
    let slope = match exponents.as_ref().and_then(|t| t.uniform()) {
        Some(0.0) => return Ok(None),
        Some(1.0) => return Ok(Some(dy)),
        Some(2.0) => b.scale(a, 2.0)?,
        Some(0.5) => {
            let half = b.scale(dy, 0.5)?;
            return Ok(Some(b.div(half, y)?));
        }
        Some(e) => {
            let less = b.scalar_like(e - 1.0, a);
            let power = b.binary("Pow", a, less)?;
            b.scale(power, e)?
        }
        None => {
            let p = b.cast(p, b.dtype(a));
            let mut less = b.offset(p, -1.0)?;
            if exponents.is_none_or(|t| t.to_f64().contains(&0.0)) {
                // Where P = 0 this takes A⁰ instead of A⁻¹, which is finite and times P = 0.
                let zero = b.scalar_like(0.0, a);
                let flat = b.mask("Equal", p, zero, a)?;
                less = b.add(less, flat)?;
            }
            let power = b.binary("Pow", a, less)?;
            b.mul(p, power)?
        }
    };
    Ok(Some(b.mul(dy, slope)?))
}

/// Y = max(X₁, …, Xₙ) or the minimum: X̄ᵢ = Ȳ·[Xᵢ = Y]/#{j : Xⱼ = Y}; ONNX Max-13, Min-13.
///
/// Equal operands share the cotangent evenly, as `torch.maximum`.
pub fn extremum(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (dy, y) = (c.dy()?, c.y(0)?);
    let n = c.node.inputs.len();
    if n == 1 {
        return Ok(vec![Some(dy)]);
    }
    let masks = (0..n).map(|i| b.mask("Equal", c.x(i)?, y, y)).collect::<Result<Vec<_>>>()?;
    let mut count = masks[0];
    for mask in &masks[1..] {
        count = b.add(count, *mask)?;
    }
    let share = b.div(dy, count)?;
    (0..n).map(|i| c.wants(i).then(|| b.mul(share, masks[i])).transpose()).collect()
}

/// Y = X₁ + … + Xₙ: X̄ᵢ = Ȳ; ONNX Sum-13.
pub fn sum(_: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    Ok(vec![Some(c.dy()?); c.node.inputs.len()])
}

/// Y = (X₁ + … + Xₙ)/n: X̄ᵢ = Ȳ/n; ONNX Mean-13.
pub fn mean(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let n = c.node.inputs.len();
    let share = b.scale(c.dy()?, 1.0 / n as f64)?;
    Ok(vec![Some(share); n])
}

/// Y = A where C holds, else B: Ā = Ȳ where C holds, else 0; B̄ the other way round; ONNX Where-16.
///
/// A real `Where`, not a mask: what guards a value (`Where(x > 0, x, 1)` before a logarithm, `Where(IsNaN(p), 0, p)`) must also
/// stop an infinite or NaN cotangent.
pub fn select(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (condition, dy) = (c.x(0)?, c.dy()?);
    let zero = b.scalar_like(0.0, dy);
    let da = if c.wants(1) { Some(b.select(condition, dy, zero)?) } else { None };
    let db = if c.wants(2) { Some(b.select(condition, zero, dy)?) } else { None };
    Ok(vec![None, da, db])
}

/// Y = min(max(X, L), H): X̄ = Ȳ·[L < Y < H], L̄ = Ȳ·[Y ≤ L]·[Y < H], H̄ = Ȳ·[Y ≥ H]; L, H scalars, optional; ONNX Clip-13.
///
/// At a bound the cotangent goes to the bound, so X gets 0 there, as for PyTorch's `relu6`, `hardtanh` and, from 2.15 at the
/// latest, `clamp` with numbers as bounds. The output serves: X need not be kept.
pub fn clip(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (dy, y) = (c.dy()?, c.y(0)?);
    let (low, high) = (c.opt(1), c.opt(2));
    let above = low.map(|low| b.binary("Greater", y, low)).transpose()?;
    let below = high.map(|high| b.binary("Less", y, high)).transpose()?;
    let inside = match (above, below) {
        (Some(above), Some(below)) => Some(b.binary("And", above, below)?),
        (above, below) => above.or(below),
    };
    let dx = match inside {
        Some(inside) => {
            let mask = b.cast(inside, b.dtype(dy));
            b.mul(dy, mask)?
        }
        None => dy,
    };
    let dlow = match low.filter(|_| c.wants(1)) {
        Some(low) => {
            let mask = b.mask("LessOrEqual", y, low, y)?;
            let mask = match below {
                Some(below) => {
                    let below = b.cast(below, b.dtype(dy));
                    b.mul(mask, below)?
                }
                None => mask,
            };
            Some(b.mul(dy, mask)?)
        }
        None => None,
    };
    let dhigh = match high.filter(|_| c.wants(2)) {
        Some(high) => {
            let mask = b.mask("GreaterOrEqual", y, high, y)?;
            Some(b.mul(dy, mask)?)
        }
        None => None,
    };
    Ok(vec![Some(dx), dlow, dhigh])
}

/// Y = X in another float type: X̄ = Ȳ in X's type; ONNX Cast-19, CastLike-19.
pub fn cast(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    // Both types are known; saturation and rounding concern only float8.
    c.attrs.ignore(&["to", "saturate", "round_mode"]);
    let dtype = b.dtype(c.x(0)?);
    Ok(vec![Some(b.cast(c.dy()?, dtype))])
}

/// Y = X: X̄ = Ȳ; ONNX Identity-19.
pub fn identity(_: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    Ok(vec![Some(c.dy()?)])
}

/// Y = X·M/(1 − r) with a random 0/1 mask M, the second output, and the dropped share r: X̄ = Ȳ·M/(1 − r); ONNX Dropout-13.
///
/// Y = X and X̄ = Ȳ outside training mode.
pub fn dropout(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let dy = c.dy()?;
    c.attrs.ignore(&["seed"]);
    let number = |i: usize, name: &str, default: f64| match c.opt(i) {
        None => Ok(default),
        Some(v) => {
            let value = b.graph.constant(v).and_then(|t| t.to_f64().first().copied());
            value.ok_or_else(|| Error::new(format!("`{name}` is computed at run time; its gradient needs a constant")))
        }
    };
    let (ratio, training) = (number(1, "ratio", 0.5)?, number(2, "training_mode", 0.0)?);
    if training == 0.0 || ratio == 0.0 {
        return Ok(vec![Some(dy)]);
    }
    if ratio >= 1.0 {
        crate::bail!("a ratio of {ratio} drops everything");
    }
    let mask = c.ask_output(b, 1, Type::new(DType::Bool, b.shape(dy)))?;
    let mask = b.cast(mask, b.dtype(dy));
    let scaled = b.scale(mask, 1.0 / (1.0 - ratio))?;
    Ok(vec![Some(b.mul(dy, scaled)?)])
}

/// Y = −X: X̄ = −Ȳ; ONNX Neg-13.
pub fn neg(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    Ok(vec![Some(b.neg(c.dy()?))])
}

/// Y = |X|: X̄ = Ȳ·sign X, 0 at 0; ONNX Abs-13.
pub fn abs(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let sign = b.unary("Sign", c.x(0)?);
    times(b, c, sign)
}

/// Y = √X: X̄ = Ȳ/(2Y); ONNX Sqrt-13.
pub fn sqrt(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let half = b.scale(c.dy()?, 0.5)?;
    Ok(vec![Some(b.div(half, c.y(0)?)?)])
}

/// Y = eˣ: X̄ = Ȳ·Y; ONNX Exp-13.
pub fn exp(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    times(b, c, c.y(0)?)
}

/// Y = ln X: X̄ = Ȳ/X; ONNX Log-13.
pub fn log(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    over(b, c, c.x(0)?)
}

/// Y = 1/X: X̄ = −Ȳ·Y²; ONNX Reciprocal-13.
pub fn reciprocal(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.y(0)?)?;
    let slope = b.neg(square);
    times(b, c, slope)
}

/// Y = sin X: X̄ = Ȳ·cos X; ONNX Sin-7.
pub fn sin(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let slope = b.unary("Cos", c.x(0)?);
    times(b, c, slope)
}

/// Y = cos X: X̄ = −Ȳ·sin X; ONNX Cos-7.
pub fn cos(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let sine = b.unary("Sin", c.x(0)?);
    let slope = b.neg(sine);
    times(b, c, slope)
}

/// Y = tan X: X̄ = Ȳ·(1 + Y²); ONNX Tan-7.
pub fn tan(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.y(0)?)?;
    let slope = b.offset(square, 1.0)?;
    times(b, c, slope)
}

/// Y = arcsin X: X̄ = Ȳ/√(1 − X²); ONNX Asin-7.
pub fn asin(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.x(0)?)?;
    let rest = b.one_minus(square)?;
    let root = b.unary("Sqrt", rest);
    over(b, c, root)
}

/// Y = arccos X: X̄ = −Ȳ/√(1 − X²); ONNX Acos-7.
pub fn acos(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.x(0)?)?;
    let rest = b.one_minus(square)?;
    let root = b.unary("Sqrt", rest);
    let divisor = b.neg(root);
    over(b, c, divisor)
}

/// Y = arctan X: X̄ = Ȳ/(1 + X²); ONNX Atan-7.
pub fn atan(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.x(0)?)?;
    let divisor = b.offset(square, 1.0)?;
    over(b, c, divisor)
}

/// Y = sinh X: X̄ = Ȳ·cosh X; ONNX Sinh-9.
pub fn sinh(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let slope = b.unary("Cosh", c.x(0)?);
    times(b, c, slope)
}

/// Y = cosh X: X̄ = Ȳ·sinh X; ONNX Cosh-9.
pub fn cosh(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let slope = b.unary("Sinh", c.x(0)?);
    times(b, c, slope)
}

/// Y = arsinh X: X̄ = Ȳ/√(X² + 1); ONNX Asinh-9.
pub fn asinh(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.x(0)?)?;
    let more = b.offset(square, 1.0)?;
    let root = b.unary("Sqrt", more);
    over(b, c, root)
}

/// Y = arcosh X: X̄ = Ȳ/√(X² − 1); ONNX Acosh-9.
pub fn acosh(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.x(0)?)?;
    let less = b.offset(square, -1.0)?;
    let root = b.unary("Sqrt", less);
    over(b, c, root)
}

/// Y = artanh X: X̄ = Ȳ/(1 − X²); ONNX Atanh-9.
pub fn atanh(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.x(0)?)?;
    let divisor = b.one_minus(square)?;
    over(b, c, divisor)
}

/// Y = erf X: X̄ = Ȳ·2/√π·exp(−X²); ONNX Erf-13.
pub fn erf(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.x(0)?)?;
    let minus = b.neg(square);
    let bell = b.unary("Exp", minus);
    let slope = b.scale(bell, std::f64::consts::FRAC_2_SQRT_PI)?;
    times(b, c, slope)
}

/// X̄ = Ȳ·slope, for operators of one input.
pub(super) fn times(b: &mut Builder<'_>, c: &Call<'_>, slope: ValueId) -> Cotangents {
    Ok(vec![Some(b.mul(c.dy()?, slope)?)])
}

/// X̄ = Ȳ/divisor, for operators of one input.
fn over(b: &mut Builder<'_>, c: &Call<'_>, divisor: ValueId) -> Cotangents {
    Ok(vec![Some(b.div(c.dy()?, divisor)?)])
}

/// Y = (X − z)·s with integers X and z: written out, so that s has a gradient; s and z are scalars, vectors along `axis` or blocks; ONNX
/// DequantizeLinear-21.
pub fn dequantize(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, scale) = (c.x(0)?, c.x(1)?);
    c.attrs.ignore(&["output_dtype"]);
    let block = c.attrs.int("block_size", 0)?.max(0) as usize;
    let axis = c.attrs.int("axis", 1)?;
    let shape = b.shape(x).to_vec();
    let (mut wide, per_axis) = (vec![1; shape.len()], b.rank(scale) == 1);
    if per_axis && b.len(scale) > 1 {
        wide[b.axis(x, axis)?] = b.len(scale);
    }
    // A scale per axis, or one for every `block` elements along it.
    let spread = |b: &mut Builder<'_>, v: ValueId| -> Result<ValueId> {
        if block == 0 || b.rank(v) != shape.len() {
            return Ok(b.reshape(v, &wide));
        }
        let axis = b.axis(x, axis)?;
        let (mut thin, mut full) = (b.shape(v).to_vec(), b.shape(v).to_vec());
        thin.insert(axis + 1, 1);
        full.insert(axis + 1, block);
        let v = b.reshape(v, &thin);
        let v = b.expand(v, &full);
        full[axis] *= full.remove(axis + 1);
        let v = b.reshape(v, &full);
        Ok(b.shift(v, axis, 0, shape[axis]))
    };
    let dtype = b.dtype(scale);
    let mut y = b.cast(x, dtype);
    if let Some(zero) = c.opt(2) {
        let zero = b.cast(zero, dtype);
        let zero = spread(b, zero)?;
        y = b.sub(y, zero)?;
    }
    let scale = spread(b, scale)?;
    let y = b.mul(y, scale)?;
    let dtype = b.dtype(c.y(0)?);
    Ok(vec![Some(b.cast(y, dtype))])
}
