//! Attention and rotary embeddings of opset 23 and 24, for which ONNX Runtime has kernels in float32 alone.

use super::{Row, check_all, row};
use bisam::ir::{DType, Tensor};

pub fn bools(shape: &[usize], values: &[u8]) -> Tensor {
    Tensor::from_f64(DType::Bool, shape, &values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
}

fn flat(note: &str) -> Row {
    row("Attention", note)
        .opset(23)
        .x(&[2, 3, 8])
        .x(&[2, 4, 8])
        .x(&[2, 4, 6])
        .int("q_num_heads", 2)
        .int("kv_num_heads", 2)
        .single()
}

fn headed(note: &str) -> Row {
    row("Attention", note).opset(23).x(&[2, 4, 3, 2]).x(&[2, 2, 3, 2]).x(&[2, 2, 3, 3]).single()
}

fn rotary(note: &str) -> Row {
    row("RotaryEmbedding", note).opset(23).single()
}

pub fn rows() -> Vec<Row> {
    let some = bools(&[3, 4], &[1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]);
    let by_head = bools(&[2, 1, 3, 4], &[1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1]);
    let mut rows = vec![
        flat("3-D"),
        flat("scale").float("scale", 0.7),
        flat("causal").int("is_causal", 1),
        flat("float mask").x(&[3, 4]),
        flat("float mask for each head, causal").x(&[2, 2, 3, 4]).int("is_causal", 1),
        flat("boolean mask").at_run_time(some.clone()),
        flat("boolean mask for each sample, causal").at_run_time(by_head).int("is_causal", 1),
        flat("constant mask").constant(some),
        flat("a query that looks at nothing")
            .at_run_time(bools(&[3, 4], &[1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]))
            .int("is_causal", 1),
        flat("softcap, float mask").x(&[3, 4]).float("softcap", 1.5),
        flat("softmax_precision").int("softmax_precision", 1),
        headed("4-D, shared keys"),
        headed("4-D, shared keys, causal, softcap").int("is_causal", 1).float("softcap", 2.0),
    ];
    let past = |note: &str| {
        flat(note).x(&[3, 6]).x(&[2, 2, 2, 4]).x(&[2, 2, 2, 3]).outputs(&[true, true, true]).int("is_causal", 1)
    };
    rows.push(past("past"));
    for mode in 0..4 {
        let row = flat(&format!("output mode {mode}")).x(&[3, 4]).absent().absent().int("qk_matmul_output_mode", mode);
        rows.push(row.float("softcap", 2.0).outputs(&[true, false, false, true]));
    }
    rows.extend([
        rotary("4-D, positions").x(&[2, 2, 3, 4]).x(&[5, 2]).x(&[5, 2]).at_run_time(positions()),
        rotary("4-D, interleaved").x(&[2, 2, 3, 4]).x(&[2, 3, 2]).x(&[2, 3, 2]).int("interleaved", 1),
        rotary("3-D").x(&[2, 3, 8]).x(&[2, 3, 2]).x(&[2, 3, 2]).int("num_heads", 2),
        rotary("3-D, interleaved, positions")
            .x(&[2, 3, 8])
            .x(&[5, 2])
            .x(&[5, 2])
            .at_run_time(positions())
            .int("num_heads", 2)
            .int("interleaved", 1),
        rotary("in part").x(&[2, 2, 3, 6]).x(&[2, 3, 2]).x(&[2, 3, 2]).int("rotary_embedding_dim", 4),
        rotary("in part, interleaved")
            .x(&[2, 3, 12])
            .x(&[5, 2])
            .x(&[5, 2])
            .at_run_time(positions())
            .int("num_heads", 2)
            .int("rotary_embedding_dim", 4)
            .int("interleaved", 1),
    ]);
    let windowed = |note: &str| flat(note).opset(25);
    rows.extend([
        windowed("window before").int("left_window_size", 1),
        windowed("window after").int("right_window_size", 1),
        windowed("window around").int("left_window_size", 1).int("right_window_size", 1),
        windowed("window before, causal").int("left_window_size", 1).int("is_causal", 1),
        windowed("window after, past")
            .absent()
            .x(&[2, 2, 2, 4])
            .x(&[2, 2, 2, 3])
            .int("left_window_size", 2)
            .int("right_window_size", 1),
    ]);
    rows.extend(with_state());
    rows
}

/// Linear attention, causal convolutions and caches, which carry a state.
fn with_state() -> Vec<Row> {
    let linear = |rule: &str, note: &str| {
        let row = row("LinearAttention", &format!("{rule}{note}")).opset(27).single();
        row.int("q_num_heads", 4).int("kv_num_heads", 2).str("update_rule", rule)
    };
    let inputs = |row: Row| row.x(&[2, 3, 8]).x(&[2, 3, 4]).x(&[2, 3, 6]);
    let both = [true, true];
    let convolution = |note: &str| row("CausalConvWithState", note).opset(27).single();
    let scatter = |note: &str| row("TensorScatter", note).opset(24);
    vec![
        inputs(linear("linear", "")).outputs(&both),
        inputs(linear("linear", ", past, scale")).x(&[2, 2, 2, 3]).float("scale", 0.7).outputs(&both),
        inputs(linear("gated", "")).absent().x(&[2, 3, 4]).outputs(&both),
        inputs(linear("gated", ", one decay for a head, past")).x(&[2, 2, 2, 3]).x(&[2, 3, 2]).outputs(&both),
        inputs(linear("delta", "")).absent().absent().x(&[2, 3, 2]).outputs(&both),
        inputs(linear("delta", ", one rate, past")).x(&[2, 2, 2, 3]).absent().x(&[2, 3, 1]).outputs(&both),
        inputs(linear("gated_delta", ", past")).x(&[2, 2, 2, 3]).x(&[2, 3, 4]).x(&[2, 3, 2]).outputs(&both),
        convolution("plain").x(&[2, 3, 5]).x(&[3, 1, 3]).outputs(&both),
        convolution("bias, past").x(&[2, 3, 2]).x(&[3, 1, 4]).x(&[3]).x(&[2, 3, 3]).outputs(&both),
        convolution("silu, past")
            .x(&[2, 3, 4])
            .x(&[3, 1, 2])
            .absent()
            .x(&[2, 3, 1])
            .str("activation", "silu")
            .outputs(&both),
        scatter("from the start").x(&[2, 3, 5, 2]).x(&[2, 3, 2, 2]),
        scatter("places").x(&[2, 5, 2]).x(&[2, 2, 2]).at_run_time(Tensor::ints(&[3, 1])),
        scatter("circular, axis")
            .x(&[2, 3, 5])
            .x(&[2, 3, 2])
            .at_run_time(Tensor::ints(&[4, 6]))
            .int("axis", -1)
            .str("mode", "circular"),
    ]
}

/// Positions of two sequences of three in a cache of five.
pub fn positions() -> Tensor {
    Tensor::new(&[2, 3], &[0i64, 1, 2, 4, 2, 0]).expect("fits")
}

#[test]
fn attention() {
    check_all(&rows());
}
