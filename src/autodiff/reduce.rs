//! Reductions and cumulative sums.
//!
//! X̄ repeats over the reduced axes: below, Ȳ and Y stand for themselves with the reduced axes put back as size 1.

use super::{Call, Cotangents};
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::{Attr, ValueId};

/// A reduction node with its attributes resolved.
struct Reduction {
    x: ValueId,
    /// The reduced axes.
    axes: Vec<usize>,
    /// Shape of the result if reduced axes stay as size 1.
    kept: Vec<usize>,
}

impl Reduction {
    fn new(b: &Builder<'_>, c: &Call<'_>) -> Result<Self> {
        let x = c.x(0)?;
        // The output's shape is known; the cotangent is reshaped to `kept` either way.
        c.attrs.ignore(&["keepdims"]);
        let noop = c.attrs.flag("noop_with_empty_axes", false)?;
        let given = c.constant_ints(b, 1, "axes")?.unwrap_or_default();
        let axes = match (given.is_empty(), noop) {
            (true, true) => Vec::new(),
            (true, false) => (0..b.rank(x)).collect(),
            (false, _) => given.iter().map(|a| b.axis(x, *a)).collect::<Result<Vec<_>>>()?,
        };
        let kept = b.shape(x).iter().enumerate().map(|(i, d)| if axes.contains(&i) { 1 } else { *d }).collect();
        Ok(Self { x, axes, kept })
    }

    /// As [`Reduction::new`], for operators that compute more than the reduction itself.
    ///
    /// # Errors
    /// Without axes and with `noop_with_empty_axes`: runtimes disagree on whether the rest of the operator still happens.
    fn of_many_steps(b: &Builder<'_>, c: &Call<'_>) -> Result<Self> {
        let r = Self::new(b, c)?;
        if r.axes.is_empty() && b.rank(r.x) > 0 {
            crate::bail!("noop_with_empty_axes without axes does not say what is computed");
        }
        Ok(r)
    }

    /// Puts the reduced axes back into an output or its cotangent.
    fn keep(&self, b: &mut Builder<'_>, v: ValueId) -> ValueId {
        b.reshape(v, &self.kept)
    }

    fn repeat(&self, b: &mut Builder<'_>, v: ValueId) -> ValueId {
        let shape = b.shape(self.x).to_vec();
        b.expand(v, &shape)
    }

    /// Elements reduced into one.
    fn count(&self, b: &Builder<'_>) -> usize {
        self.axes.iter().map(|a| b.shape(self.x)[*a]).product()
    }
}

/// Y = Σ X: X̄ = Ȳ; ONNX ReduceSum-13.
pub fn sum(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::new(b, c)?;
    let dy = r.keep(b, c.dy()?);
    Ok(vec![Some(r.repeat(b, dy))])
}

/// Y = Σ X/n: X̄ = Ȳ/n; ONNX ReduceMean-18.
pub fn mean(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::new(b, c)?;
    let n = r.count(b);
    let share = b.scale(c.dy()?, 1.0 / n as f64)?;
    let dy = r.keep(b, share);
    Ok(vec![Some(r.repeat(b, dy))])
}

/// Y = max X or min X: X̄ = Ȳ·[X = Y]/#{X = Y}; ONNX ReduceMax-18, ReduceMin-18.
///
/// Equal extrema share the cotangent evenly, as `torch.amax`.
pub fn extremum(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::new(b, c)?;
    let (dy, y) = (r.keep(b, c.dy()?), r.keep(b, c.y(0)?));
    let mask = b.mask("Equal", r.x, y, y)?;
    let count = b.sum(mask, &r.axes, true);
    let share = b.div(dy, count)?;
    Ok(vec![Some(b.mul(share, mask)?)])
}

/// Y = Π X: X̄ = Ȳ·(product of the other elements); ONNX ReduceProd-18.
///
/// Exact with zeros too: P/X with P the product of the elements that are not 0, where the number of zeros among the others is 0.
pub fn prod(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::new(b, c)?;
    let dy = r.keep(b, c.dy()?);
    let zero = b.scalar_like(0.0, r.x);
    let is_zero = b.mask("Equal", r.x, zero, r.x)?;
    let safe = b.add(r.x, is_zero)?;
    let product = b.reduce("ReduceProd", safe, &r.axes, true);
    let zeros = b.sum(is_zero, &r.axes, true);
    let others_are_not = b.mask("Equal", zeros, is_zero, r.x)?;
    let scaled = b.mul(dy, product)?;
    let dx = b.div(scaled, safe)?;
    Ok(vec![Some(b.mul(dx, others_are_not)?)])
}

/// Y = Σ |X|: X̄ = Ȳ·sign X, 0 at 0; ONNX ReduceL1-18.
pub fn l1(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::of_many_steps(b, c)?;
    let dy = r.keep(b, c.dy()?);
    let sign = b.unary("Sign", r.x);
    Ok(vec![Some(b.mul(dy, sign)?)])
}

/// Y = √(Σ X²): X̄ = Ȳ·X/Y, 0 where Y = 0; ONNX ReduceL2-18.
pub fn l2(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::of_many_steps(b, c)?;
    let (dy, y) = (r.keep(b, c.dy()?), r.keep(b, c.y(0)?));
    let zero = b.scalar_like(0.0, y);
    let at_zero = b.mask("Equal", y, zero, y)?;
    let divisor = b.add(y, at_zero)?;
    let scaled = b.div(dy, divisor)?;
    Ok(vec![Some(b.mul(scaled, r.x)?)])
}

/// Y = ln Σ X: X̄ = Ȳ·e^(−Y); ONNX ReduceLogSum-18.
pub fn log_sum(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::of_many_steps(b, c)?;
    let minus = b.neg(c.y(0)?);
    let slope = b.unary("Exp", minus);
    let dx = b.mul(c.dy()?, slope)?;
    let dx = r.keep(b, dx);
    Ok(vec![Some(r.repeat(b, dx))])
}

/// Y = ln Σ eˣ: X̄ = Ȳ·e^(X − Y); ONNX ReduceLogSumExp-18.
pub fn log_sum_exp(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::of_many_steps(b, c)?;
    let (dy, y) = (r.keep(b, c.dy()?), r.keep(b, c.y(0)?));
    let log = b.sub(r.x, y)?;
    let p = b.unary("Exp", log);
    Ok(vec![Some(b.mul(dy, p)?)])
}

/// Y = Σ X²: X̄ = 2Ȳ·X; ONNX ReduceSumSquare-18.
pub fn sum_square(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let r = Reduction::of_many_steps(b, c)?;
    let twice = b.scale(c.dy()?, 2.0)?;
    let dy = r.keep(b, twice);
    Ok(vec![Some(b.mul(dy, r.x)?)])
}

/// Yᵢ = Σ_{j ≤ i} Xⱼ along an axis (j < i if exclusive, j ≥ i if reverse): X̄ is the cumulative sum of Ȳ the other way; ONNX CumSum-14.
pub fn cum_sum(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let reverse = c.attrs.flag("reverse", false)?;
    let mut attrs = c.attrs.all().clone();
    attrs.insert("reverse".into(), Attr::Int(i64::from(!reverse)));
    let dy = c.dy()?;
    let ty = b.ty(dy);
    Ok(vec![Some(b.op("CumSum", &[dy, c.x(1)?], attrs, ty))])
}
