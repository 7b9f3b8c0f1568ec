//! Normalizations.

use super::Domain::Between;
use super::{Compiled, Row, build, check_all, feed, row};
use bisam::Result;
use bisam::autodiff::{differentiate, lower_batch_norm};
use bisam::ir::{DType, Graph, Source, Tensor};

const VARIANCE: super::Domain = Between(0.5, 2.0);

pub fn rows() -> Vec<Row> {
    let batch = |note, shape: &[usize]| {
        row("BatchNormalization", note)
            .x(shape)
            .x(&[shape[1]])
            .x(&[shape[1]])
            .x(&[shape[1]])
            .x_in(&[shape[1]], VARIANCE)
    };
    let training = |note, shape: &[usize]| {
        let c = shape[1];
        let row = row("BatchNormalization", note).x(shape).x(&[c]).x(&[c]).floats(&[c], &vec![0.0; c]);
        row.floats(&[c], &vec![1.0; c]).int("training_mode", 1).float("momentum", 0.0).outputs(&[true, false, false])
    };
    // In float64 ONNX Runtime computes it in float32 all the same, by its stash_type.
    let group = |note, shape: &[usize], groups| {
        let gain = [shape[1]];
        row("GroupNormalization", note).x(shape).x(&gain).x(&gain).int("num_groups", groups).opset(21).single()
    };
    vec![
        batch("evaluation, 4-D", &[2, 3, 2, 3]),
        batch("evaluation, 2-D", &[4, 3]),
        batch("evaluation, 3-D, epsilon", &[2, 3, 4]).float("epsilon", 0.1).float("momentum", 0.5),
        training("training, 4-D", &[3, 2, 2, 3]),
        training("training, 2-D", &[5, 3]),
        training("training, 3-D, epsilon", &[3, 2, 4]).float("epsilon", 0.1),
        training("training, another momentum", &[3, 2, 2, 2]).float("momentum", 0.9),
        training("training, gradients through the statistics", &[3, 2, 2, 2])
            .float("momentum", 0.8)
            .outputs(&[true, true, true]),
        row("LayerNormalization", "gradients through the statistics")
            .x(&[2, 3, 4])
            .x(&[4])
            .x(&[4])
            .outputs(&[true, true, true])
            .single(),
        row("LayerNormalization", "gradient through the mean alone")
            .x(&[2, 4])
            .x(&[4])
            .outputs(&[false, true])
            .single(),
        row("LayerNormalization", "last axis").x(&[2, 3, 4]).x(&[4]).x(&[4]),
        row("LayerNormalization", "without bias").x(&[2, 3, 4]).x(&[4]).float("epsilon", 0.01),
        row("LayerNormalization", "axis 1").x(&[2, 3, 4]).x(&[3, 4]).x(&[3, 4]).int("axis", 1),
        row("LayerNormalization", "axis -2, gain broadcast").x(&[2, 3, 4]).x(&[4]).x(&[3, 1]).int("axis", -2),
        row("LayerNormalization", "statistics asked for")
            .x(&[2, 4])
            .x(&[4])
            .x(&[4])
            .int("stash_type", 1)
            .outputs(&[true, false, false]),
        row("RMSNormalization", "last axis").x(&[2, 3, 4]).x(&[4]).opset(23),
        row("RMSNormalization", "axis 1, epsilon")
            .x(&[2, 3, 4])
            .x(&[3, 4])
            .int("axis", 1)
            .float("epsilon", 0.1)
            .opset(23),
        row("InstanceNormalization", "4-D").x(&[2, 3, 2, 3]).x(&[3]).x(&[3]),
        row("InstanceNormalization", "3-D, epsilon").x(&[2, 3, 4]).x(&[3]).x(&[3]).float("epsilon", 0.1),
        group("per channel", &[2, 4, 3, 2], 2),
        group("one group", &[2, 4, 3], 1),
        row("GroupNormalization", "per group").x(&[2, 4, 3, 2]).x(&[2]).x(&[2]).int("num_groups", 2).opset(18),
        row("LRN", "wider than the channels").x(&[2, 3, 2, 2]).int("size", 7).float("alpha", 0.5).float("bias", 2.0),
        row("LRN", "odd size").x(&[1, 6, 2, 2]).int("size", 3).float("alpha", 2.0).float("beta", 0.5),
        row("LpNormalization", "L2").x(&[3, 4]),
        row("LpNormalization", "L1, axis 0").x(&[3, 4]).int("axis", 0).int("p", 1),
        row("MeanVarianceNormalization", "default axes").x(&[2, 3, 2, 2]),
        row("MeanVarianceNormalization", "axes").x(&[2, 3, 4]).list("axes", &[1, -1]),
    ]
}

#[test]
fn normalizations() {
    check_all(&rows());
}

/// Lowered, a batch normalization gives the same three outputs, under the same names.
#[test]
fn lowered_batch_norm_computes_the_same() -> Result<()> {
    for row in rows().iter().filter(|r| r.name().contains("training")) {
        let case = build(row, DType::F32)?;
        let mut lowered = case.graph.clone();
        lower_batch_norm(&mut lowered)?;
        assert!(lowered.nodes.len() > 4 && lowered.outputs == case.graph.outputs);
        let run = |graph| Compiled::new(graph)?.run(&feed(&case.graph, &case.fed));
        for (before, after) in run(&case.graph)?.iter().zip(run(&lowered)?) {
            assert_eq!(before.shape(), after.shape());
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-5;
            assert!(before.to_f64().iter().zip(&after.to_f64()).all(close), "{}", row.name());
        }
    }
    Ok(())
}

/// The gradient reads the X − μ that lowering computes; it has none of its own.
#[test]
fn lowered_batch_norm_shares_the_centred_input() -> Result<()> {
    let rows = rows();
    let row = rows.iter().find(|r| r.name() == "BatchNormalization (training, 4-D)").expect("is there");
    let mut graph = build(row, DType::F32)?.graph;
    let (x, y) = (graph.inputs[0], graph.outputs[0]);
    let ty = graph.ty(y)?.clone();
    let seed = graph.add_value("seed", None, Source::Constant(Tensor::full(ty.dtype, &ty.shape, 1.0)));
    let dx = differentiate(&mut graph, &[(y, seed)], &[x])?;
    graph.outputs = vec![y, dx[0].expect("has a path")];
    let count = |g: &Graph| g.nodes.iter().filter(|n| n.is("Sub")).count();
    assert_eq!(count(&graph), 1);
    lower_batch_norm(&mut graph)?;
    assert_eq!(count(&graph), 1);
    graph.check_typed()
}
