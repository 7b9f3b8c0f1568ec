//! `bisam build`: the stages of a training step as plain ONNX files.

use super::{Global, StepArgs, at_least_one};
use crate::engine::Layout;
use crate::error::{Error, IoContext, Result};
use crate::files::write_atomically;
use crate::onnx::{Weights, emit, import, save};
use crate::step::flat::{accumulate_stage, perturb_stage, start_stage, statistics_stage, update_stage};
use crate::step::update::Ending;
use crate::step::{Ends, Kernels, StepOptions, build, prepare};
use crate::trace::Sizes;
use std::path::PathBuf;

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// Samples in a batch
    #[arg(long, value_parser = at_least_one)]
    batch: usize,
    /// The output, or a value inside, that holds the logits or probabilities [default: found among the outputs]
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    #[command(flatten)]
    step: StepArgs,
    /// Folder for grad.onnx, perturb.onnx, update.onnx, eval.onnx, what else a step of these options runs, and layout.json
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// Anything that stands in the way of training the model.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let engine = global.engine()?;
    // The files are for any runtime unless fused kernels are asked for.
    let mut options = StepOptions { kernels: Kernels::Plain, ..StepOptions::default() };
    args.step.apply(&mut options)?;
    let model = import(&args.model)?;
    let prepared =
        prepare(&model.graph, &Sizes::batch(args.batch), Ends { logits: args.logits.as_deref(), loss: None }, &engine)
            .map_err(|e| e.in_file(&args.model))?;
    prepared.notes.iter().for_each(|n| global.note(n));
    let stages = build(&prepared, &options).map_err(|e| e.in_file(&args.model))?;
    let layout = Layout::new(stages.params.iter().map(|p| p.shape.as_slice()));
    let stats = Layout::new(stages.stats.iter().map(|s| s.slot.shape.as_slice()));
    std::fs::create_dir_all(&args.output).file(&args.output)?;
    let write = |name: &str, graph: &crate::ir::Graph| save(&emit(graph, Weights::Inputs), &args.output.join(name));
    write("grad.onnx", &stages.grad)?;
    write("eval.onnx", &stages.eval)?;
    write("update.onnx", &update_stage(layout.len(), &options, Ending::Whole)?)?;
    let reuse = (options.period > 1).then(|| update_stage(layout.len(), &options, Ending::Reused)).transpose()?;
    let others = [
        ("start.onnx", start_stage(layout.len(), &options)?),
        ("perturb.onnx", perturb_stage(layout.len(), &options)?),
        ("statistics.onnx", statistics_stage(stats.len())?),
        ("accumulate.onnx", accumulate_stage(layout.len(), &options)?),
        ("reuse.onnx", reuse),
        ("score.onnx", stages.score.clone()),
    ];
    for (name, graph) in others {
        if let Some(graph) = graph {
            write(name, &graph)?;
        }
    }
    for (i, subset) in stages.subsets.iter().enumerate() {
        write(&format!("ascent{i}.onnx"), &subset.grad)?;
    }
    let places: Vec<_> = stages
        .params
        .iter()
        .zip(layout.offsets())
        .map(|(p, o)| serde_json::json!({"name": p.name, "shape": p.shape, "offset": o}))
        .collect();
    let value = serde_json::json!({"elements": layout.len(), "parameters": places});
    let text = serde_json::to_vec_pretty(&value).map_err(|e| Error::new(e.to_string()))?;
    write_atomically(&args.output.join("layout.json"), &text)?;
    let summary = format!(
        "{}: grad ({} nodes), eval ({} nodes), {} parameters",
        args.output.display(),
        stages.grad.nodes.len(),
        stages.eval.nodes.len(),
        stages.params.len()
    );
    global.print(&serde_json::json!({"folder": args.output, "grad_nodes": stages.grad.nodes.len()}), &summary)
}
