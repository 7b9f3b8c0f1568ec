//! `bisam grad`: one gradient, for comparison with another framework.

use super::Global;
use crate::adapt::Mode;
use crate::data::{read_npz, write_npz};
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use crate::onnx::import;
use crate::step::account::nothing_to_train;
use crate::step::gradient::{Objective, Request, gradient, parts_of_initializers, with_all_initializers};
use crate::step::{Kernels, refuse_probabilities};
use crate::trace::Sizes;
use crate::wording::count;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Arguments of `grad`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// Arrays by the names of the model's inputs, and `labels`
    #[arg(long, value_name = "IN.npz")]
    inputs: PathBuf,
    /// cross-entropy, or the name of a scalar output
    #[arg(long, default_value = "cross-entropy")]
    loss: String,
    /// The output, or a value inside, that holds the logits or probabilities [default: found among the outputs]
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    /// What to differentiate with respect to
    #[arg(long, default_value = "params", value_parser = ["params", "inputs", "all"])]
    wrt: String,
    /// Behaviour of normalization and dropout
    #[arg(long, default_value = "eval", value_parser = ["eval", "train"])]
    mode: String,
    /// Operators of the gradient: plain is standard ONNX, fused has kernels of its own
    #[arg(long, default_value = "plain")]
    kernels: Kernels,
    /// Where the gradient is written
    #[arg(short, long, value_name = "OUT.npz")]
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// Inputs that do not fit the model, or a node without a gradient rule.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let engine = global.engine()?;
    let model = import(&args.model)?;
    let arrays = read_npz(&args.inputs)?;
    let array = |name: &str| {
        arrays.get(name).ok_or_else(|| {
            let have = arrays.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            Error::new(format!("there is no array `{name}`")).in_file(&args.inputs).hint(format!("it holds {have}"))
        })
    };
    let graph = with_all_initializers(&model);
    let mut shapes = BTreeMap::new();
    for v in &graph.inputs {
        let name = &graph[*v].name;
        shapes.insert(name.clone(), array(name)?.shape().to_vec());
    }
    let batch = shapes.values().find_map(|s| s.first().copied()).unwrap_or(1);
    let sizes = Sizes { batch, shapes, ..Sizes::default() };
    let mode = if args.mode == "train" { Mode::Train } else { Mode::Eval };
    let objective = match args.loss.as_str() {
        "cross-entropy" => Objective::CrossEntropy(args.logits.clone()),
        name => Objective::Output(name.into()),
    };
    let (params, inputs) = (args.wrt != "inputs", args.wrt != "params");
    let request =
        Request { mode, objective, params, inputs, kernels: args.kernels, parts: parts_of_initializers(&model) };
    let g = gradient(&graph, &sizes, &request, &engine).map_err(|e| e.in_file(&args.model))?;
    if g.of.is_empty() {
        let nothing = nothing_to_train(&graph);
        let error = if params { nothing } else { Error::new("the model has no float input") };
        return Err(error.in_file(&args.model));
    }
    g.notes.iter().for_each(|n| global.note(n));
    let mut session = engine.compile_whole(&g.graph)?;
    let mut given: Vec<(String, Tensor)> = Vec::new();
    for v in &g.graph.inputs {
        let name = &g.graph[*v].name;
        let key = if g.classes.as_ref().is_some_and(|c| c.labels == *name) { "labels" } else { name };
        let array = array(key)?;
        let want = g.graph.ty(*v)?;
        let cast = match (array.dtype(), want.dtype) {
            (a, b) if a == b => array.clone(),
            (_, DType::I64) if array.to_i64().is_some() => {
                Tensor::new(array.shape(), &array.to_i64().unwrap_or_default())?
            }
            (a, b) if a.is_float() && b.is_float() => Tensor::from_f64(b, array.shape(), &array.to_f64()),
            (a, b) => {
                return Err(Error::new(format!("array `{key}` is {a}, the model wants {b}")).in_file(&args.inputs));
            }
        };
        if cast.shape() != want.shape {
            let cause = format!("array `{key}` has shape {:?}, not {:?}", cast.shape(), want.shape);
            return Err(Error::new(cause).in_file(&args.inputs));
        }
        given.push((name.clone(), cast));
    }
    if let Some(of) = &g.classes {
        let classes = of.origin.classes;
        let labels = given.iter().find(|(n, _)| *n == of.labels).and_then(|(_, t)| t.to_i64()).unwrap_or_default();
        if let Some(l) = labels.iter().find(|l| **l < 0 || **l >= classes as i64) {
            return Err(Error::new(format!("label {l} is not in 0..{classes}"))
                .in_file(&args.inputs)
                .hint(format!("the model has {}, counted from 0", count(classes, "class"))));
        }
        of.origin.note().iter().for_each(|n| global.note(n));
    }
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let values = session.run(&given)?;
    let mut by_name: BTreeMap<String, Tensor> = session.outputs().iter().cloned().zip(values).collect();
    if let Some(of) = &g.classes {
        let scores = by_name.remove(&of.output).map(|t| t.to_f32()).unwrap_or_default();
        refuse_probabilities(&of.origin, &scores, of.origin.classes).map_err(|e| e.in_file(&args.model))?;
    }
    let mut out = BTreeMap::new();
    for (name, ty, output) in &g.of {
        let zero = || Tensor::full(ty.dtype, &ty.shape, 0.0);
        out.insert(format!("grad/{name}"), output.as_ref().and_then(|o| by_name.remove(o)).unwrap_or_else(zero));
    }
    out.extend(by_name);
    write_npz(&args.output, &out)?;
    let loss = out.get("loss").map_or(f64::NAN, |t| t.to_f64()[0]);
    let value = serde_json::json!({"loss": loss, "gradients": g.of.len(), "file": args.output});
    global.print(&value, &format!("loss {loss:.6}, {} gradients in {}", g.of.len(), args.output.display()))
}
