//! Experiments: sets of runs that are interrupted, resumed, skipped and tabulated; and sharpness around their models.

use crate::common::{engine, repo};
use bisam::adapt::Mode;
use bisam::sharpness::{Direction, Probe, figures, sharpness};
use bisam::train::{EpochReport, Experiment, Metric, Observer, Recipe, StepReport};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Counts steps, keeps notes, and asks to stop after some steps.
struct Watch<'a> {
    steps: u64,
    stop_after: u64,
    stop: &'a AtomicBool,
    notes: Vec<String>,
}

impl Observer for Watch<'_> {
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
    fn start(&mut self, _: u64, _: u64, _: Metric) {}
    fn step(&mut self, _: &StepReport) {
        self.steps += 1;
        if self.steps == self.stop_after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn epoch(&mut self, _: &EpochReport) {}
}

fn text() -> String {
    format!(
        "title = 'Small'\nmodel = '{}'\ndata = 'idx:{}'\nfresh = true\ntrain-samples = 640\nepochs = 2\nbatch-size = 64\n\
         keep-every = 1\n[[columns]]\nname = 'SGD'\noptimizer = 'sgd'\n[[columns]]\nname = 'BiSAM'\noptimizer = 'bisam'\n",
        repo("models/resnet8_28.onnx").display(),
        repo("datasets/fashion-mnist-small").display()
    )
}

fn run(file: &Path, out: &Path, stop_after: u64) -> (bisam::Result<bisam::train::Results>, u64, Vec<String>) {
    let stop = AtomicBool::new(false);
    let mut watch = Watch { steps: 0, stop_after, stop: &stop, notes: Vec::new() };
    let results = Experiment::load(file).expect("loads").run(&engine(), 2, out, &stop, &mut watch);
    (results, watch.steps, watch.notes)
}

#[test]
fn an_interrupted_experiment_goes_on_and_finished_runs_are_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, out) = (folder.path().join("small.toml"), folder.path().join("runs"));
    std::fs::write(&file, text()).expect("written");
    // Nine batches an epoch, two epochs, two methods, two seeds.
    let (stopped, steps, _) = run(&file, &out, 25);
    let e = stopped.expect_err("stops");
    assert!(e.to_string().contains("stopped in") && e.hint_text().is_some_and(|h| h.contains("same command")), "{e}");
    assert_eq!(steps, 25);
    let (results, steps, notes) = run(&file, &out, u64::MAX);
    let results = results.expect("goes on");
    assert_eq!(steps, 4 * 18 - 25);
    assert!(notes.iter().any(|n| n == "run 2 of 4: BiSAM, seed 0"), "{notes:?}");
    let text = results.markdown();
    assert!(text.contains("|  | SGD | BiSAM |") && text.contains(" ± ") && !text.contains("(n = "), "{text}");
    assert_eq!(std::fs::read_to_string(out.join("table.md")).expect("written"), text + "\n");
    for cell in &results.cells {
        assert_eq!(cell.values.len(), 2);
        assert_ne!(cell.values[0], cell.values[1], "seeds start from weights of their own");
        for run in &cell.runs {
            assert!(run.join("epochs/0002.onnx").exists() && !run.join("checkpoint").exists());
        }
    }
    let (again, steps, _) = run(&file, &out, u64::MAX);
    assert_eq!((again.expect("has nothing to do"), steps), (results, 0));

    std::fs::write(&file, text_with("lr = 0.05")).expect("written");
    let e = run(&file, &out, u64::MAX).0.expect_err("other settings");
    assert!(e.to_string().contains("another `lr`"), "{e}");
    look_around(&out);
}

fn text_with(setting: &str) -> String {
    format!("{setting}\n{}", text())
}

/// Perturbations of growing norm raise the loss, SAM's more than random ones, and ρ = 0 changes nothing.
fn look_around(out: &Path) {
    let model = out.join("sgd/seed-0/epochs/0002.onnx");
    let recipe = Recipe { batch_size: 64, ..Recipe::load(&out.join("sgd/seed-0/recipe.toml")).expect("a recipe") };
    for mode in [Mode::Eval, Mode::Train] {
        let probe = Probe { split: "train".into(), samples: 300, rhos: vec![0.0, 0.05, 0.2], mode, plane: 3, seed: 1 };
        let found = sharpness(&engine(), &model, &recipe, &probe, &mut |_| {}).expect("measures");
        assert_eq!(found.samples, 256, "whole batches");
        for direction in Direction::ALL {
            let points: Vec<_> = found.points.iter().filter(|p| p.direction == direction).collect();
            assert_eq!(points.len(), 3, "{direction:?}");
            assert!((points[0].loss - found.loss).abs() < 1e-6 && points[0].flipped == 0, "{direction:?} {points:?}");
            let kept = found.samples as f64 * (1.0 - points[2].error);
            assert!(points[2].flipped as f64 + kept >= found.correct as f64 - 1e-9, "{points:?}");
        }
        let loss = |d: Direction, i: usize| {
            found.points.iter().filter(|p| p.direction == d).map(|p| p.loss).nth(i).expect("a point")
        };
        assert!(loss(Direction::Sam, 2) > loss(Direction::Sam, 1) && loss(Direction::Sam, 1) > found.loss);
        assert!(loss(Direction::Sam, 2) > loss(Direction::Random, 2));
        let plane = found.plane.as_ref().expect("a plane");
        assert_eq!(plane.steps, [-1.0, 0.0, 1.0]);
        assert!((plane.loss[1][1] - found.loss).abs() < 1e-6, "its middle are the weights");
        let names: Vec<String> = figures(&[found]).into_iter().map(|f| f.0).collect();
        assert_eq!(names, ["loss", "error", "flips", "plane-loss", "plane-error"]);
    }
}

#[test]
fn every_recipe_of_the_project_is_valid() {
    let mut files = 0;
    for entry in std::fs::read_dir(repo("recipes")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "toml") {
            Experiment::load(&path).unwrap_or_else(|e| panic!("{e}"));
            files += 1;
        }
    }
    assert!(files >= 13, "{files} recipes");
}
