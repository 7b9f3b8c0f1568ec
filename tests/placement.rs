//! Every stage of a step runs on a CUDA device as a whole, by the provider's own list of kernels.

use crate::common::{prepared, repo};
use bisam::ir::Graph;
use bisam::step::flat::{accumulate_stage, perturb_stage, start_stage, statistics_stage, update_stage};
use bisam::step::placement::{for_cuda, off_cuda};
use bisam::step::update::Ending;
use bisam::step::{Kernels, Preset, StepOptions, build};

/// Nodes that would leave the device, as text.
fn left(stage: &str, graph: &Graph) -> Vec<String> {
    off_cuda(&for_cuda(graph))
        .into_iter()
        .map(|f| format!("{stage}: {} `{}`: {}", f.operator, f.node, f.reason))
        .collect()
}

#[test]
fn no_node_of_a_models_step_leaves_the_device() {
    let mut seen = 0;
    for entry in std::fs::read_dir(repo("models")).expect("is there") {
        let path = entry.expect("is read").path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let prepared = prepared(&path, 4);
        for kernels in [Kernels::Fused, Kernels::Plain] {
            let options = StepOptions { kernels, ..Preset::Bisam.options() };
            let stages = build(&prepared, &options).expect("builds");
            let found = [left("grad", &stages.grad), left("eval", &stages.eval)].concat();
            assert!(found.is_empty(), "{} {kernels:?}: {found:#?}", path.display());
        }
        seen += 1;
    }
    assert!(seen > 10);
}

#[test]
fn no_node_of_any_methods_step_leaves_the_device() {
    let prepared = prepared(&repo("models/tiny_bn.onnx"), 8);
    for (preset, _) in Preset::ALL {
        let mut options = preset.options();
        options.micro_batch = options.micro_batch.map(|m| m.min(4));
        options.top_k = options.top_k.map(|k| k.min(4));
        options.data_size = 100;
        let stages = build(&prepared, &options).expect("builds");
        let mut found = [left("grad", &stages.grad), left("eval", &stages.eval)].concat();
        stages.score.iter().for_each(|g| found.extend(left("score", g)));
        stages.subsets.iter().for_each(|s| found.extend(left("subset", &s.grad)));
        let flat = [
            ("start", start_stage(64, &options)),
            ("perturb", perturb_stage(64, &options)),
            ("accumulate", accumulate_stage(64, &options)),
            ("statistics", statistics_stage(64)),
            ("update", update_stage(64, &options, Ending::Whole).map(Some)),
        ];
        for (name, graph) in flat {
            graph.expect("builds").iter().for_each(|g| found.extend(left(name, g)));
        }
        assert!(found.is_empty(), "{preset:?}: {found:#?}");
    }
}
