//! Forms a file may have: weights in half precision, a loss of its own.

use crate::common::{engine, repo};
use bisam::Result;
use bisam::adapt::find_logits;
use bisam::builder::Builder;
use bisam::data::write_npz;
use bisam::ir::{DType, Declared, Graph, Source, Tensor, Type};
use bisam::onnx::import;
use bisam::step::{Preset, StepOptions};
use bisam::train::{EpochReport, Metric, Observer, Recipe, StepReport, train};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Loss of the ascent and of the descent.
type Loss = (Option<f32>, f32);

/// Remembers the losses.
#[derive(Default)]
struct Losses(Vec<Loss>);

impl Observer for Losses {
    fn note(&mut self, _: &str) {}
    fn start(&mut self, _: u64, _: u64, _: Metric) {}
    fn step(&mut self, report: &StepReport) {
        self.0.push((report.ascent_loss, report.loss));
    }
    fn epoch(&mut self, _: &EpochReport) {}
}

fn form(name: &str) -> PathBuf {
    repo(&format!("tests/forms/{name}.onnx"))
}

/// Trains `name` for eight steps on the same made-up data; the losses, and the parameters of the exported file.
fn trained(folder: &Path, name: &str, loss: &str, step: StepOptions) -> Result<(Vec<Loss>, BTreeMap<String, Tensor>)> {
    let wave = |n: usize, f: f64| (0..n).map(|i| (i as f64 * f).sin()).collect::<Vec<_>>();
    let labels: Vec<i64> = (0..64).map(|i| i64::from(i % 7 % 3)).collect();
    let arrays = BTreeMap::from([
        ("x".to_owned(), Tensor::from_f64(DType::F32, &[64, 8], &wave(512, 0.37))),
        ("labels".to_owned(), Tensor::new(&[64], &labels)?),
    ]);
    write_npz(&folder.join("data.npz"), &arrays)?;
    let recipe = Recipe {
        model: form(name),
        data: format!("npz:{}", folder.join("data.npz").display()),
        batch_size: 16,
        steps: Some(8),
        valid: 0.25,
        log_every: 1,
        loss: loss.into(),
        step,
        ..Recipe::default()
    };
    let out = folder.join(format!("{name}-{loss}").replace('/', "-"));
    std::fs::create_dir_all(&out).expect("a folder");
    let mut losses = Losses::default();
    train(&engine(), &recipe, &out, false, &AtomicBool::new(false), &mut losses)?;
    let model = import(out.join("last.onnx"))?;
    let stored = model.proto.graph.initializer.iter();
    let stored = stored.map(|t| Ok((t.name.clone(), bisam::onnx::to_tensor(t)?))).collect::<Result<_>>()?;
    Ok((losses.0, stored))
}

/// The parameters agree to `tolerance`, and there are some.
fn close(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>, tolerance: f64) {
    let weights: Vec<&String> = a.keys().filter(|n| n.starts_with('w')).collect();
    assert_eq!(weights.len(), 2);
    for name in weights {
        let largest = a[name].to_f64().iter().zip(b[name].to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(largest < tolerance, "{name} differs by {largest}");
    }
}

#[test]
fn half_precision_is_trained_in_single_and_stored_as_it_was() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str| trained(folder.path(), name, "cross-entropy", Preset::Bisam.options());
    let ((half, stored), (single, reference)) = (run("half")?, run("single")?);
    assert_eq!(half, single, "every step is the same");
    assert!(stored.values().all(|t| t.dtype() == DType::F16));
    close(&stored, &reference, 2e-3);
    Ok(())
}

#[test]
fn artifacts_of_onnx_runtime_training_are_the_model_they_were_made_from() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str| trained(folder.path(), name, "cross-entropy", Preset::Bisam.options());
    let (losses, reference) = run("single")?;
    for name in ["artifacts/training_model", "artifacts/eval_model"] {
        let (again, stored) = run(name)?;
        assert_eq!(losses, again, "{name}");
        close(&stored, &reference, 1e-6);
    }
    let alone = folder.path().join("training_model.onnx");
    std::fs::copy(form("artifacts/training_model"), &alone).expect("copies");
    let e = import(&alone).expect_err("has no parameters");
    assert!(e.to_string().contains("`checkpoint` beside it"), "{e}");
    let whole = std::fs::read(repo("tests/forms/artifacts/checkpoint")).expect("reads");
    for cut in [0, 7, 60, 500, 900] {
        std::fs::write(folder.path().join("checkpoint"), &whole[..cut]).expect("writes");
        assert!(import(&alone).is_err(), "{cut} bytes of the checkpoint are not enough");
    }
    Ok(())
}

#[test]
fn a_loss_of_its_own_trains_as_the_same_loss_from_outside() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    for preset in [Preset::Sgd, Preset::Sam, Preset::Bisam] {
        let step = StepOptions { label_smoothing: 0.0, ..preset.options() };
        let (own, a) = trained(folder.path(), "own_loss", "loss", step.clone())?;
        let (outside, b) = trained(folder.path(), "single", "cross-entropy", step)?;
        for ((up, down), (up2, down2)) in own.iter().zip(&outside) {
            assert!((down - down2).abs() < 1e-5, "{own:?} {outside:?}");
            assert!(up.unwrap_or(0.0) - up2.unwrap_or(0.0) < 1e-5);
        }
        close(&a, &b, 1e-5);
        for name in ["own_loss-loss", "single-cross-entropy"] {
            std::fs::remove_dir_all(folder.path().join(name)).expect("is there");
        }
    }
    let nothing = trained(folder.path(), "own_loss", "logits", Preset::Sgd.options()).expect_err("no scalar");
    assert!(nothing.to_string().contains("a loss is one float"), "{nothing}");
    Ok(())
}

/// A softmax with a reshape to the same shape behind it.
fn old_softmax(graph: &mut Graph, z: bisam::ir::ValueId) -> bisam::ir::ValueId {
    let mut b = Builder::new(graph, "old");
    let soft = b.softmax("Softmax", z, 1);
    let shape = b.ints(&[2, 3]);
    let ty = b.ty(soft);
    b.op("Reshape", &[soft, shape], bisam::ir::Attrs::new(), ty)
}

#[test]
fn a_softmax_written_out_is_seen_through() -> Result<()> {
    let mut graph = Graph::default();
    let declared = Declared { dtype: DType::F32, dims: None };
    let x = graph.add_value("x", Some(Type::new(DType::F32, &[2, 3])), Source::Input(declared));
    graph.inputs.push(x);
    let mut b = Builder::new(&mut graph, "t");
    let z = b.scale(x, 2.0)?;
    let e = b.unary("Exp", z);
    let total = b.sum(e, &[1], false);
    let total = b.reshape(total, &[2, 1]);
    let total = b.expand(total, &[2, 3]);
    let y = b.div(e, total)?;
    let other = b.unary("Exp", x);
    let no_softmax = b.div(other, total)?;
    graph.outputs = vec![y];
    assert_eq!(find_logits(&graph, 2, None)?.value, z);
    // As files of old operator sets have it.
    let soft = old_softmax(&mut graph, z);
    graph.outputs = vec![soft];
    assert_eq!(find_logits(&graph, 2, None)?.value, z);
    graph.outputs = vec![no_softmax];
    assert_eq!(find_logits(&graph, 2, None)?.value, no_softmax);
    Ok(())
}
