//! The graphs of a BiSAM step, kept as text under `graphs/` and reviewed as diffs.

use crate::common::{engine, repo};
use crate::snapshot;
use bisam::ir::Graph;
use bisam::onnx::import;
use bisam::step::flat::{perturb_stage, statistics_stage, update_stage};
use bisam::step::update::Ending;
use bisam::step::{Ends, Kernels, Preset, StepOptions, build, prepare};
use bisam::trace::Sizes;

#[test]
fn stages_are_as_kept() {
    let options = StepOptions { kernels: Kernels::Plain, ..Preset::Bisam.options() };
    for name in ["tiny_bn", "mlp"] {
        let model = import(repo(&format!("models/{name}.onnx"))).expect("imports");
        let prepared = prepare(&model.graph, &Sizes::batch(4), Ends::default(), &engine()).expect("prepares");
        let stages = build(&prepared, &options).expect("builds");
        let len = |shapes: &mut dyn Iterator<Item = &Vec<usize>>| shapes.map(|s| s.iter().product::<usize>()).sum();
        let parameters = len(&mut stages.params.iter().map(|p| &p.shape));
        let statistics = len(&mut stages.stats.iter().map(|s| &s.slot.shape));
        let perturb = perturb_stage(parameters, &options).expect("builds").expect("has a perturbation");
        let update = update_stage(parameters, &options, Ending::Whole).expect("builds");
        let mut all: Vec<(&str, &Graph)> =
            vec![("grad", &stages.grad), ("perturb", &perturb), ("update", &update), ("eval", &stages.eval)];
        let statistics = statistics_stage(statistics).expect("builds");
        all.extend(statistics.as_ref().map(|s| ("statistics", s)));
        for (stage, graph) in all {
            snapshot::check(&format!("graphs/{name}.{stage}.txt"), &graph.to_string());
        }
    }
}
