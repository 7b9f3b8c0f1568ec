//! Operators of domain com.microsoft. Most of ONNX Runtime's kernels compute in float32 alone.

use super::Domain::{Between, Exactly};
use super::rows_attention::positions;
use super::{Row, check_all, refused, row};
use bisam::ir::{Attr, DType, Tensor};

fn ms(op: &'static str, note: &str) -> Row {
    row(op, note).of_domain("com.microsoft")
}

fn i32s(shape: &[usize], values: &[i32]) -> Tensor {
    Tensor::new(shape, values).expect("fits")
}

/// Numbers of about 2, so that products with weights of about 1 stay away from 0.
const LARGE: [f64; 6] = [2.0, -1.8, 1.9, -2.1, 2.2, -2.0];

fn activations() -> Vec<Row> {
    let parameters = |row: Row, list: &[f32]| match list {
        [] => row,
        list => row.attr("activation_params", Attr::Floats(list.to_vec())),
    };
    let mut rows = vec![
        ms("Gelu", "").x(&[2, 3]),
        ms("BiasGelu", "").x(&[2, 3, 4]).x(&[4]),
        // In float64 the runtime has rounded constants.
        ms("FastGelu", "").x(&[2, 3]).single(),
        ms("FastGelu", "bias").x(&[2, 3, 4]).x(&[4]).single(),
        ms("QuickGelu", "").x(&[2, 3]),
        ms("QuickGelu", "alpha").x(&[2, 3]).float("alpha", 0.8),
    ];
    // One row of X is far from every kink.
    for function in ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "Softplus", "Softsign"]
        .into_iter()
        .chain(["ThresholdedRelu", "Selu", "Celu", "ScaledTanh", "ParametricSoftplus"])
    {
        let row = ms("FusedGemm", function).x_in(&[6, 1], Exactly(&LARGE)).x_in(&[1, 2], Between(0.8, 1.0));
        let row = row.x_in(&[2], Between(-0.1, 0.1)).str("activation", function);
        let row = row.float("activation_alpha", 0.1).float("activation_beta", 0.4).float("activation_gamma", 1.1);
        rows.push(row);
    }
    for (function, list) in [
        ("Relu", &[][..]),
        ("Sigmoid", &[]),
        ("Tanh", &[]),
        ("LeakyRelu", &[0.2]),
        ("Clip", &[-1.0, 1.0]),
        ("HardSigmoid", &[0.1, 0.4]),
        ("HardSwish", &[]),
    ] {
        let row = ms("FusedConv", function).x_in(&[1, 1, 2, 3], Exactly(&LARGE)).x_in(&[2, 1, 1, 1], Between(0.7, 0.8));
        rows.push(parameters(row.x_in(&[2], Between(-0.1, 0.1)).str("activation", function), list));
    }
    rows
}

fn products() -> Vec<Row> {
    let gemm = |note: &str, a: &[usize], b: &[usize]| ms("FusedGemm", note).x(a).x(b);
    let matmul = |note: &str, a: &[usize], b: &[usize]| ms("FusedMatMul", note).x(a).x(b);
    vec![
        gemm("transposed", &[3, 2], &[4, 3]).x(&[4]).int("transA", 1).int("transB", 1).str("activation", "Tanh"),
        gemm("factors", &[2, 3], &[3, 4]).x(&[2, 1]).float("alpha", 0.5).float("beta", 2.0).str("activation", "Tanh"),
        gemm("no addend", &[2, 3], &[3, 4]).str("activation", "Sigmoid"),
        matmul("2-D", &[2, 3], &[3, 4]).float("alpha", 0.5),
        matmul("2-D, both transposed", &[3, 2], &[4, 3]).int("transA", 1).int("transB", 1),
        matmul("4-D", &[2, 3, 2, 4], &[2, 3, 4, 3]).float("alpha", 0.25),
        matmul("4-D, both transposed", &[2, 3, 4, 2], &[2, 3, 3, 4]).int("transA", 1).int("transB", 1),
        matmul("4-D and 2-D", &[2, 3, 2, 4], &[3, 4]).int("transB", 1),
        matmul("batch of A behind", &[5, 3, 2, 4], &[3, 2, 4, 3]).int("transBatchA", 1),
        matmul("batch of B behind", &[3, 2, 5, 4], &[4, 3, 2, 3]).int("transBatchB", 1),
        matmul("everything turned", &[4, 3, 2, 5], &[3, 3, 2, 4])
            .int("transBatchA", 1)
            .int("transBatchB", 1)
            .int("transA", 1)
            .int("transB", 1),
        matmul("vector and matrix", &[4], &[4, 3]).int("transA", 1),
        matmul("matrix and vector", &[2, 4], &[4]).int("transB", 1),
        ms("TransposeMatMul", "").x(&[4, 2]).x(&[4, 3]).int("transA", 1),
        ms("FusedConv", "addend").x(&[1, 2, 4, 4]).x(&[3, 2, 3, 3]).x(&[3]).x(&[1, 3, 2, 2]).str("activation", "Tanh"),
        ms("FusedConv", "addend, no bias, padded, strided")
            .x(&[2, 2, 5, 4])
            .x(&[4, 1, 3, 3])
            .absent()
            .x(&[2, 4, 3, 2])
            .int("group", 2)
            .list("pads", &[1, 1, 1, 1])
            .list("strides", &[2, 2])
            .list("kernel_shape", &[3, 3])
            .str("activation", "Sigmoid"),
        ms("FusedConv", "1-D").x(&[1, 2, 5]).x(&[3, 2, 3]).str("activation", "Tanh"),
        ms("Inverse", "").x_in(&[2, 2, 2], Exactly(&[3.0, 1.0, 0.5, 2.0, -2.0, 0.5, 1.0, 2.5])),
    ]
}

fn normalizations() -> Vec<Row> {
    let embedding = |note: &str| {
        ms("EmbedLayerNormalization", note)
            .at_run_time(i32s(&[2, 3], &[0, 1, 2, 3, 1, 0]))
            .at_run_time(i32s(&[2, 3], &[0, 1, 1, 0, 0, 0]))
            .x(&[5, 4])
            .x(&[6, 4])
            .x(&[2, 4])
            .x(&[4])
            .x(&[4])
            .float("epsilon", 0.1)
            .outputs(&[true, false])
    };
    let skip = |note: &str| ms("SkipLayerNormalization", note).x(&[2, 3, 4]).x(&[2, 3, 4]).x(&[4]);
    let simple = |note: &str| ms("SkipSimplifiedLayerNormalization", note).x(&[2, 3, 4]).x(&[2, 3, 4]).x(&[4]);
    vec![
        row("SimplifiedLayerNormalization", "last axis").x(&[2, 3, 4]).x(&[4]).int("axis", -1),
        row("SimplifiedLayerNormalization", "axis 1, epsilon")
            .x(&[2, 3, 4])
            .x(&[3, 4])
            .int("axis", 1)
            .float("epsilon", 0.1)
            .int("stash_type", 1)
            .outputs(&[true, false]),
        skip("gain"),
        skip("bias of the norm, epsilon").x(&[4]).float("epsilon", 0.1),
        skip("both biases, every output").x(&[4]).x(&[4]).outputs(&[true, false, false, true]).single(),
        skip("the sum too").absent().x(&[4]).outputs(&[true, true, true, true]).without(&[1, 2]),
        skip("only the sum counts").outputs(&[false, false, false, true]).single(),
        ms("SkipLayerNormalization", "one skip for all").x(&[2, 3, 4]).x(&[3, 4]).x(&[4]),
        ms("SkipLayerNormalization", "one skip of three dimensions").x(&[2, 3, 4]).x(&[1, 3, 4]).x(&[4]).x(&[4]),
        simple("gain"),
        simple("bias, the sum too").x(&[4]).float("epsilon", 0.1).outputs(&[true, true, true, true]).without(&[1, 2]),
        ms("SkipSimplifiedLayerNormalization", "2-D, one skip for all").x(&[3, 4]).x(&[3, 4]).x(&[4]),
        embedding("three embeddings"),
        embedding("mask, every output").at_run_time(i32s(&[2, 3], &[1, 1, 0, 1, 1, 1])).outputs(&[true, false, true]),
        embedding("no mask, every output").outputs(&[true, false, true]),
        embedding("positions").absent().at_run_time(i32s(&[2, 3], &[0, 1, 2, 5, 2, 0])),
        ms("EmbedLayerNormalization", "no segments, positions for all")
            .at_run_time(i32s(&[2, 3], &[0, 1, 2, 3, 1, 0]))
            .absent()
            .x(&[5, 4])
            .x(&[6, 4])
            .absent()
            .x(&[4])
            .x(&[4])
            .absent()
            .at_run_time(i32s(&[1, 3], &[5, 2, 0]))
            .outputs(&[true, false]),
    ]
}

fn attentions() -> Vec<Row> {
    let small = Between(-0.9, 0.9);
    let own = |note: &str| {
        let row = ms("Attention", note).x_in(&[2, 3, 4], small.clone()).x_in(&[4, 12], small.clone());
        row.x(&[12]).int("num_heads", 2)
    };
    let multi = |note: &str| {
        let row = ms("MultiHeadAttention", note).x(&[2, 3, 4]).x(&[2, 5, 4]).x(&[2, 5, 6]);
        row.int("num_heads", 2)
    };
    let group = |note: &str| {
        let row = ms("GroupQueryAttention", note).x_in(&[2, 4, 64], small.clone()).x_in(&[2, 4, 32], small.clone());
        row.x(&[2, 4, 32])
            .absent()
            .absent()
            .constant(i32s(&[2], &[3, 3]))
            .constant(i32s(&[], &[4]))
            .int("num_heads", 4)
            .int("kv_num_heads", 2)
            .outputs(&[true, false, false])
    };
    let rotary = |note: &str| ms("RotaryEmbedding", note);
    let steps = i32s(&[2, 3, 3], &[1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1]);
    let wide = i32s(&[2, 5], &[1, 1, 1, 1, 0, 1, 0, 1, 1, 1]);
    vec![
        own("bias"),
        ms("Attention", "no bias").x_in(&[2, 3, 4], small.clone()).x_in(&[4, 12], small.clone()).int("num_heads", 2),
        own("mask [N]").at_run_time(i32s(&[2], &[2, 3])),
        own("mask [2N]").at_run_time(i32s(&[4], &[2, 3, 0, 1])),
        own("mask [N,T]").at_run_time(i32s(&[2, 3], &[1, 1, 0, 1, 0, 1])),
        own("mask [N,S,T], filter").at_run_time(steps.clone()).float("mask_filter_value", -2.0),
        own("unidirectional, scale").absent().int("unidirectional", 1).float("scale", 0.9),
        own("unidirectional, mask").at_run_time(i32s(&[2, 3], &[1, 1, 0, 0, 1, 1])).int("unidirectional", 1),
        own("bias of the scores").absent().absent().x(&[2, 2, 3, 3]),
        own("one bias of the scores, mask").at_run_time(steps).absent().x(&[1, 1, 3, 3]),
        own("past").absent().x(&[2, 2, 2, 2, 2]).outputs(&[true, true]),
        own("past, mask, unidirectional")
            .at_run_time(wide.clone())
            .x(&[2, 2, 2, 2, 2])
            .int("unidirectional", 1)
            .outputs(&[true, false]),
        own("present").outputs(&[true, true]),
        ms("Attention", "sizes")
            .x_in(&[2, 3, 4], small.clone())
            .x_in(&[4, 14], small.clone())
            .x(&[14])
            .int("num_heads", 2)
            .list("qkv_hidden_sizes", &[4, 4, 6]),
        multi("separate"),
        multi("bias, scale").x(&[14]).float("scale", 0.4),
        multi("mask [N]").absent().at_run_time(i32s(&[2], &[4, 5])),
        multi("mask [N,T], filter").absent().at_run_time(wide.clone()).float("mask_filter_value", -3.0),
        multi("mask [N,S,T]").absent().at_run_time(i32s(&[2, 3, 5], &[1, 0, 1, 1, 1, 1].repeat(5))),
        multi("bias of the scores").absent().absent().x(&[2, 2, 3, 5]),
        multi("present").outputs(&[true, true, true]),
        ms("MultiHeadAttention", "keys and values by head")
            .x(&[2, 3, 4])
            .x(&[2, 2, 5, 2])
            .x(&[2, 2, 5, 2])
            .int("num_heads", 2),
        ms("MultiHeadAttention", "keys and values by head, bias")
            .x(&[2, 3, 4])
            .x(&[2, 2, 5, 2])
            .x(&[2, 2, 5, 2])
            .x(&[12])
            .int("num_heads", 2),
        ms("MultiHeadAttention", "past, unidirectional")
            .x(&[2, 3, 4])
            .x(&[2, 3, 4])
            .x(&[2, 3, 4])
            .x(&[12])
            .at_run_time(wide)
            .absent()
            .x(&[2, 2, 2, 2])
            .x(&[2, 2, 2, 2])
            .int("num_heads", 2)
            .int("unidirectional", 1)
            .outputs(&[true, true, true]),
        group("causal"),
        group("cache").outputs(&[true, true, true]),
        group("softcap, scale, window").float("softcap", 1.5).float("scale", 0.3).int("local_window_size", 2),
        group("not causal").int("causal", 0),
        group("smooth").int("smooth_softmax", 1),
        group("sink").absent().absent().absent().absent().x(&[4]),
        group("bias of the scores").absent().absent().absent().x(&[1, 4, 4, 4]),
        group("rotary").x(&[6, 8]).x(&[6, 8]).int("do_rotary", 1),
        group("rotary, interleaved").x(&[6, 8]).x(&[6, 8]).int("do_rotary", 1).int("rotary_interleaved", 1),
        ms("GroupQueryAttention", "packed")
            .x_in(&[2, 4, 64], small)
            .absent()
            .absent()
            .absent()
            .absent()
            .constant(i32s(&[2], &[3, 3]))
            .constant(i32s(&[], &[4]))
            .int("num_heads", 4)
            .int("kv_num_heads", 2),
        rotary("3-D").x(&[2, 3, 8]).at_run_time(positions()).x(&[5, 2]).x(&[5, 2]),
        rotary("4-D, interleaved, scale")
            .x(&[2, 2, 3, 4])
            .at_run_time(positions())
            .x(&[5, 2])
            .x(&[5, 2])
            .int("interleaved", 1)
            .float("scale", 2.0),
        rotary("first position").x(&[2, 3, 8]).constant(Tensor::ints(&[1])).x(&[5, 4]).x(&[5, 4]),
        rotary("in part")
            .x(&[2, 3, 16])
            .at_run_time(positions())
            .x(&[5, 2])
            .x(&[5, 2])
            .int("num_heads", 2)
            .int("rotary_embedding_dim", 4),
    ]
}

pub fn rows() -> Vec<Row> {
    let mut rows = [activations(), products(), normalizations(), attentions()].concat();
    rows.extend([
        ms("DequantizeLinear", "scale")
            .at_run_time(Tensor::from_f64(DType::U8, &[2, 3], &[0.0, 3.0, 200.0, 7.0, 100.0, 30.0]))
            .x_in(&[], Between(0.1, 0.2))
            .constant(Tensor::from_f64(DType::U8, &[], &[100.0])),
        ms("Pad", "constant").x(&[2, 3]).ints(&[0, 1, 1, 0]).x(&[1]),
        ms("ExpandDims", "").x(&[2, 3]).constant(i32s(&[], &[-1])),
        ms("Trilu", "upper").x(&[2, 3, 3]),
        ms("Trilu", "lower, k").x(&[3, 4]).constant(Tensor::scalar(DType::I64, 1.0)).int("upper", 0),
        ms("GatherND", "").x(&[2, 3]).at_run_time(Tensor::new(&[2, 2], &[0i64, 1, 1, 0]).expect("fits")),
    ]);
    rows
}

#[test]
fn microsoft() {
    check_all(&rows());
}

#[test]
fn what_no_kernel_trains_is_refused() {
    let quantized = ms("DynamicQuantizeMatMul", "")
        .x(&[2, 3])
        .constant(Tensor::from_f64(DType::U8, &[3, 4], &[1.0; 12]))
        .floats(&[1], &[0.1]);
    refused(&quantized, "this model is a quantized one");
    let past = ms("GroupQueryAttention", "past")
        .x(&[1, 1, 64])
        .x(&[1, 1, 32])
        .x(&[1, 1, 32])
        .x(&[1, 2, 4, 16])
        .x(&[1, 2, 4, 16])
        .constant(i32s(&[1], &[4]))
        .constant(i32s(&[], &[5]))
        .int("num_heads", 4)
        .int("kv_num_heads", 2)
        .outputs(&[true, false, false]);
    refused(&past, "a past is not supported");
}
