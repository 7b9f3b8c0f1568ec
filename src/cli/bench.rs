//! `bisam bench`: median step time, peak memory, time per stage.

use super::inspect::dimension;
use super::{Global, StepArgs, at_least_one};
use crate::engine::Program;
use crate::engine::profile::{NodeTime, by_operator};
use crate::error::Result;
use crate::onnx::import;
use crate::step::{Ends, StepOptions, build, prepare};
use crate::trace::{Sizes, probe};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// Samples in a batch
    #[arg(long, value_parser = at_least_one)]
    batch: usize,
    /// Steps timed, after two that are not
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// The output, or a value inside, that holds the logits or probabilities [default: found among the outputs]
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    #[command(flatten)]
    step: StepArgs,
    /// Size of a named dimension, as NAME=SIZE
    #[arg(long = "dim", value_parser = dimension)]
    dims: Vec<(String, usize)>,
    /// Show the time by operator within a pass; steps take a little longer
    #[arg(long)]
    profile: bool,
}

/// Runs the command.
///
/// # Errors
/// Anything that stands in the way of training the model.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let start = Instant::now();
    let mut engine = global.engine()?;
    engine.profiled = args.profile;
    let mut options = StepOptions::default();
    args.step.apply(&mut options)?;
    let model = import(&args.model)?;
    let sizes = Sizes { dims: args.dims.iter().cloned().collect(), ..Sizes::batch(args.batch) };
    let ends = Ends { logits: args.logits.as_deref(), loss: None };
    let prepared = prepare(&model.graph, &sizes, ends, &engine).map_err(|e| e.in_file(&args.model))?;
    prepared.notes.iter().for_each(|n| global.note(n));
    let stages = build(&prepared, &options).map_err(|e| e.in_file(&args.model))?;
    let mut program = Program::new(&engine, &stages, &options)?;
    program.add_batch_sizes(&stages, args.batch, |n| {
        build(&prepare(&model.graph, &sizes.with_batch(n), ends, &engine)?, &options)
    })?;
    let inputs: Vec<Vec<u8>> = stages
        .inputs
        .iter()
        .map(|(_, ty)| match ty.dtype {
            crate::ir::DType::F32 => {
                let wave = (0..ty.len()).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0);
                bytemuck::cast_slice(&wave.collect::<Vec<f32>>()).to_vec()
            }
            _ => probe(ty).bytes().to_vec(),
        })
        .collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let labels: Vec<i64> = (0..args.batch).map(|i| (i % stages.classes) as i64).collect();
    let mut times = Vec::with_capacity(args.steps);
    let mut startup = 0.0;
    for i in 0..args.steps + 2 {
        let t = Instant::now();
        program.step(&inputs, &labels, 1e-3, options.rho)?;
        if i == 0 {
            startup = start.elapsed().as_secs_f64();
        }
        if i == 1 {
            program.times = Default::default();
        }
        if i >= 2 {
            times.push(t.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let per = |d: Duration| ms(d) / args.steps as f64;
    let stage = program.times;
    let peak = peak_bytes();
    let device = program.device_bytes()?;
    let nodes = program.profile()?;
    let mut value = json!({
        "step_ms": median, "peak_bytes": peak, "startup_s": startup, "threads": engine.runtime.threads, "steps_ms": times,
        "device_bytes": device, "stages": {"grad": per(stage.grad), "perturb": per(stage.perturb), "update": per(stage.update)},
    });
    let mut text = format!(
        "step {median:.1} ms (median of {}), grad {:.1}, perturb {:.2}, update {:.2}; import to first step {startup:.2} s; peak {} MB",
        times.len(),
        per(stage.grad),
        per(stage.perturb),
        per(stage.update),
        peak / 1_000_000
    );
    if let Some(device) = device {
        text += &format!("; {} MB on the device", device / 1_000_000);
    }
    if args.profile {
        value["nodes"] = (nodes.iter())
            .map(|n| json!({"name": n.name, "op": n.op, "provider": n.provider, "inputs": n.inputs, "ms": ms(n.time)}))
            .collect();
        text += &operators(&nodes);
    }
    global.print(&value, &text)
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// A table of the time by operator.
fn operators(nodes: &[NodeTime]) -> String {
    let total = nodes.iter().map(|n| n.time).sum();
    let mut text = format!("\none pass of grad, by operator: {:.1} ms in {} nodes\n", ms(total), nodes.len());
    for o in by_operator(nodes) {
        let (time, share) = (ms(o.time), 100.0 * ms(o.time) / ms(total).max(1e-9));
        text += &format!("{share:6.1} %  {time:9.2} ms  {:5} × {}  ({})\n", o.nodes, o.op, o.provider);
    }
    text.trim_end().to_owned()
}

/// Largest resident size of this process so far; 0 where the system does not tell.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}
