//! What several tests share.

use bisam::engine::{Device, Engine};
use bisam::ir::Tensor;
use bisam::onnx::import;
use bisam::step::{Ends, Prepared, prepare};
use bisam::trace::Sizes;
use bisam::train::{EpochReport, Metric, Observer, StepReport};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// The engine every test shares.
pub fn engine() -> Engine {
    Engine::new(None, None, Device::Cpu).expect("run `make setup` first")
}

/// A file of the repository.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The program in the root of the repository, with the library that `make setup` fetched wherever it is run and built.
pub fn bisam() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bisam"));
    command.current_dir(repo(""));
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        command.env("ORT_DYLIB_PATH", repo(".onnxruntime/lib"));
    }
    command
}

/// A model with its shapes, ready for stages.
pub fn prepared(path: &Path, batch: usize) -> Prepared {
    let model = import(path).expect("imports");
    prepare(&model.graph, &Sizes::batch(batch), Ends::default(), &engine()).expect("prepares")
}

/// Every array of an npz file.
pub fn npz(path: &Path) -> BTreeMap<String, Tensor> {
    bisam::data::read_npz(path).expect("a readable npz file")
}

/// ‖a − b‖ / max(‖b‖, floor).
pub fn relative(a: &[f32], b: &[f32], floor: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(x, y)| f64::from(*x) - f64::from(*y)));
    difference / norm(&mut b.iter().map(|y| f64::from(*y))).max(floor)
}

/// Asks the run to stop after a step.
pub struct StopAfter<'a>(pub u64, pub &'a AtomicBool);

impl Observer for StopAfter<'_> {
    fn note(&mut self, _: &str) {}
    fn start(&mut self, _: u64, _: u64, _: Metric) {}
    fn step(&mut self, report: &StepReport) {
        if report.step == self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
    fn epoch(&mut self, _: &EpochReport) {}
}
