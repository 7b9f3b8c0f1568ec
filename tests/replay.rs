//! Ten steps of every method against the authors' update, written independently in PyTorch (`models/replay.py`).

use crate::common::{engine, npz, repo};
use crate::snapshot;
use bisam::data::write_npz;
use bisam::engine::Program;
use bisam::ir::Tensor;
use bisam::onnx::import;
use bisam::step::{Ends, Kernels, Preset, StepOptions, build, prepare};
use bisam::trace::Sizes;
use std::collections::BTreeMap;

/// Largest error of a tensor, relative to its norm.
const TOLERANCE: f64 = 1e-4;

/// The recorded settings are those of [`StepOptions`], in Python's spelling.
fn options(settings: &serde_json::Value) -> StepOptions {
    let known = settings.as_object().expect("an object").iter().filter(|(k, _)| *k != "lr");
    let renamed: serde_json::Map<_, _> = known.map(|(k, v)| (k.replace('_', "-"), v.clone())).collect();
    serde_json::from_value(renamed.into()).expect("settings of a step")
}

/// SWP's random choices, kept for the reference to take the same: a line of parameter names for every step.
#[test]
fn random_choices_are_as_kept() {
    let options = Preset::Esam.options();
    for model in ["tiny_bn", "tiny_ln"] {
        let graph = import(repo(&format!("models/{model}.onnx"))).expect("imports").graph;
        let names: Vec<&str> = graph.params().into_iter().map(|v| graph[v].name.as_str()).collect();
        let subsets = options.subsets(names.len());
        let line = |step: u64| {
            let chosen = &subsets[options.subset(step, 0)];
            let names = names.iter().zip(chosen).filter(|(_, chosen)| **chosen).map(|(name, _)| *name);
            names.collect::<Vec<_>>().join(" ") + "\n"
        };
        snapshot::check(&format!("models/reference/choices_{model}.txt"), &(0..10).map(line).collect::<String>());
    }
}

/// The noise that a random start takes, kept for the reference to take the same: [step, micro-batch, ...] by parameter name.
#[test]
fn random_starts_are_as_kept() {
    let options = Preset::Rsam.options();
    for model in ["tiny_bn", "tiny_ln"] {
        let graph = import(repo(&format!("models/{model}.onnx"))).expect("imports").graph;
        let params: Vec<_> =
            graph.params().into_iter().map(|v| (&graph[v].name, graph.param(v).expect("a value"))).collect();
        let elements: usize = params.iter().map(|(_, t)| t.len()).sum();
        let draws: Vec<Vec<f32>> = (0..20).map(|i| options.noise(i / 2, i as usize % 2, elements)).collect();
        let mut arrays = BTreeMap::new();
        let mut first = 0;
        for (name, t) in params {
            let values: Vec<f32> = draws.iter().flat_map(|d| &d[first..first + t.len()]).copied().collect();
            first += t.len();
            arrays.insert(name.clone(), Tensor::new(&[&[10, 2], t.shape()].concat(), &values).expect("a tensor"));
        }
        let file = repo(&format!("models/reference/noise_{model}.npz"));
        if snapshot::updating() {
            write_npz(&file, &arrays).expect("written");
        }
        assert_eq!(npz(&file), arrays, "{model}: BISAM_UPDATE=1 writes it anew, then models/replay.py the replays");
    }
}

#[test]
fn ten_steps_equal_the_authors_update() {
    let mut failures = Vec::new();
    let mut runs = 0;
    let mut files: Vec<_> =
        std::fs::read_dir(repo("models/reference")).expect("folder").map(|e| e.expect("entry").path()).collect();
    files.sort();
    for file in files {
        let Some(name) = file.file_stem().and_then(|s| s.to_str()).and_then(|s| s.strip_prefix("replay_")) else {
            continue;
        };
        runs += 1;
        let run = npz(&file);
        let settings: serde_json::Value = serde_json::from_slice(run["settings"].bytes()).expect("JSON");
        let (model, _) = name.rsplit_once('_').expect("model_method");
        for kernels in [Kernels::Plain, Kernels::Fused] {
            let options = StepOptions { kernels, ..options(&settings) };
            let lr = settings["lr"].as_f64().expect("lr") as f32;
            let imported = import(repo(&format!("models/{model}.onnx"))).expect("imports");
            let graph = &imported.graph;
            let input = graph[graph.inputs[0]].name.clone();
            let batches = &run[&input];
            let batch = batches.shape()[1];
            let engine = engine();
            let prepared = prepare(graph, &Sizes::batch(batch), Ends::default(), &engine).expect("prepares");
            let stages = build(&prepared, &options).expect("builds");
            let mut program = Program::new(&engine, &stages, &options).expect("compiles");
            program
                .add_batch_sizes(&stages, batch, |n| {
                    build(&prepare(graph, &Sizes::batch(n), Ends::default(), &engine)?, &options)
                })
                .expect("compiles");
            let labels = run["labels"].to_vec::<i64>().expect("i64");
            let size = batches.bytes().len() / 10;
            for step in 0..10 {
                let x = &batches.bytes()[step * size..(step + 1) * size];
                let losses =
                    program.step(&[x], &labels[step * batch..(step + 1) * batch], lr, options.rho).expect("steps");
                let want = run["descent_loss"].to_f64()[step];
                if (f64::from(losses.descent) - want).abs() > 1e-4 * want.abs().max(1e-3) {
                    failures.push(format!(
                        "{name} {kernels:?}: descent loss {} instead of {want} in step {}",
                        losses.descent,
                        step + 1
                    ));
                }
                if step == 0 || step == 9 {
                    let state = program.state().expect("state");
                    let params = program.params().iter().map(|p| &p.name).zip(&state.params);
                    let stats = program.stats().iter().map(|s| &s.slot.name).zip(&state.stats);
                    for (tensor, values) in params.chain(stats) {
                        let want =
                            run.get(&format!("step{}/{tensor}", step + 1)).expect("every tensor is recorded").to_f32();
                        let error = crate::common::relative(values, &want, 1e-3);
                        if error > TOLERANCE {
                            failures.push(format!(
                                "{name} {kernels:?}: {tensor} is off by {error:.1e} after step {}",
                                step + 1
                            ));
                        }
                    }
                }
            }
        }
    }
    assert!(runs >= 50, "only {runs} replays");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
