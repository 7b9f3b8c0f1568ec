//! Imports a model, makes it trainable, and prints the norm of every parameter's gradient.
//!
//! `cargo run --example differentiate [MODEL.onnx]`

use bisam::Result;
use bisam::engine::{Device, Engine};
use bisam::ir::Tensor;
use bisam::onnx::import;
use bisam::step::{Ends, Preset, build, prepare};
use bisam::trace::Sizes;

const BATCH: usize = 8;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or("models/tiny_bn.onnx".into());
    let engine = Engine::new(None, None, Device::Cpu)?;

    // The file as a graph; a run of it tells the type of every value at this batch size.
    let model = import(&path)?;
    let prepared = prepare(&model.graph, &Sizes::batch(BATCH), Ends::default(), &engine)?;

    // The graph that computes the loss and its gradient: (parameters, batch) → loss, correct, gradients.
    let stages = build(&prepared, &Preset::Sgd.options())?;
    let mut session = engine.compile(&stages.grad)?;

    // Inputs by name: the batch, its labels, and the parameters and statistics as they are in the file.
    let mut inputs: Vec<(String, Tensor)> = Vec::new();
    for (name, ty) in &stages.inputs {
        let ramp: Vec<f64> = (0..ty.len()).map(|i| (i as f64).sin()).collect();
        inputs.push((name.clone(), Tensor::from_f64(ty.dtype, &ty.shape, &ramp)));
    }
    let labels: Vec<i64> = (0..BATCH).map(|i| (i % stages.classes) as i64).collect();
    inputs.push((stages.labels.clone(), Tensor::ints(&labels)));
    for v in stages.grad.value_ids().filter(|v| session.inputs().contains(&stages.grad[*v].name)) {
        inputs.extend(stages.grad.tensor(v).map(|t| (stages.grad[v].name.clone(), t.clone())));
    }
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();

    let outputs = session.run(&inputs)?;
    for (name, value) in session.outputs().iter().zip(&outputs) {
        let norm = value.to_f64().iter().map(|v| v * v).sum::<f64>().sqrt();
        println!("{norm:12.6}  {name}");
    }
    Ok(())
}
