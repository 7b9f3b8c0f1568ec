//! Freshly constructed networks, whose untouched tensors exporters merge, train as PyTorch trains them (`make.py` beside this file made the
//! models and PyTorch's results), and what is trained is said.

use crate::common::{self, engine, npz, repo};
use bisam::ir::Tensor;
use bisam::onnx::{import, to_tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// What a command printed to stderr; it must succeed, or fail, as `succeeds` says.
fn bisam(arguments: &[&str], succeeds: bool) -> String {
    let done = common::bisam().args(arguments).output().expect("starts");
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(i32::from(!succeeds)), "{arguments:?}: {text}");
    text
}

/// Two plain steps of SGD on the data beside a model; the folder of the run.
fn train(name: &str, out: &Path, more: &[&str], succeeds: bool) -> String {
    let (model, data) = (format!("tests/fresh/{name}.onnx"), format!("npz:tests/fresh/{name}.npz"));
    let out = out.display().to_string();
    let plain = "--optimizer sgd --momentum 0 --weight-decay 0 --schedule constant --label-smoothing 0 --shuffle false --valid 0 --lr 0.1 --steps 2 --batch-size 16";
    let plain: Vec<&str> = plain.split(' ').collect();
    let plain = plain.chunks(2).filter(|pair| !more.contains(&pair[0])).flatten().copied();
    let first = ["train", model.as_str(), "--data", data.as_str(), "-o", out.as_str()];
    bisam(&first.into_iter().chain(plain).chain(more.iter().copied()).collect::<Vec<_>>(), succeeds)
}

/// The data of a model, or what PyTorch made of it.
fn recorded(name: &str, what: &str) -> BTreeMap<String, Tensor> {
    npz(&repo(&format!("tests/fresh/{name}{what}.npz")))
}

fn stored(path: &Path) -> BTreeMap<String, Tensor> {
    let proto = import(path).expect("imports").proto;
    let mut found = BTreeMap::new();
    for i in &proto.graph.initializer {
        found.insert(i.name.clone(), to_tensor(i).expect("a tensor"));
    }
    found
}

/// The logits that ONNX Runtime computes of `x`.
fn logits(path: &Path, x: &Tensor) -> Vec<f64> {
    let bytes = std::fs::read(path).expect("written");
    let mut session = engine().compile_model(&bytes).expect("runs");
    session.run(&[("x", x)]).expect("runs")[0].to_f64()
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn fresh_networks_train_as_pytorch_trains_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut names: Vec<String> = std::fs::read_dir(repo("tests/fresh"))
        .expect("lists")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx") && !p.ends_with("masks_train.onnx"))
        .filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 20, "{names:?}");
    let mut wrong = Vec::new();
    for name in &names {
        let out = folder.path().join(name);
        train(name, &out, &[], true);
        let (data, want) = (recorded(name, ""), recorded(name, ".after"));
        let file = out.join("last.onnx");
        let (before, after) = (want["before"].to_f64(), want["out"].to_f64());
        let moved = furthest(&before, &after);
        let off = furthest(&logits(&file, &data["x"]), &after);
        if off > 1e-4 * moved {
            wrong.push(format!("{name}: the logits are off by {off:e}, they moved by {moved:e}"));
        }
        let (old, new) = (stored(&repo(&format!("tests/fresh/{name}.onnx"))), stored(&file));
        for (key, tensor) in &new {
            let Some(after) = want.get(&format!("after/{key}")).filter(|t| t.shape() == tensor.shape()) else {
                continue;
            };
            let moved = old.get(key).map_or(1.0, |o| furthest(&o.to_f64(), &after.to_f64()));
            let off = furthest(&tensor.to_f64(), &after.to_f64());
            if off > 1e-4 * moved + 2e-7 {
                wrong.push(format!("{name}: {key} is off by {off:e}, it moved by {moved:e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn random_masks_follow_the_seed_and_are_out_of_exported_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        train("masks_train", &out, &[&["--optimizer", "sam"], more].concat(), true);
        std::fs::read(out.join("last.onnx")).expect("written")
    };
    let (a, b, c) = (run("a", &["--seed", "1"]), run("b", &["--seed", "1"]), run("c", &["--seed", "2"]));
    assert!(a == b, "two runs with one seed differ");
    assert!(a != c, "the seed changes nothing");
    assert!(a == run("plain", &["--seed", "1", "--kernels", "plain"]), "the plain operators draw other numbers");
    let file = folder.path().join("a/last.onnx");
    let ops: Vec<String> = import(&file).expect("imports").proto.graph.node.iter().map(|n| n.op_type.clone()).collect();
    assert!(!ops.iter().any(|op| op.starts_with("Random") || op == "Bernoulli"), "{ops:?}");
    let x = &recorded("masks_train", "")["x"];
    assert_eq!(logits(&file, x), logits(&file, x));
    // The weights of the file itself give what PyTorch gives in evaluation mode.
    let out = folder.path().join("still");
    train("masks_train", &out, &["--lr", "1e-30"], true);
    let before = recorded("masks_train", ".after")["before"].to_f64();
    assert!(furthest(&logits(&out.join("last.onnx"), x), &before) < 1e-5);
    let grad = folder.path().join("g.npz").display().to_string();
    let inputs = ["grad", "tests/fresh/masks_train.onnx", "--inputs", "tests/fresh/masks_train.npz"];
    bisam(&[&inputs[..], &["--mode", "eval", "-o", &grad]].concat(), true);
    assert!(furthest(&npz(Path::new(&grad))["logits"].to_f64(), &before) < 1e-5, "masks are on in evaluation mode");
}

#[test]
fn what_is_trained_is_said_and_can_be_overruled() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = |name: &str| folder.path().join(name);
    let text = train("placeholders_train", &out("a"), &[], true);
    assert!(text.contains("trained 115 of 143 parameters in 8 tensors"), "{text}");
    assert!(text.contains("table"), "{text}");
    let text = train("placeholders_train", &out("b"), &["--as-parameter", "table", "--as-constant", "first.*"], true);
    assert!(text.contains("--as-parameter table matches 1 tensor of 8 elements"), "{text}");
    let (old, new) = (stored(&repo("tests/fresh/placeholders_train.onnx")), stored(&out("b").join("last.onnx")));
    assert!(old["table"] != new["table"] && old["first.weight"] == new["first.weight"]);
    let text = train("placeholders_train", &out("c"), &["--freeze", "nobody.*"], false);
    assert!(text.contains("matches no parameter") && text.contains("hint"), "{text}");
    let inspected = bisam(&["inspect", "tests/fresh/placeholders_train.onnx"], true);
    assert!(inspected.contains("trained 115 of 143 parameters"), "{inspected}");
}

#[test]
fn frozen_normalizations_keep_their_statistics() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = stored(&repo("tests/fresh/fixed_train.onnx"));
    let run = |name: &str, more: &[&str]| {
        train("fixed_train", &folder.path().join(name), more, true);
        stored(&folder.path().join(name).join("last.onnx"))
    };
    let plain = run("plain", &[]);
    assert_eq!(old["norm1.running_mean"], plain["norm1.running_mean"], "fixed by the file");
    assert_ne!(old["norm2.running_mean"], plain["norm2.running_mean"]);
    let frozen = run("frozen", &["--freeze", "norm2.*"]);
    for part in ["weight", "bias", "running_mean", "running_var"] {
        assert_eq!(old[&format!("norm2.{part}")], frozen[&format!("norm2.{part}")], "{part}");
    }
    let only = run("only", &["--train-only", "last.*"]);
    for (name, tensor) in &old {
        assert_eq!(tensor == &only[name], !name.starts_with("last."), "{name}");
    }
}

#[test]
fn a_batch_without_variance_is_refused_or_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = train("merged_train", &folder.path().join("one"), &["--batch-size", "1"], false);
    assert!(text.contains("one value per channel") && text.contains("/norm/BatchNormalization"), "{text}");
    let text =
        train("merged_train", &folder.path().join("rest"), &["--batch-size", "31", "--drop-last", "false"], true);
    assert!(text.contains("single sample"), "{text}");
}
