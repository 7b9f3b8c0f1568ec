//! Upsample, and Resize of opset 10.

use super::Writer;
use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, DType, Node, Tensor, ValueId};

/// Output o of an axis reads the place o/scale of the input. The nearest pixel is the one before, or, where the axis shrinks, the one
/// after, as ONNX Runtime has it: axes that grow and axes that shrink then take a Resize each.
///
/// Scales are an attribute before opset 9.
///
/// # Errors
/// When there are no scales: that is the form of opset 1.
pub(super) fn resize(w: &mut Writer<'_>, mut node: Node) -> Result<()> {
    let given = match node.attrs.remove("scales") {
        Some(Attr::Floats(scales)) => Some(w.constant(Tensor::new(&[scales.len()], &scales)?)),
        _ => node.input(1),
    };
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Ok(()) };
    let scales = given.ok_or_else(|| Error::new("it has no scales").hint("export the model with a newer opset"))?;
    let mode = node.attrs.remove("mode").unwrap_or(Attr::Str("nearest".into()));
    if let Some(name) = node.attrs.keys().next() {
        return Err(Error::new(format!("attribute `{name}` is of an operator set before 7, the file is not")));
    }
    let nearest = mode == Attr::Str("nearest".into());
    let known = w.graph.constant(scales).map(Tensor::to_f64);
    let any = |test: fn(&f64) -> bool| known.as_ref().is_none_or(|s| s.iter().any(test));
    let (grows, shrinks) = (any(|s| *s > 1.0), any(|s| *s < 1.0));
    let step = |w: &mut Writer<'_>, x: ValueId, scales: ValueId, rounding: &str, y: ValueId| {
        let text = |s: &str| Attr::Str(s.into());
        let asymmetric = ("coordinate_transformation_mode".into(), text("asymmetric"));
        let mut attrs = Attrs::from([asymmetric, ("mode".into(), mode.clone())]);
        if nearest {
            attrs.insert("nearest_mode".into(), text(rounding));
        }
        w.raw("Resize", vec![Some(x), None, Some(scales)], attrs, y);
    };
    match (nearest && shrinks, grows) {
        (false, _) => step(w, x, scales, "floor", y),
        (true, false) => step(w, x, scales, "ceil", y),
        (true, true) => {
            let (less, more) = (bounded(w, scales, "Min"), bounded(w, scales, "Max"));
            let small = w.value("Resize");
            step(w, x, less, "ceil", small);
            step(w, small, more, "floor", y);
        }
    }
    Ok(())
}

/// The smaller or larger of each scale and 1.
fn bounded(w: &mut Writer<'_>, scales: ValueId, op: &str) -> ValueId {
    let Some(known) = w.graph.constant(scales).map(Tensor::to_f64) else {
        let one = w.constant(Tensor::scalar(DType::F32, 1.0));
        return w.op(op, &[scales, one], Attrs::new());
    };
    let values: Vec<f64> = known.iter().map(|s| if op == "Min" { s.min(1.0) } else { s.max(1.0) }).collect();
    w.constant(Tensor::from_f64(DType::F32, &[values.len()], &values))
}
