//! tract against ONNX Runtime: two independent implementations must agree about an exported file.

use crate::engine::Engine;
use crate::error::{Error, Result, catch_panic};
use crate::ir::{Attr, DType, Declared, Dim, Node, Source, Tensor, ValueId};
use crate::onnx::{Model, Weights, emit, import, inline_data, of_tensors};
use crate::trace::{DEFAULT_DIM, encode};
use onnx_protobuf::ModelProto;
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
    /// Largest absolute value of any finite element.
    pub largest: f64,
    /// Elements compared.
    pub elements: usize,
    /// Whether the difference is within the tolerance.
    pub agrees: bool,
    /// The float outputs, in the file's order.
    pub outputs: Vec<OutputDifference>,
    /// Files that ONNX Runtime does not run themselves, each with the reason; what this crate makes of them was run in their place.
    pub written_out: Vec<String>,
}

/// What was found about one output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputDifference {
    /// Its name in the first file.
    pub name: String,
    /// Its elements.
    pub elements: usize,
    /// Largest absolute difference; infinite where one side is not a number.
    pub max_difference: f64,
}

/// Runs `path` on tract and on ONNX Runtime (with `against`: both files on ONNX Runtime) on the same seeded inputs.
///
/// Float inputs are uniform in ±1.7, indices into stored tables any row, other integers 1.
///
/// # Errors
/// A file that either runtime refuses (with the operators that tract lacks), outputs that cannot be compared, or none that
/// could be; names the file.
pub fn verify(engine: &Engine, path: &Path, against: Option<&Path>, batch: usize, tolerance: f64) -> Result<Verdict> {
    let model = import(path)?;
    let inputs = probes(&model, batch).map_err(|e| e.in_file(path))?;
    let ours = on_runtime(engine, &model, &inputs)?;
    let mut written_out: Vec<String> = ours.instead.iter().cloned().collect();
    let theirs: Vec<(Vec<usize>, Vec<f64>)> = match against {
        Some(other) => {
            let other = on_runtime(engine, &import(other)?, &inputs)?;
            written_out.extend(other.instead);
            other.outputs.iter().map(|t| (t.shape().to_vec(), t.to_f64())).collect()
        }
        None => on_tract(&model, ours.proto, &inputs).map_err(|e| e.in_file(path))?,
    };
    let verdict = compare(&ours.names, &ours.outputs, &theirs, tolerance).map_err(|e| e.in_file(path))?;
    Ok(Verdict { written_out, ..verdict })
}

/// What ONNX Runtime makes of a file.
struct Ran {
    /// What ran.
    proto: ModelProto,
    names: Vec<String>,
    outputs: Vec<Tensor>,
    /// Why that is not the file itself, if it is not.
    instead: Option<String>,
}

/// Runs a file, or, where ONNX Runtime does not (it has no kernel for some operator, for instance), what this crate makes of it.
fn on_runtime(engine: &Engine, model: &Model, inputs: &[(String, Tensor)]) -> Result<Ran> {
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let run = |proto: ModelProto, instead: Option<String>| -> Result<Ran> {
        let mut session = engine.compile_model(&encode(&proto)?)?;
        let outputs = session.run(&given)?;
        Ok(Ran { proto, names: session.outputs().to_vec(), outputs, instead })
    };
    whole(model)
        .and_then(|proto| run(proto, None))
        .or_else(|e| {
            let why = format!("ONNX Runtime does not run {} itself: {}", model.path.display(), e.cause());
            run(emit(&model.graph, Weights::Initializers), Some(why)).map_err(|_| e)
        })
        .map_err(|e| e.in_file(&model.path).hint("`bisam inspect` shows what stands in the model's way"))
}

/// The model with the data of its tensors, as one message; without outputs that hold no numbers, which cannot be compared.
fn whole(model: &Model) -> Result<ModelProto> {
    let mut proto = of_tensors(&model.proto).unwrap_or_else(|| model.proto.clone());
    inline_data(&mut proto, &model.path)?;
    Ok(proto)
}

fn compare(names: &[String], ours: &[Tensor], theirs: &[(Vec<usize>, Vec<f64>)], tolerance: f64) -> Result<Verdict> {
    if ours.len() != theirs.len() {
        return Err(Error::new(format!(
            "there are {} outputs on one side and {} on the other",
            ours.len(),
            theirs.len()
        )));
    }
    let (mut outputs, mut largest) = (Vec::new(), 0.0f64);
    for ((name, a), (shape, b)) in names.iter().zip(ours).zip(theirs).filter(|((_, a), _)| a.dtype().is_float()) {
        if a.shape() != shape {
            let cause = format!("output `{name}` is {:?} on one side and {shape:?} on the other", a.shape());
            return Err(Error::new(cause));
        }
        let difference = |(x, y): (f64, &f64)| {
            // Equal infinities differ by NaN.
            let d = if x == *y { 0.0 } else { (x - y).abs() };
            if d.is_nan() { f64::INFINITY } else { d }
        };
        let max_difference = a.to_f64().into_iter().zip(b).map(difference).fold(0.0, f64::max);
        largest = b.iter().copied().filter(|v| v.is_finite()).map(f64::abs).fold(largest, f64::max);
        outputs.push(OutputDifference { name: name.clone(), elements: b.len(), max_difference });
    }
    let elements = outputs.iter().map(|o| o.elements).sum();
    if elements == 0 {
        return Err(Error::new("there is no float output to compare"));
    }
    let max_difference = outputs.iter().map(|o| o.max_difference).fold(0.0, f64::max);
    let agrees = max_difference <= tolerance;
    Ok(Verdict { max_difference, largest, elements, agrees, outputs, written_out: Vec::new() })
}

/// Seeded values for every input.
fn probes(model: &Model, batch: usize) -> Result<Vec<(String, Tensor)>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut inputs = Vec::new();
    for v in &model.graph.inputs {
        let name = &model.graph[*v].name;
        let Source::Input(Declared { dtype, dims }) = &model.graph[*v].source else { continue };
        let dims = dims.as_ref().ok_or_else(|| {
            Error::new(format!("input `{name}` does not say its rank")).hint("export the model with a shape for it")
        })?;
        let size = |(i, d): (usize, &Dim)| match d {
            Dim::Fixed(n) => *n,
            _ if i == 0 => batch,
            _ => DEFAULT_DIM,
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let n = shape.iter().product();
        let rows = rows_of_table(model, *v);
        let values: Vec<f64> = (0..n)
            .map(|_| match rows {
                _ if dtype.is_float() => rng.random_range(-1.7..1.7),
                Some(rows) => rng.random_range(0..rows) as f64,
                None => 1.0,
            })
            .collect();
        inputs.push((name.clone(), Tensor::from_f64(*dtype, &shape, &values)));
    }
    Ok(inputs)
}

/// The number of rows of the smallest stored table that `input` indexes.
fn rows_of_table(model: &Model, input: ValueId) -> Option<usize> {
    let graph = &model.graph;
    let gathers = graph.nodes.iter().filter(|n| n.is("Gather") && n.input(1) == Some(input));
    let first_axis = gathers.filter(|n| matches!(n.attrs.get("axis"), None | Some(Attr::Int(0))));
    first_axis.filter_map(|n| graph.tensor(n.input(0)?)?.shape().first().copied()).filter(|n| *n > 0).min()
}

/// Shape and values of every output of `proto`, which is the model's or stands for it.
fn on_tract(model: &Model, mut proto: ModelProto, inputs: &[(String, Tensor)]) -> Result<Vec<(Vec<usize>, Vec<f64>)>> {
    let training = |n: &&Node| n.is("BatchNormalization") && n.attrs.get("training_mode") == Some(&Attr::Int(1));
    if let Some(node) = model.graph.nodes.iter().find(training) {
        return Err(node.blame(Error::new("it is in training mode, which tract does not run")).hint(
            "export the model in evaluation mode, or compare with another file on ONNX Runtime: --against MODEL2",
        ));
    }
    if let Some(node) = model.graph.nodes.iter().find(|n| has_own_activations(n)) {
        return Err(node
            .blame(Error::new("tract computes it with the default activations, whatever the file says"))
            .hint("compare with another file on ONNX Runtime: --against MODEL2"));
    }
    // tract does not unify a symbolic dimension that is declared for a value inside with the number given for the inputs.
    proto.graph.mut_or_insert_default().value_info.clear();
    let bytes = encode(&proto)?;
    let failed = |e: TractError| Error::new(format!("tract: {e:#}"));
    let loaded = tract_onnx::onnx().model_for_read(&mut std::io::Cursor::new(bytes)).map_err(failed)?;
    let mut missing: Vec<String> = loaded
        .nodes()
        .iter()
        .filter_map(|n| n.op.name().strip_prefix("Unimplemented(").map(|op| op.trim_end_matches(')').to_owned()))
        .collect();
    missing.sort();
    missing.dedup();
    if !missing.is_empty() {
        return Err(Error::new(format!("tract has no operator {}", missing.join(", ")))
            .hint("compare with another file on ONNX Runtime: --against MODEL2"));
    }
    let ran = catch_panic(|| run_on_tract(loaded, inputs)).ok_or_else(|| {
        Error::new("tract panicked").hint("compare with another file on ONNX Runtime: --against MODEL2")
    })?;
    ran.map_err(failed).map_err(|e| {
        e.hint("tract may not support this form of the operator; compare with another file on ONNX Runtime: --against MODEL2")
    })
}

/// Whether a recurrent layer has other activations than the operator's defaults.
fn has_own_activations(node: &Node) -> bool {
    let defaults: &[&str] = match node.op.as_str() {
        "RNN" => &["Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        _ => return false,
    };
    match node.attrs.get("activations") {
        Some(Attr::Strs(given)) => given.iter().zip(defaults.iter().cycle()).any(|(a, b)| !a.eq_ignore_ascii_case(b)),
        _ => false,
    }
}

fn run_on_tract(mut model: InferenceModel, inputs: &[(String, Tensor)]) -> TractResult<Vec<(Vec<usize>, Vec<f64>)>> {
    let order: Vec<String> = model.input_outlets()?.iter().map(|o| model.node(o.node).name.clone()).collect();
    let mut values = TVec::new();
    for (i, name) in order.iter().enumerate() {
        let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == name) else {
            return Err(TractError::msg(format!("input {name} is not known")));
        };
        let value = to_tract(tensor)?;
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
            Ok((o.shape().to_vec(), o.to_plain_array_view::<f64>()?.iter().copied().collect()))
        })
        .collect()
}

fn to_tract(tensor: &Tensor) -> TractResult<tract_onnx::prelude::Tensor> {
    let ty = match tensor.dtype() {
        DType::F32 => f32::datum_type(),
        DType::F64 => f64::datum_type(),
        DType::I32 => i32::datum_type(),
        DType::I64 => i64::datum_type(),
        DType::U8 => u8::datum_type(),
        DType::Bool => bool::datum_type(),
        other => return Err(TractError::msg(format!("inputs of {other} are not supported here"))),
    };
    let exact = tract_ndarray::ArrayD::from_shape_vec(tensor.shape(), tensor.to_f64())?.into_tensor();
    Ok(exact.cast_to_dt(ty)?.into_owned())
}
