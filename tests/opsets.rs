//! Operators of old operator sets as ONNX Runtime has them there, and of those that it has no kernels for.
//!
//! The rows are the forms that changed between the operator sets 7 and 28: attributes that became inputs, and, without a sign in the
//! file, defaults: of Softmax's axis and what it is taken over (13), of Resize's coordinates (11) and RoiAlign's (16), of DFT's axis (20), of
//! GridSample's mode (20), of Pad's, Clip's and Dropout's numbers, of what GroupNormalization's gains are for (21).

use crate::common;
use crate::conformance::case::{Outcome, compare};
use bisam::data::write_npz;
use bisam::ir::Tensor;
use bisam::onnx::{save, to_proto};
use onnx_protobuf::attribute_proto::AttributeType as Kind;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use protobuf::MessageField;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

/// An attribute.
enum A {
    Int(i64),
    Float(f32),
    Ints(&'static [i64]),
    Floats(&'static [f32]),
    Text(&'static str),
}

fn attribute((name, value): &(&str, A)) -> AttributeProto {
    let mut a = AttributeProto { name: (*name).into(), ..Default::default() };
    a.type_ = match value {
        A::Int(v) => {
            a.i = *v;
            Kind::INT
        }
        A::Float(v) => {
            a.f = *v;
            Kind::FLOAT
        }
        A::Ints(v) => {
            a.ints = v.to_vec();
            Kind::INTS
        }
        A::Floats(v) => {
            a.floats = v.to_vec();
            Kind::FLOATS
        }
        A::Text(v) => {
            a.s = v.as_bytes().to_vec();
            Kind::STRING
        }
    }
    .into();
    a
}

fn node(op: &str, inputs: &[&str], output: &str, attrs: &[(&str, A)]) -> NodeProto {
    let text = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let attribute = attrs.iter().map(attribute).collect();
    NodeProto { op_type: op.into(), input: text(inputs), output: text(&[output]), attribute, ..Default::default() }
}

/// A value of a type; dimension 0 is any.
fn value(name: &str, dtype: i32, shape: Option<&[usize]>) -> ValueInfoProto {
    let dim = |n: &usize| Dimension {
        value: Some(match n {
            0 => dimension::Value::DimParam("N".into()),
            n => dimension::Value::DimValue(*n as i64),
        }),
        ..Default::default()
    };
    let shape = shape.map(|s| TensorShapeProto { dim: s.iter().map(dim).collect(), ..Default::default() });
    let tensor = type_proto::Tensor { elem_type: dtype, shape: shape.into(), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: MessageField::some(ty), ..Default::default() }
}

fn model(opset: i64, graph: GraphProto) -> ModelProto {
    let ai = OperatorSetIdProto { version: opset, ..Default::default() };
    let ir_version = if opset < 9 { 3 } else { 8 };
    ModelProto { ir_version, opset_import: vec![ai], graph: MessageField::some(graph), ..Default::default() }
}

/// Numbers that are all different, away from whole ones.
fn wave(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 1.7).sin() * 2.0 + i as f32 * 0.013).collect();
    Tensor::new(shape, &values).expect("fits")
}

/// One node at an operator set, with its inputs.
fn check(op: &str, opset: i64, attrs: &[(&str, A)], inputs: &[Tensor]) {
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let info = |(n, t): (&&str, &Tensor)| value(n, t.dtype().onnx(), Some(t.shape()));
    let mut made = node(op, &names, "y", attrs);
    if op == "TopK" {
        made.output.push("places".into());
    }
    let graph = GraphProto {
        name: op.into(),
        node: vec![made],
        input: names.iter().zip(inputs).map(info).collect(),
        output: vec![value("y", 1, None)],
        ..Default::default()
    };
    let [forward, gradient] = compare(&model(opset, graph), inputs);
    assert_eq!(forward, Outcome::Right, "{op}-{opset} forward");
    assert!(matches!(gradient, Outcome::Right | Outcome::LeftOut(_)), "{op}-{opset} gradient: {gradient:?}");
}

/// Numbers that training can start from.
fn weights(shape: &[usize]) -> Tensor {
    floats(shape, &wave(shape).to_f32().iter().map(|v| 0.1 * v).collect::<Vec<_>>())
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, values).expect("fits")
}

#[test]
fn attributes_that_became_inputs() {
    let x = || vec![wave(&[2, 3, 4])];
    for opset in [7, 9, 10] {
        check("Clip", opset, &[("min", A::Float(-0.5)), ("max", A::Float(0.7))], &x());
        check("Clip", opset, &[("max", A::Float(0.7))], &x());
        check("Clip", opset, &[], &x());
        check("Pad", opset, &[("pads", A::Ints(&[0, 1, 2, 0, 0, 1])), ("value", A::Float(0.3))], &x());
        check("Pad", opset, &[("pads", A::Ints(&[0, 1, 2, 0, 0, 1])), ("mode", A::Text("reflect"))], &x());
        check("Dropout", opset, &[("ratio", A::Float(0.7))], &x());
        check("Dropout", opset, &[], &x());
    }
    for opset in [7, 9] {
        check("Slice", opset, &[("starts", A::Ints(&[0, 1])), ("ends", A::Ints(&[1, -1]))], &x());
        let last = [("starts", A::Ints(&[1])), ("ends", A::Ints(&[i64::MAX])), ("axes", A::Ints(&[2]))];
        check("Slice", opset, &last, &x());
        check("TopK", opset, &[("k", A::Int(2)), ("axis", A::Int(1))], &x());
        check("TopK", opset, &[("k", A::Int(2))], &x());
    }
    for opset in [7, 11, 12] {
        check("Squeeze", opset, &[("axes", A::Ints(&[1]))], &[wave(&[2, 1, 3])]);
        check("Squeeze", opset, &[], &[wave(&[2, 1, 3, 1])]);
        check("Unsqueeze", opset, &[("axes", A::Ints(&[0, 3]))], &x());
        check("ReduceSum", opset, &[("axes", A::Ints(&[1])), ("keepdims", A::Int(0))], &x());
    }
    for opset in [7, 11, 13, 17] {
        for op in ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"] {
            check(op, opset, &[("axes", A::Ints(&[0, 2]))], &x());
            check(op, opset, &[], &x());
        }
    }
}

#[test]
fn defaults_that_changed() {
    let image = || vec![wave(&[2, 3, 4, 5])];
    for op in ["Softmax", "LogSoftmax", "Hardmax"] {
        for opset in [7, 11, 12, 13, 17] {
            check(op, opset, &[], &image());
            check(op, opset, &[("axis", A::Int(2))], &image());
        }
    }
    let regions = floats(&[2, 4], &[0.0, 0.5, 3.0, 3.5, 1.0, 0.0, 4.0, 2.5]);
    let pooled = [("output_height", A::Int(2)), ("output_width", A::Int(2)), ("sampling_ratio", A::Int(2))];
    for opset in [10, 15, 16, 21, 22] {
        let batch = Tensor::new(&[2], &[0i64, 1]).expect("fits");
        if opset < 22 {
            check("RoiAlign", opset, &pooled, &[wave(&[2, 3, 4, 5]), regions.clone(), batch]);
        }
    }
    for opset in [16, 19, 20, 21] {
        check(
            "GridSample",
            opset,
            &[],
            &[wave(&[1, 2, 4, 5]), floats(&[1, 1, 3, 2], &[-0.81, 0.33, 0.27, -0.55, 0.92, 0.74])],
        );
    }
    for opset in [17, 19] {
        check("DFT", opset, &[], &[wave(&[2, 4, 3, 2])]);
        check("DFT", opset, &[("axis", A::Int(2)), ("onesided", A::Int(1))], &[wave(&[2, 4, 3, 1])]);
    }
    for (opset, gains) in [(18, 2), (20, 2), (21, 4), (23, 4)] {
        let inputs = [wave(&[2, 4, 3]), wave(&[gains]), wave(&[gains])];
        check("GroupNormalization", opset, &[("num_groups", A::Int(2))], &inputs);
    }
    for opset in [7, 9, 13] {
        let [gain, bias, mean] = [0.7, 1.3, -0.4].map(|s| floats(&[3], &[s, s + 0.1, s - 0.2]));
        let inputs = [wave(&[2, 3, 4]), gain, bias, mean, floats(&[3], &[0.5, 1.5, 2.0])];
        check("BatchNormalization", opset, &[], &inputs);
    }
    let vectors = [wave(&[4, 3]), wave(&[3]), wave(&[3]), wave(&[3]), floats(&[3], &[0.5, 1.5, 2.0])];
    check("BatchNormalization", 7, &[("spatial", A::Int(1))], &vectors);
}

#[test]
fn resizing_before_operator_set_11() {
    let image = || wave(&[1, 2, 4, 6]);
    for mode in ["nearest", "linear"] {
        let scales = ("scales", A::Floats(&[1.0, 1.0, 2.0, 1.5]));
        check("Upsample", 7, &[("mode", A::Text(mode)), scales], &[image()]);
    }
    // Scales that are no constants.
    for scales in [[1.0, 1.0, 2.0, 1.5], [1.0, 1.0, 0.5, 0.6], [1.0, 1.0, 0.5, 2.0], [1.0, 1.0, 1.5, 0.4]] {
        for mode in ["nearest", "linear"] {
            let scales = floats(&[4], &scales);
            let graph = GraphProto {
                name: "resize".into(),
                node: vec![node("Resize", &["x", "s"], "y", &[("mode", A::Text(mode))])],
                initializer: vec![to_proto("s", &scales)],
                input: vec![value("x", 1, Some(&[1, 2, 4, 6]))],
                output: vec![value("y", 1, None)],
                ..Default::default()
            };
            assert_eq!(compare(&model(10, graph), &[image()]), [Outcome::Right, Outcome::Right], "{mode} {scales:?}");
        }
    }
}

#[test]
fn experiments_of_old_files() {
    let image = || vec![wave(&[2, 3, 4, 5])];
    for opset in [7, 9] {
        check("ImageScaler", opset, &[("scale", A::Float(0.5)), ("bias", A::Floats(&[0.1, -0.2, 0.3]))], &image());
        check("Affine", opset, &[("alpha", A::Float(2.0)), ("beta", A::Float(0.3))], &image());
        check("Affine", opset, &[], &image());
        check("Scale", opset, &[("scale", A::Float(0.7))], &image());
        check("ScaledTanh", opset, &[("alpha", A::Float(1.5)), ("beta", A::Float(0.7))], &image());
        check("ParametricSoftplus", opset, &[("alpha", A::Float(1.5)), ("beta", A::Float(0.7))], &image());
        check("Crop", opset, &[("border", A::Ints(&[1, 2, 1, 0]))], &image());
        check("Crop", opset, &[("border", A::Ints(&[1, 1, 0, 0])), ("scale", A::Ints(&[2, 3]))], &image());
        check("ThresholdedRelu", opset, &[("alpha", A::Float(0.5))], &image());
    }
    for across in [0, 1] {
        for normalize in [0, 1] {
            let attrs = [("across_channels", A::Int(across)), ("normalize_variance", A::Int(normalize))];
            check("MeanVarianceNormalization", 8, &attrs, &image());
        }
    }
}

/// A convolution, `middle` from value `a` to `r`, and a classifier of three classes; `more` initializers.
fn classifier(opset: i64, middle: Vec<NodeProto>, more: &[(&str, Tensor)]) -> ModelProto {
    let mut nodes = vec![node("Conv", &["x", "c"], "a", &[("pads", A::Ints(&[1, 1, 1, 1]))])];
    nodes.extend(middle);
    nodes.push(node("GlobalAveragePool", &["r"], "p", &[]));
    nodes.push(node("Flatten", &["p"], "q", &[]));
    nodes.push(node("Gemm", &["q", "w", "b"], "y", &[("transB", A::Int(1))]));
    let mut given = vec![("c", weights(&[4, 3, 3, 3])), ("w", weights(&[3, 4])), ("b", weights(&[3]))];
    given.extend(more.iter().cloned());
    let mut input = vec![value("x", 1, Some(&[0, 3, 6, 6]))];
    if opset < 9 {
        // As files of that time have it.
        input.extend(given.iter().map(|(n, t)| value(n, 1, Some(t.shape()))));
    }
    let graph = GraphProto {
        name: "classifier".into(),
        node: nodes,
        initializer: given.iter().map(|(n, t)| to_proto(n, t)).collect(),
        input,
        output: vec![value("y", 1, Some(&[0, 3]))],
        ..Default::default()
    };
    model(opset, graph)
}

fn bisam(folder: &Path, args: &[&str]) -> Output {
    let mut command = common::bisam();
    command.current_dir(folder).args(args).args(["--threads", "1"]);
    command.output().expect("runs")
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned()).concat()
}

fn succeeds(folder: &Path, args: &[&str]) -> String {
    let output = bisam(folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// A folder with the model `model.onnx` and twelve samples.
fn place(model: &ModelProto) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    save(model, &folder.path().join("model.onnx")).expect("writes");
    let labels = Tensor::new(&[12], &(0..12i64).map(|i| i % 3).collect::<Vec<_>>()).expect("fits");
    let arrays = BTreeMap::from([("x".to_owned(), weights(&[12, 3, 6, 6])), ("labels".to_owned(), labels)]);
    write_npz(&folder.path().join("data.npz"), &arrays).expect("writes");
    folder
}

const TRAIN: &[&str] = &[
    "train",
    "model.onnx",
    "--data",
    "npz:data.npz",
    "--steps",
    "2",
    "--batch-size",
    "4",
    "--valid",
    "0",
    "-o",
    "run",
];

#[test]
fn what_no_kernel_runs_is_trained_evaluated_and_verified() {
    for (opset, op, inputs) in [(25, "Swish", &["a"][..]), (28, "Swish", &["a"]), (28, "SwiGLU", &["a", "a"])] {
        let folder = place(&classifier(opset, vec![node(op, inputs, "r", &[("alpha", A::Float(1.5))])], &[]));
        let at = folder.path();
        let shown = succeeds(at, TRAIN);
        assert!(shown.contains("agrees"), "{shown}");
        succeeds(at, &["eval", "run/model.onnx", "--data", "npz:data.npz", "--split", "train"]);
        succeeds(at, &["gradcheck", "model.onnx", "--batch", "2"]);
        let shown = succeeds(at, &["verify", "run/model.onnx"]);
        assert!(shown.contains("ONNX Runtime does not run run/model.onnx itself"), "{shown}");
        assert!(shown.contains("what bisam makes of it was run"), "{shown}");
        let shown = text(&bisam(at, &["verify", "run/model.onnx", "--against", "model.onnx"]));
        assert!(shown.contains("differ"), "{shown}");
    }
}

#[test]
fn a_residual_network_of_operator_set_7_trains() {
    let norm = |input: &str, output: &str| {
        let attrs = [("epsilon", A::Float(1e-5)), ("momentum", A::Float(0.9))];
        node("BatchNormalization", &[input, "gain", "shift", "mean", "variance"], output, &attrs)
    };
    let middle = vec![
        norm("a", "n"),
        node("Relu", &["n"], "h", &[]),
        node("Conv", &["h", "d"], "e", &[("pads", A::Ints(&[1, 1, 1, 1]))]),
        node("Sum", &["e", "h"], "s", &[]),
        node("Upsample", &["s"], "u", &[("scales", A::Floats(&[1.0, 1.0, 2.0, 2.0]))]),
        node("Dropout", &["u"], "r", &[("ratio", A::Float(0.3))]),
    ];
    let more = [
        ("d", weights(&[4, 4, 3, 3])),
        ("gain", floats(&[4], &[1.1, 0.9, 1.2, 0.8])),
        ("shift", weights(&[4])),
        ("mean", weights(&[4])),
        ("variance", floats(&[4], &[1.1, 0.9, 1.2, 0.8])),
    ];
    let mut plain = classifier(7, middle, &more);
    let folder = place(&plain);
    succeeds(folder.path(), TRAIN);
    succeeds(folder.path(), &["gradcheck", "model.onnx", "--batch", "4"]);
    let logits = |folder: &tempfile::TempDir| {
        succeeds(folder.path(), &["grad", "model.onnx", "--inputs", "data.npz", "-o", "g.npz"]);
        bisam::data::read_npz(&folder.path().join("g.npz")).expect("reads")["logits"].to_f32()
    };
    let before = logits(&folder);
    // What exporters before operator set 7 wrote, and some after it.
    for n in plain.graph.as_mut().expect("a graph").node.iter_mut() {
        let more: &[(&str, A)] = match n.op_type.as_str() {
            "BatchNormalization" => &[("spatial", A::Int(1)), ("consumed_inputs", A::Ints(&[0, 0, 0, 1, 1]))],
            "Dropout" => &[("is_test", A::Int(1))],
            _ => &[],
        };
        n.attribute.extend(more.iter().map(attribute));
    }
    assert_eq!(before, logits(&place(&plain)));
}

#[test]
fn trees_and_strings_are_refused_by_name() {
    let mut trees = classifier(18, vec![node("Relu", &["a"], "r", &[])], &[]);
    let graph = trees.graph.as_mut().expect("a graph");
    let mut tree = node("TreeEnsembleRegressor", &["y"], "z", &[]);
    (tree.domain, tree.name) = ("ai.onnx.ml".into(), "forest".into());
    tree.attribute = [
        ("n_targets", A::Int(3)),
        ("nodes_treeids", A::Ints(&[0])),
        ("nodes_nodeids", A::Ints(&[0])),
        ("nodes_featureids", A::Ints(&[0])),
        ("nodes_values", A::Floats(&[0.0])),
        ("nodes_truenodeids", A::Ints(&[0])),
        ("nodes_falsenodeids", A::Ints(&[0])),
        ("target_treeids", A::Ints(&[0])),
        ("target_nodeids", A::Ints(&[0])),
        ("target_ids", A::Ints(&[0])),
        ("target_weights", A::Floats(&[1.0])),
    ]
    .iter()
    .map(attribute)
    .collect();
    let modes = AttributeProto {
        name: "nodes_modes".into(),
        strings: vec![b"LEAF".to_vec()],
        type_: Kind::STRINGS.into(),
        ..Default::default()
    };
    tree.attribute.push(modes);
    graph.node.push(tree);
    graph.output = vec![value("z", 1, Some(&[0, 3]))];
    trees.opset_import.push(OperatorSetIdProto { domain: "ai.onnx.ml".into(), version: 3, ..Default::default() });
    let folder = place(&trees);
    let output = bisam(folder.path(), TRAIN);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    for words in ["model.onnx", "TreeEnsembleRegressor", "forest", "decision trees are piecewise constant"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn weights_of_four_bits_stay_fixed() {
    let dequantize = node("DequantizeLinear", &["k", "scale"], "d", &[]);
    let middle = vec![dequantize, node("Conv", &["a", "d"], "r", &[])];
    let mut proto = classifier(21, middle, &[("scale", floats(&[], &[0.1]))]);
    let bytes: Vec<u8> = (0..8u8).map(|i| i.wrapping_mul(37)).collect();
    let kernel =
        TensorProto { name: "k".into(), dims: vec![4, 4, 1, 1], data_type: 22, raw_data: bytes, ..Default::default() };
    proto.graph.as_mut().expect("a graph").initializer.push(kernel.clone());
    proto.ir_version = 10;
    let folder = place(&proto);
    succeeds(folder.path(), TRAIN);
    let shown = succeeds(folder.path(), &["verify", "run/model.onnx", "--against", "run/last.onnx"]);
    assert!(shown.contains("at most 0.0e0"), "{shown}");
    let trained = std::fs::read(folder.path().join("run/model.onnx")).expect("reads");
    let trained = ModelProto::parse_from_bytes(&trained).expect("decodes");
    assert!(trained.graph.initializer.contains(&kernel));
    let x = wave(&[2, 3, 6, 6]);
    assert_eq!(compare(&trained, &[x]), [Outcome::Right, Outcome::Right]);
    // Read by anything else they would be other numbers.
    let graph = proto.graph.as_mut().expect("a graph");
    graph.node.push(node("Identity", &["k"], "copy", &[]));
    let shown = text(&bisam(place(&proto).path(), &["inspect", "model.onnx"]));
    assert!(shown.contains("integers of 2 or 4 bits") && shown.contains("Identity"), "{shown}");
}
