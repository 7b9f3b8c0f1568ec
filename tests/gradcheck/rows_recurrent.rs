//! Recurrent layers. ONNX Runtime computes them in float32 only.

use super::Domain::{Between, Exactly, Plain};
use super::{Row, check_all, row};
use bisam::ir::{Attr, DType, Tensor};

const STEPS: usize = 4;
const BATCH: usize = 3;
const INPUTS: usize = 2;
const HIDDEN: usize = 3;
const GATES: [(&str, usize); 3] = [("RNN", 1), ("GRU", 3), ("LSTM", 4)];

/// What a row has besides X, W and R; the inputs are B, sequence_lens, initial_h and, for LSTM, initial_c and P.
#[derive(Clone, Copy, Default)]
struct Inputs<'a> {
    bias: bool,
    lens: Option<&'a [i64]>,
    initial: bool,
    peepholes: bool,
}

fn layer((op, gates): (&'static str, usize), note: &str, direction: &str, inputs: Inputs<'_>) -> Row {
    let d = if direction == "bidirectional" { 2 } else { 1 };
    let small = Between(-0.8, 0.8);
    let mut row = row(op, note)
        .x(&[STEPS, BATCH, INPUTS])
        .x_in(&[d, gates * HIDDEN, INPUTS], small.clone())
        .x_in(&[d, gates * HIDDEN, HIDDEN], small.clone())
        .int("hidden_size", HIDDEN as i64)
        .str("direction", direction)
        .single();
    row = if inputs.bias { row.x_in(&[d, 2 * gates * HIDDEN], small.clone()) } else { row.absent() };
    row = match inputs.lens {
        // The lengths are fed as what they are; tracing feeds ones.
        Some(lens) => {
            row.at_run_time(Tensor::from_f64(DType::I32, &[BATCH], &lens.iter().map(|l| *l as f64).collect::<Vec<_>>()))
        }
        None => row.absent(),
    };
    let states = if op == "LSTM" { 2 } else { 1 };
    for _ in 0..states {
        row = if inputs.initial { row.x(&[d, BATCH, HIDDEN]) } else { row.absent() };
    }
    if inputs.peepholes {
        row = row.x_in(&[d, 3 * HIDDEN], Plain);
    }
    row
}

/// Sums of about the inputs' size, so that no gate comes near a kink.
const CUT: [f64; STEPS * BATCH] = [0.3, -2.0, 1.9, -0.2, 0.25, 2.0, -1.8, 0.3, -0.25, 2.1, -0.3, 0.2];
const BENT: [f64; STEPS * BATCH] = [2.0, -1.5, 1.2, -2.0, -1.2, 1.8, 1.4, -1.6, 1.5, -1.3, 2.1, -1.9];

fn far((op, gates): (&'static str, usize), note: &str, x: &'static [f64]) -> Row {
    let small = Between(-0.05, 0.05);
    row(op, note)
        .x_in(&[STEPS, BATCH, 1], Exactly(x))
        .x_in(&[1, gates * HIDDEN, 1], Between(0.9, 1.0))
        .x_in(&[1, gates * HIDDEN, HIDDEN], small.clone())
        .x_in(&[1, 2 * gates * HIDDEN], small)
        .int("hidden_size", HIDDEN as i64)
        .single()
}

fn names(list: &[&str]) -> Attr {
    Attr::Strs(list.iter().map(|n| (*n).to_owned()).collect())
}

pub fn rows() -> Vec<Row> {
    let plain = Inputs::default();
    let bias = Inputs { bias: true, ..plain };
    let all = Inputs { bias: true, lens: Some(&[4, 2, 1]), initial: true, peepholes: false };
    let mut rows = Vec::new();
    for kind in GATES {
        let every: &[bool] = if kind.0 == "LSTM" { &[true, true, true] } else { &[true, true] };
        rows.extend([
            layer(kind, "default", "forward", plain),
            layer(kind, "bias, every output", "forward", bias).outputs(every),
            layer(kind, "last state only", "forward", bias).outputs(&[false, true]),
            layer(kind, "initial state", "reverse", Inputs { initial: true, ..bias }).outputs(every),
            layer(kind, "bidirectional", "bidirectional", bias).outputs(every),
            layer(kind, "lengths", "forward", Inputs { lens: Some(&[3, 4, 0]), ..plain }),
            layer(kind, "lengths, all inputs", "forward", all).outputs(every),
            layer(kind, "lengths, reverse, all inputs", "reverse", all).outputs(every),
            layer(kind, "lengths, bidirectional, all inputs", "bidirectional", all).outputs(every),
            far(kind, "clip", &CUT).float("clip", 1.1),
        ]);
    }
    let [rnn, gru, lstm] = GATES;
    let empty = Inputs { lens: Some(&[3, 4, 0]), initial: true, ..bias };
    rows.push(layer(gru, "an empty sequence", "reverse", empty).outputs(&[true, true]));
    rows.push(layer(lstm, "an empty sequence", "bidirectional", empty).outputs(&[true, true, true]));
    // Every activation once, with and without its parameters.
    for (name, alpha, beta) in [
        ("Relu", None, None),
        ("Sigmoid", None, None),
        ("Softsign", None, None),
        ("Softplus", None, None),
        ("Affine", Some(0.5), Some(0.1)),
        ("ScaledTanh", Some(1.5), Some(0.5)),
        ("HardSigmoid", Some(0.15), Some(0.4)),
        ("LeakyRelu", Some(0.3), None),
        ("ThresholdedRelu", Some(0.05), None),
        ("Elu", Some(0.7), None),
    ] {
        let with = |mut row: Row, times: usize, all: Attr| {
            row = row.attr("activations", all);
            for (attr, value) in [("activation_alpha", alpha), ("activation_beta", beta)] {
                if let Some(value) = value {
                    row = row.attr(attr, Attr::Floats(vec![value; times]));
                }
            }
            row
        };
        rows.push(with(far(rnn, name, &BENT), 1, names(&[name])));
        rows.push(with(far(gru, name, &BENT), 1, names(&["Sigmoid", name])));
        rows.push(with(far(lstm, name, &BENT), 2, names(&["Sigmoid", name, name])));
    }
    let hard = ["HardSigmoid", "Elu"];
    rows.extend([
        layer(rnn, "two functions", "bidirectional", bias)
            .attr("activations", names(&["Sigmoid", "ScaledTanh"]))
            .attr("activation_alpha", Attr::Floats(vec![1.2]))
            .attr("activation_beta", Attr::Floats(vec![0.6])),
        layer(gru, "two functions", "bidirectional", bias)
            .attr("activations", names(&["Sigmoid", "ScaledTanh", "HardSigmoid", "Tanh"]))
            .attr("activation_alpha", Attr::Floats(vec![1.2, 0.15]))
            .attr("activation_beta", Attr::Floats(vec![0.6, 0.4])),
        layer(gru, "parameters by default", "forward", plain).attr("activations", names(&hard)).tolerance(1e-7, 1e-2),
        layer(gru, "linear before reset", "forward", plain).int("linear_before_reset", 1),
        layer(gru, "linear before reset, bidirectional", "bidirectional", bias).int("linear_before_reset", 1),
        layer(gru, "linear before reset, all inputs", "reverse", all)
            .int("linear_before_reset", 1)
            .outputs(&[true, true]),
        layer(lstm, "last cell only", "forward", bias).outputs(&[false, false, true]),
        layer(lstm, "peepholes", "forward", Inputs { peepholes: true, ..plain }).outputs(&[true, true, true]),
        layer(lstm, "peepholes, all inputs", "bidirectional", Inputs { peepholes: true, ..all }),
        layer(lstm, "peepholes, input_forget", "reverse", Inputs { peepholes: true, ..bias }).int("input_forget", 1),
        layer(lstm, "input_forget", "forward", bias).int("input_forget", 1),
        layer(lstm, "one function", "forward", bias).attr("activations", names(&["Tanh", "Tanh", "Sigmoid"])),
        layer(lstm, "one function, input_forget", "forward", bias)
            .attr("activations", names(&["Sigmoid", "Sigmoid", "Tanh"]))
            .int("input_forget", 1),
    ]);
    rows
}

#[test]
fn recurrent() {
    check_all(&rows());
}
