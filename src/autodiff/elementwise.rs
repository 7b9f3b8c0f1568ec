//! Elementwise arithmetic with numpy broadcasting. The driver sums each cotangent down to its operand's shape.

use super::{Call, Cotangents};
use crate::builder::Builder;

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
