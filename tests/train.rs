//! Whole runs: a resumed one ends as an uninterrupted one, and the exported file is the user's own.

use crate::common::{self, StopAfter, engine, repo};
use bisam::adapt::replace_head;
use bisam::export::{export, fresh, verify};
use bisam::ir::Graph;
use bisam::onnx::import;
use bisam::step::Preset;
use bisam::train::{Recipe, train};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

fn recipe() -> Recipe {
    Recipe {
        model: repo("models/resnet8_28.onnx"),
        data: format!("idx:{}", repo("datasets/fashion-mnist-small").display()),
        batch_size: 512,
        steps: Some(11),
        augment: "crop-flip".into(),
        step: Preset::Bisam.options(),
        ..Recipe::default()
    }
}

#[test]
fn a_resumed_run_ends_bit_identical() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str, stop_after: u64, resume: bool| {
        let out = folder.path().join(name);
        std::fs::create_dir_all(&out).expect("a folder");
        let stop = AtomicBool::new(false);
        train(&engine(), &recipe(), &out, resume, &stop, &mut StopAfter(stop_after, &stop))
    };
    let whole = run("whole", u64::MAX, false).expect("runs");
    let stopped = run("parts", 10, false).expect_err("stops");
    assert!(stopped.to_string().contains("stopped after step 10"), "{stopped}");
    assert!(run("parts", u64::MAX, false).is_err(), "a finished or broken run is not overwritten");
    // What a crash leaves behind: steps after the checkpoint, the last one cut.
    let metrics = folder.path().join("parts/metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).expect("written");
    let crash = "{\"step\":11,\"epoch\":2,\"loss\":9.0}\n{\"epoch\":2,\"loss\":9.0}\n{\"step\":12,\"ep";
    std::fs::write(&metrics, text + crash).expect("writes");
    let resumed = run("parts", u64::MAX, true).expect("goes on");
    assert_eq!(whole.test_accuracy, resumed.test_accuracy);
    for file in ["model.onnx", "last.onnx"] {
        let read = |run: &str| std::fs::read(folder.path().join(run).join(file)).expect("written");
        assert!(read("whole") == read("parts"), "{file} differs");
    }
    let lines = |run: &str| {
        let text = std::fs::read_to_string(folder.path().join(run).join("metrics.jsonl")).expect("written");
        text.lines().map(|l| l.split(",\"samples_per_second").next().unwrap_or(l).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lines("whole"), lines("parts"));
    let verdict = verify(&engine(), &folder.path().join("whole/model.onnx"), None, 4, 1e-4).expect("both run it");
    assert!(verdict.agrees, "{verdict:?}");
}

/// How a kernel divides its work depends on shapes alone.
#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = |threads: &str| {
        let out = folder.path().join(threads);
        let mut command = common::bisam();
        command.args(["train", "models/resnet8_28.onnx", "--data", "idx:datasets/fashion-mnist-small", "--steps", "3"]);
        command.args(["--optimizer", "bisam", "--batch-size", "96", "--threads", threads, "-q", "-o"]).arg(&out);
        let done = command.output().expect("starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read(out.join("last.onnx")).expect("written")
    };
    let one = model("1");
    for threads in ["2", "5"] {
        assert!(model(threads) == one, "{threads} threads give another model than one");
    }
}

#[test]
fn exporting_a_file_with_its_own_values_changes_nothing() {
    for name in ["mlp", "lenet", "vit", "vit_dynamo", "bert", "bert_dynamo", "resnet20_eval"] {
        let model = import(repo(&format!("models/{name}.onnx"))).expect("imports");
        let g = &model.graph;
        let values: BTreeMap<_, _> =
            g.params().into_iter().map(|v| (g[v].name.clone(), g.param(v).expect("a parameter").clone())).collect();
        assert!(export(&model, &values).expect("exports") == model.proto, "{name} changed");
    }
}

#[test]
fn fresh_weights_that_are_not_trained_are_exported_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut recipe = Recipe { fresh: true, seed: 5, steps: Some(1), ..recipe() };
    recipe.parameters.freeze.push("conv1*".into());
    let stop = AtomicBool::new(false);
    train(&engine(), &recipe, folder.path(), false, &stop, &mut StopAfter(u64::MAX, &stop)).expect("runs");
    let file = import(&recipe.model).expect("imports");
    let trained = import(folder.path().join("last.onnx")).expect("imports").graph;
    let drawn = fresh(&file.graph, 5);
    let value = |g: &Graph, name: &str| g.find(name).and_then(|v| g.tensor(v)).cloned().expect("a value");
    assert_eq!(value(&trained, "conv1.weight"), drawn["conv1.weight"], "frozen, but not that of the file");
    assert_ne!(value(&trained, "fc.weight"), drawn["fc.weight"], "trained");
}

#[test]
fn a_new_head_that_is_not_trained_is_exported_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut recipe = Recipe { num_classes: Some(12), steps: Some(1), ..recipe() };
    recipe.parameters.freeze.push("fc.*".into());
    let stop = AtomicBool::new(false);
    train(&engine(), &recipe, folder.path(), false, &stop, &mut StopAfter(u64::MAX, &stop)).expect("runs");
    let trained = import(folder.path().join("last.onnx")).expect("imports").graph;
    let mut graph = import(&recipe.model).expect("imports").graph;
    assert!(replace_head(&mut graph, None, 12, recipe.seed).expect("has a head"));
    for name in ["fc.weight", "fc.bias"] {
        let value = |g: &Graph| g.find(name).and_then(|v| g.tensor(v)).cloned().expect("a value");
        assert_eq!(value(&trained), value(&graph), "{name}");
    }
}
