//! tract against ONNX Runtime: two independent implementations must agree about an exported file.

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ir::{DType, Declared, Dim, Source, Tensor};
use crate::onnx::import;
use crate::trace::DEFAULT_DIM;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::path::Path;
use tract_onnx::prelude::*;

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Largest absolute difference of any element of any float output.
    pub max_difference: f64,
    /// Elements compared.
    pub elements: usize,
    /// Whether the difference is within the tolerance.
    pub agrees: bool,
}

/// Runs `path` on tract and on ONNX Runtime (with `against`: both files on ONNX Runtime) on the same seeded inputs.
///
/// # Errors
/// A file that either runtime refuses; names the file and the reason.
pub fn verify(engine: &Engine, path: &Path, against: Option<&Path>, batch: usize, tolerance: f64) -> Result<Verdict> {
    let model = import(path)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut inputs: Vec<(String, Tensor)> = Vec::new();
    for v in &model.graph.inputs {
        let Source::Input(Declared { dtype, dims }) = &model.graph[*v].source else { continue };
        let dims = dims.as_ref().ok_or_else(|| Error::new("an input does not say its rank").in_file(path))?;
        let size = |(i, d): (usize, &Dim)| match d {
            Dim::Fixed(n) => *n,
            _ if i == 0 => batch,
            _ => DEFAULT_DIM,
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let n = shape.iter().product();
        let values: Vec<f64> =
            if dtype.is_float() { (0..n).map(|_| rng.random_range(-1.7..1.7)).collect() } else { vec![1.0; n] };
        inputs.push((model.graph[*v].name.clone(), Tensor::from_f64(*dtype, &shape, &values)));
    }
    let on_runtime = |path: &Path| -> Result<Vec<Tensor>> {
        let bytes = std::fs::read(path).map_err(|e| Error::new(e.to_string()).in_file(path))?;
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        engine.compile_model(&bytes).and_then(|mut s| s.run(&inputs)).map_err(|e| e.in_file(path))
    };
    let ours = on_runtime(path)?;
    let theirs = match against {
        Some(other) => on_runtime(other)?.into_iter().map(|t| t.to_f64()).collect(),
        None => on_tract(path, &inputs).map_err(|e| Error::new(format!("tract: {e:#}")).in_file(path))?,
    };
    let (mut max, mut elements) = (0.0f64, 0);
    for (a, b) in ours.iter().zip(&theirs).filter(|(a, _)| a.dtype().is_float()) {
        let a = a.to_f64();
        if a.len() != b.len() {
            return Err(Error::new(format!("outputs of {} and {} elements", a.len(), b.len())).in_file(path));
        }
        elements += a.len();
        for (x, y) in a.iter().zip(b) {
            let difference = (x - y).abs();
            max = if difference.is_nan() { f64::INFINITY } else { max.max(difference) };
        }
    }
    Ok(Verdict { max_difference: max, elements, agrees: max <= tolerance })
}

/// Every output as f64.
fn on_tract(path: &Path, inputs: &[(String, Tensor)]) -> TractResult<Vec<Vec<f64>>> {
    let mut model = tract_onnx::onnx().model_for_path(path)?;
    let order: Vec<String> = model.input_outlets()?.iter().map(|o| model.node(o.node).name.clone()).collect();
    let mut values = TVec::new();
    for (i, name) in order.iter().enumerate() {
        let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == name) else {
            return Err(TractError::msg(format!("input {name} is not known")));
        };
        let shape = tensor.shape();
        let value = match tensor.dtype() {
            DType::F32 => tract_ndarray::ArrayD::from_shape_vec(shape, tensor.to_f32())?.into_tensor(),
            DType::I64 => {
                tract_ndarray::ArrayD::from_shape_vec(shape, tensor.to_i64().unwrap_or_default())?.into_tensor()
            }
            other => return Err(TractError::msg(format!("inputs of {other} are not supported here"))),
        };
        model = model.with_input_fact(i, InferenceFact::dt_shape(value.datum_type(), value.shape()))?;
        values.push(value.into());
    }
    for i in 0..model.output_outlets()?.len() {
        model = model.with_output_fact(i, Default::default())?;
    }
    let outputs = model.into_optimized()?.into_runnable()?.run(values)?;
    outputs
        .iter()
        .map(|o| {
            let o = o.cast_to::<f64>()?;
            Ok(o.to_plain_array_view::<f64>()?.iter().copied().collect())
        })
        .collect()
}
