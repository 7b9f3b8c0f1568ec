//! Activation functions.
//!
//! Slopes that jump are written with 0/1 masks, which on CPU cost a seventh of `Where`. A mask does not stop a cotangent that is
//! itself infinite or NaN.

use super::elementwise::times;
use super::{Call, Cotangents};
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Attrs, DType, Type, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// The 0/1 mask [v > bound].
fn above(b: &mut Builder<'_>, v: ValueId, bound: f64) -> Result<ValueId> {
    let bound = b.scalar_like(bound, v);
    b.mask("Greater", v, bound, v)
}

/// `low` where `mask` is 0, `high` where it is 1.
fn step(b: &mut Builder<'_>, mask: ValueId, low: f64, high: f64) -> Result<ValueId> {
    let rise = b.scale(mask, high - low)?;
    b.offset(rise, low)
}

/// Y = max(X, 0): X̄ = Ȳ·[Y > 0] = Ȳ·sign Y, 0 at 0; ONNX Relu-14.
pub fn relu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let mask = b.unary("Sign", c.y(0)?);
    times(b, c, mask)
}

/// Y = 1/(1 + e⁻ˣ): X̄ = Ȳ·Y(1 − Y); ONNX Sigmoid-13.
pub fn sigmoid(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let y = c.y(0)?;
    let rest = b.one_minus(y)?;
    let slope = b.mul(y, rest)?;
    times(b, c, slope)
}

/// Y = tanh X: X̄ = Ȳ·(1 − Y²); ONNX Tanh-13.
pub fn tanh(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let square = b.square(c.y(0)?)?;
    let slope = b.one_minus(square)?;
    times(b, c, slope)
}

/// Y = X for X ≥ 0, else αX: X̄ = Ȳ·(1 for X > 0, else α), α at 0; ONNX LeakyRelu-16.
pub fn leaky_relu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = f64::from(c.attrs.float("alpha", 0.01)?);
    // The output has the input's sign unless α ≤ 0.
    let mask = above(b, if alpha > 0.0 { c.y(0)? } else { c.x(0)? }, 0.0)?;
    let slope = step(b, mask, alpha, 1.0)?;
    times(b, c, slope)
}

/// Y = X for X > 0, else α(eˣ − 1): X̄ = Ȳ·(1 for X > 0, else Y + α), α at 0; ONNX Elu-6.
pub fn elu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = f64::from(c.attrs.float("alpha", 1.0)?);
    exponential_unit(b, c, alpha, 1.0)
}

/// Y = γX for X > 0, else γα(eˣ − 1): X̄ = Ȳ·(γ for X > 0, else Y + γα), γα at 0; ONNX Selu-6.
pub fn selu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = f64::from(c.attrs.float("alpha", 1.673_263_2)?);
    let gamma = f64::from(c.attrs.float("gamma", 1.050_701)?);
    exponential_unit(b, c, gamma * alpha, gamma)
}

/// X̄ = Ȳ·(`high` for X > 0, else Y + `low`).
fn exponential_unit(b: &mut Builder<'_>, c: &Call<'_>, low: f64, high: f64) -> Cotangents {
    if low < 0.0 || high <= 0.0 {
        crate::bail!("its slope has no gradient rule for negative factors (alpha·gamma = {low}, gamma = {high})");
    }
    let y = c.y(0)?;
    let zero = b.scalar_like(0.0, y);
    let tail = b.binary("Min", y, zero)?;
    let base = if low == high {
        b.scalar_like(low, y)
    } else {
        let mask = above(b, y, 0.0)?;
        step(b, mask, low, high)?
    };
    let slope = b.add(tail, base)?;
    times(b, c, slope)
}

/// Y = max(X, 0) + min(α(e^(X/α) − 1), 0): X̄ = Ȳ·(1 + min(Y, 0)/α); ONNX Celu-12.
pub fn celu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = f64::from(c.attrs.float("alpha", 1.0)?);
    let zero = b.scalar_like(0.0, c.y(0)?);
    let tail = b.binary("Min", c.y(0)?, zero)?;
    let tail = b.scale(tail, 1.0 / alpha)?;
    let slope = b.offset(tail, 1.0)?;
    times(b, c, slope)
}

/// Y = ln(1 + eˣ): X̄ = Ȳ·σ(X); the output would serve but loses the digits of small slopes; ONNX Softplus-1.
pub fn softplus(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let slope = b.unary("Sigmoid", c.x(0)?);
    times(b, c, slope)
}

/// Y = X/(1 + |X|): X̄ = Ȳ·(1 − |Y|)²; ONNX Softsign-1.
pub fn softsign(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let size = b.unary("Abs", c.y(0)?);
    let rest = b.one_minus(size)?;
    let slope = b.square(rest)?;
    times(b, c, slope)
}

/// Y = min(max(αX + β, 0), 1): X̄ = Ȳ·α·[0 < Y < 1]; ONNX HardSigmoid-6.
pub fn hard_sigmoid(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = f64::from(c.attrs.float("alpha", 0.2)?);
    // β only moves the kinks, which are read off the output.
    c.attrs.ignore(&["beta"]);
    let mask = inside_unit(b, c.y(0)?)?;
    let slope = b.scale(mask, alpha)?;
    times(b, c, slope)
}

/// The 0/1 mask [0 < v < 1] of a v in [0, 1].
fn inside_unit(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let rest = b.one_minus(v)?;
    let product = b.mul(v, rest)?;
    above(b, product, 0.0)
}

/// Y = X·S, S = min(max(X/6 + 1/2, 0), 1): X̄ = Ȳ·(S + (S − 1/2)·[0 < S < 1]), so 0 at −3 and 1 at 3; ONNX HardSwish-14.
pub fn hard_swish(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let x = c.x(0)?;
    let ty = b.ty(x);
    let s = b.op("HardSigmoid", &[x], attrs([("alpha", Attr::Float(1.0 / 6.0)), ("beta", Attr::Float(0.5))]), ty);
    let mask = inside_unit(b, s)?;
    let line = b.offset(s, -0.5)?;
    let bend = b.mul(line, mask)?;
    let slope = b.add(s, bend)?;
    times(b, c, slope)
}

/// Y = X for X ≥ 0, else A·X: X̄ = Ȳ·(1 for X > 0, else A), Ā = Ȳ·min(X, 0); A broadcasts to X; ONNX PRelu-16.
pub fn prelu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (dy, x, a) = (c.dy()?, c.x(0)?, c.x(1)?);
    let dx = if c.wants(0) {
        let mask = above(b, x, 0.0)?;
        let rise = b.one_minus(a)?;
        let rise = b.mul(rise, mask)?;
        let slope = b.add(rise, a)?;
        Some(b.mul(dy, slope)?)
    } else {
        None
    };
    let da = if c.wants(1) {
        let zero = b.scalar_like(0.0, x);
        let negative = b.binary("Min", x, zero)?;
        Some(b.mul(dy, negative)?)
    } else {
        None
    };
    Ok(vec![dx, da])
}

/// Y = X for X > α, else 0: X̄ = Ȳ·[X > α]; ONNX ThresholdedRelu-10.
pub fn thresholded_relu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = f64::from(c.attrs.float("alpha", 1.0)?);
    let mask = if alpha >= 0.0 { above(b, c.y(0)?, 0.0)? } else { above(b, c.x(0)?, alpha)? };
    times(b, c, mask)
}

/// Y = X + b for X < −λ, X − b for X > λ, else 0: X̄ = Ȳ·[|X| > λ]; ONNX Shrink-9.
pub fn shrink(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let lambda = f64::from(c.attrs.float("lambd", 0.5)?);
    // The bias shifts values, not slopes.
    c.attrs.ignore(&["bias"]);
    let size = b.unary("Abs", c.x(0)?);
    let mask = above(b, size, lambda)?;
    times(b, c, mask)
}

/// Y = X·Φ(X): X̄ = Ȳ·(Φ(X) + X·φ(X)), Φ(x) = (1 + erf(x/√2))/2, φ(x) = exp(−x²/2)/√(2π); ONNX Gelu-20.
///
/// With `approximate = "tanh"`, Y = X(1 + T)/2, T = tanh(√(2/π)(X + 0.044715X³)), X̄ = Ȳ·((1 + T)/2 + X(1 − T²)/2·√(2/π)(1 + 0.134145X²)).
pub fn gelu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let slope = gelu_slope(b, c.x(0)?, c.attrs.str("approximate", "none")?)?;
    times(b, c, slope)
}

/// The slope of the Gelu at `x`.
pub(super) fn gelu_slope(b: &mut Builder<'_>, x: ValueId, approximate: &str) -> Result<ValueId> {
    let square = b.square(x)?;
    let (cumulative, density) = match approximate {
        "none" => {
            let scaled = b.scale(x, FRAC_1_SQRT_2)?;
            let erf = b.unary("Erf", scaled);
            let minus = b.scale(square, -0.5)?;
            let bell = b.unary("Exp", minus);
            (half_plus_half(b, erf)?, b.scale(bell, 1.0 / (2.0 * PI).sqrt())?)
        }
        "tanh" => {
            const CUBIC: f64 = 0.044_715;
            let factor = (2.0 / PI).sqrt();
            let inner = b.scale(square, factor * CUBIC)?;
            let inner = b.offset(inner, factor)?;
            let inner = b.mul(inner, x)?;
            let t = b.unary("Tanh", inner);
            let t_square = b.square(t)?;
            let rest = b.one_minus(t_square)?;
            let inner_slope = b.scale(square, 1.5 * factor * CUBIC)?;
            let inner_slope = b.offset(inner_slope, 0.5 * factor)?;
            (half_plus_half(b, t)?, b.mul(rest, inner_slope)?)
        }
        other => crate::bail!("approximate = `{other}` is not known"),
    };
    let bend = b.mul(x, density)?;
    b.add(cumulative, bend)
}

/// (1 + v)/2.
fn half_plus_half(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let half = b.scale(v, 0.5)?;
    b.offset(half, 0.5)
}

/// Y = X·T, T = tanh(ln(1 + eˣ)): X̄ = Ȳ·(T + X(1 − T²)σ(X)); ONNX Mish-18.
pub fn mish(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let x = c.x(0)?;
    let softplus = b.unary("Softplus", x);
    let t = b.unary("Tanh", softplus);
    let square = b.square(t)?;
    let rest = b.one_minus(square)?;
    let sigmoid = b.unary("Sigmoid", x);
    let bend = b.mul(x, sigmoid)?;
    let bend = b.mul(bend, rest)?;
    let slope = b.add(t, bend)?;
    times(b, c, slope)
}

/// Y = X·S, S = σ(αX): X̄ = Ȳ·(S + αY(1 − S)); ONNX Swish-24.
pub fn swish(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = c.attrs.float("alpha", 1.0)?;
    swish_of(b, c, f64::from(alpha))
}

/// The rule of X·σ(αX).
pub(super) fn swish_of(b: &mut Builder<'_>, c: &Call<'_>, alpha: f64) -> Cotangents {
    let scaled = b.scale(c.x(0)?, alpha)?;
    let s = b.unary("Sigmoid", scaled);
    let rest = b.one_minus(s)?;
    let bend = b.mul(c.y(0)?, rest)?;
    let bend = b.scale(bend, alpha)?;
    let slope = b.add(s, bend)?;
    times(b, c, slope)
}

/// The activation that another operator names: `name` in any case, with the parameters α, β, γ it has.
pub(super) fn named(b: &mut Builder<'_>, name: &str, [alpha, beta, gamma]: [f32; 3], x: ValueId) -> Result<ValueId> {
    let (a, shift) = (f64::from(alpha), f64::from(beta));
    let (op, parameters): (&str, &[(&str, f32)]) = match name.to_lowercase().as_str() {
        "relu" => ("Relu", &[]),
        "tanh" => ("Tanh", &[]),
        "sigmoid" => ("Sigmoid", &[]),
        "softsign" => ("Softsign", &[]),
        "softplus" => ("Softplus", &[]),
        "hardswish" => ("HardSwish", &[]),
        "leakyrelu" => ("LeakyRelu", &[("alpha", alpha)]),
        "thresholdedrelu" => ("ThresholdedRelu", &[("alpha", alpha)]),
        "elu" => ("Elu", &[("alpha", alpha)]),
        "celu" => ("Celu", &[("alpha", alpha)]),
        "hardsigmoid" => ("HardSigmoid", &[("alpha", alpha), ("beta", beta)]),
        "selu" => ("Selu", &[("alpha", alpha), ("gamma", gamma)]),
        "affine" => {
            let x = b.scale(x, a)?;
            return b.offset(x, shift);
        }
        "scaledtanh" => {
            let x = b.scale(x, shift)?;
            let y = b.unary("Tanh", x);
            return b.scale(y, a);
        }
        "parametricsoftplus" => {
            let x = b.scale(x, shift)?;
            let y = b.unary("Softplus", x);
            return b.scale(y, a);
        }
        _ => crate::bail!("the activation `{name}` is not known"),
    };
    let list: Attrs = parameters.iter().map(|(k, v)| ((*k).to_owned(), Attr::Float(*v))).collect();
    let ty = b.ty(x);
    Ok(b.op(op, &[x], list, ty))
}

/// Y = softmax X along `axis`: X̄ = Y·(Ȳ − Σ Ȳ·Y); ONNX Softmax-13.
///
/// A row that is masked as a whole gives NaN, which attention replaces by 0 with a `Where`; its cotangent is 0 then.
pub fn softmax(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let axis = b.axis(c.x(0)?, c.attrs.int("axis", -1)?)?;
    let (dy, y) = (c.dy()?, without_nan(b, c.y(0)?)?);
    let weighted = b.mul(dy, y)?;
    let total = b.sum(weighted, &[axis], true);
    let centred = b.sub(dy, total)?;
    Ok(vec![Some(b.mul(y, centred)?)])
}

/// `y`, with 0 for NaN if some `Where` of the model chooses between `y` and something else.
pub(super) fn without_nan(b: &mut Builder<'_>, y: ValueId) -> Result<ValueId> {
    let nodes = &b.graph.nodes;
    let guards: Vec<_> =
        nodes.iter().filter(|n| n.is("Where") && n.inputs.iter().skip(1).any(|v| *v == Some(y))).collect();
    if guards.is_empty() {
        return Ok(y);
    }
    let nan = nodes.iter().find(|n| n.is("IsNaN") && n.input(0) == Some(y)).and_then(|n| n.output(0));
    let zero = |v: Option<ValueId>| v.and_then(|v| b.graph.constant(v)).and_then(|t| t.uniform()) == Some(0.0);
    let ready = guards.iter().find(|n| nan.is_some() && n.input(0) == nan && n.input(2) == Some(y) && zero(n.input(1)));
    if let Some(value) = ready.and_then(|n| n.output(0)).filter(|v| b.shape(*v) == b.shape(y)) {
        return Ok(value);
    }
    let ty = Type::new(DType::Bool, b.shape(y));
    let nan = b.op("IsNaN", &[y], Attrs::new(), ty);
    let zero = b.scalar_like(0.0, y);
    b.select(nan, zero, y)
}

/// Y = log softmax X along `axis`: X̄ = Ȳ − e^Y·Σ Ȳ; ONNX LogSoftmax-13.
pub fn log_softmax(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let axis = b.axis(c.x(0)?, c.attrs.int("axis", -1)?)?;
    let dy = c.dy()?;
    let total = b.sum(dy, &[axis], true);
    let p = b.unary("Exp", c.y(0)?);
    let part = b.mul(p, total)?;
    Ok(vec![Some(b.sub(dy, part)?)])
}
