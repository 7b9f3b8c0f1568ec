//! What models put out as a user meets it: probabilities are trained at their logits, one number a sample is a classifier of two
//! classes, and what holds no numbers is passed over. Expected values are the formulas, in f64.

use crate::common;
use bisam::data::write_npz;
use bisam::ir::{DType, Tensor};
use bisam::onnx::{save, to_proto};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value as Size};
use onnx_protobuf::type_proto::{self, Value as Kind};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto,
};
use protobuf::{EnumOrUnknown, MessageField};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Output;

/// Samples, and features of each.
const N: usize = 12;
const FEATURES: usize = 4;

/// An operator with its inputs, its outputs and integers for attributes; `ml.` stands for domain ai.onnx.ml.
fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, i64)]) -> NodeProto {
    let text = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let (domain, op) = op.strip_prefix("ml.").map_or(("", op), |op| ("ai.onnx.ml", op));
    let int = |(name, i): &(&str, i64)| AttributeProto {
        name: (*name).to_owned(),
        i: *i,
        type_: EnumOrUnknown::new(AttributeType::INT),
        ..Default::default()
    };
    NodeProto {
        name: format!("the_{}", outputs[0]),
        domain: domain.into(),
        op_type: op.into(),
        input: text(inputs),
        output: text(outputs),
        attribute: attributes.iter().map(int).collect(),
        ..Default::default()
    }
}

fn with_strings(mut node: NodeProto, name: &str, values: &[&str]) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.into(),
        strings: values.iter().map(|v| v.as_bytes().to_vec()).collect(),
        type_: EnumOrUnknown::new(AttributeType::STRINGS),
        ..Default::default()
    });
    node
}

fn tensor_type(dtype: i32, dims: &[i64]) -> TypeProto {
    let dim = |d: &i64| match d {
        0 => Dimension { value: Some(Size::DimParam("N".into())), ..Default::default() },
        d => Dimension { value: Some(Size::DimValue(*d)), ..Default::default() },
    };
    let shape = MessageField::some(TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() });
    let tensor = type_proto::Tensor { elem_type: dtype, shape, ..Default::default() };
    TypeProto { value: Some(Kind::TensorType(tensor)), ..Default::default() }
}

fn info(name: &str, ty: TypeProto) -> ValueInfoProto {
    ValueInfoProto { name: name.into(), type_: MessageField::some(ty), ..Default::default() }
}

/// A float output; a size of 0 is the batch.
fn float(name: &str, dims: &[i64]) -> ValueInfoProto {
    info(name, tensor_type(DType::F32.onnx(), dims))
}

/// A sequence of maps from strings to floats.
fn maps(name: &str) -> ValueInfoProto {
    let value = MessageField::some(tensor_type(DType::F32.onnx(), &[]));
    let map = type_proto::Map { key_type: DType::Str.onnx(), value_type: value, ..Default::default() };
    let map = TypeProto { value: Some(Kind::MapType(map)), ..Default::default() };
    let sequence = type_proto::Sequence { elem_type: MessageField::some(map), ..Default::default() };
    info(name, TypeProto { value: Some(Kind::SequenceType(sequence)), ..Default::default() })
}

fn strings(name: &str, values: &[&str]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: DType::Str.onnx(),
        string_data: values.iter().map(|v| v.as_bytes().to_vec()).collect(),
        ..Default::default()
    }
}

/// A linear layer z = x·w + c, whatever follows it, and data for it.
struct Place {
    folder: tempfile::TempDir,
    classes: usize,
    columns: usize,
}

impl Place {
    /// A layer of `columns` numbers a sample, for labels of `classes` classes.
    fn new(columns: usize, classes: usize) -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a folder"), classes, columns };
        place.data(&place.labels());
        place
    }

    fn data(&self, labels: &[i64]) {
        let x = Tensor::from_f64(DType::F32, &[N, FEATURES], &self.x());
        let labels = Tensor::new(&[N], labels).expect("fits");
        let arrays = [("x", &x), ("labels", &labels), ("test_x", &x), ("test_labels", &labels)];
        let arrays: BTreeMap<String, Tensor> = arrays.map(|(n, t)| (n.to_owned(), t.clone())).into();
        write_npz(&self.path("data.npz"), &arrays).expect("writes");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn x(&self) -> Vec<f64> {
        (0..N * FEATURES).map(|i| f64::from((i as f32 * 0.7).sin())).collect()
    }

    fn w(&self) -> Vec<f64> {
        (0..FEATURES * self.columns).map(|i| f64::from((i as f32 * 1.3).cos())).collect()
    }

    fn c(&self) -> Vec<f64> {
        (0..self.columns).map(|i| f64::from(0.1 * i as f32 - 0.2)).collect()
    }

    fn labels(&self) -> Vec<i64> {
        (0..N).map(|i| (i * i % 5 % self.classes) as i64).collect()
    }

    /// z, row by row.
    fn z(&self) -> Vec<Vec<f64>> {
        let (x, w, c, k) = (self.x(), self.w(), self.c(), self.columns);
        let at = |i: usize, j: usize| (0..FEATURES).map(|f| x[i * FEATURES + f] * w[f * k + j]).sum::<f64>() + c[j];
        (0..N).map(|i| (0..k).map(|j| at(i, j)).collect()).collect()
    }

    /// Writes `model.onnx`.
    fn model(&self, tail: Vec<NodeProto>, outputs: Vec<ValueInfoProto>, more: Vec<TensorProto>) {
        let scalar = |name: &str, v: f64| to_proto(name, &Tensor::scalar(DType::F32, v));
        let ints = |name: &str, v: &[i64]| to_proto(name, &Tensor::ints(v));
        let mut stored = vec![
            to_proto("w", &Tensor::from_f64(DType::F32, &[FEATURES, self.columns], &self.w())),
            to_proto("c", &Tensor::from_f64(DType::F32, &[self.columns], &self.c())),
        ];
        stored.extend(
            [("one", 1.0), ("zero", 0.0), ("half", 0.5), ("low", 1e-7), ("high", 1.0 - 1e-7)]
                .map(|(n, v)| scalar(n, v)),
        );
        stored.extend([("axis1", 1), ("axis2", 2), ("all", -1)].map(|(n, v)| ints(n, &[v])));
        stored.extend(more);
        let mut nodes = vec![node("MatMul", &["x", "w"], &["z0"], &[]), node("Add", &["z0", "c"], &["z"], &[])];
        nodes.extend(tail);
        let graph = GraphProto {
            name: "g".into(),
            node: nodes,
            input: vec![float("x", &[0, FEATURES as i64])],
            output: outputs,
            initializer: stored,
            ..Default::default()
        };
        let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version, ..Default::default() };
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![opset("", 17), opset("ai.onnx.ml", 3)],
            graph: MessageField::some(graph),
            ..Default::default()
        };
        save(&model, &self.path("model.onnx")).expect("writes");
    }

    fn bisam(&self, arguments: &[&str]) -> Output {
        let mut command = common::bisam();
        command.args(arguments).arg("--threads=1").current_dir(self.folder.path()).output().expect("starts")
    }

    fn succeeds(&self, arguments: &[&str]) -> (String, String) {
        let out = self.bisam(arguments);
        let [stdout, stderr] = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        assert!(out.status.success(), "{arguments:?}: {stderr}");
        (stdout, stderr)
    }

    /// What a command says that must fail, naming the file, with a hint.
    fn fails(&self, arguments: &[&str]) -> String {
        let out = self.bisam(arguments);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("error: model.onnx: ") && said.contains("\nhint: "), "{arguments:?}: {said}");
        said
    }

    /// `grad`, `train` and `eval` on the model and the data.
    fn commands<'a>(&self, more: &[&'a str]) -> [Vec<&'a str>; 3] {
        let _ = fs::remove_dir_all(self.path("run"));
        let grad = ["grad", "model.onnx", "--inputs", "data.npz", "-o", "g.npz"];
        let train = [
            "train",
            "model.onnx",
            "--data",
            "npz:data.npz",
            "--valid",
            "0",
            "-o",
            "run",
            "--steps",
            "2",
            "--batch-size",
            "6",
        ];
        let eval = ["eval", "model.onnx", "--data", "npz:data.npz", "--batch-size", "5", "--json"];
        [grad.to_vec(), train.to_vec(), eval.to_vec()].map(|c| [c, more.to_vec()].concat())
    }

    /// Checks `grad`, `eval` and `train` against probabilities of each sample, and the gradient by c where that is given; what
    /// `train` notes.
    fn works(&self, name: &str, p: &[Vec<f64>], by_c: Option<&[f64]>, more: &[&str]) -> String {
        let labels = self.labels();
        let of = p.iter().zip(&labels);
        let loss = of.clone().map(|(row, l)| -row[*l as usize].ln()).sum::<f64>() / N as f64;
        let best = |row: &[f64]| (0..row.len()).fold(0, |b, j| if row[j] > row[b] { j } else { b });
        let accuracy = of.filter(|(row, l)| best(row) == **l as usize).count() as f64 / N as f64;
        let [grad, train, eval] = self.commands(more);
        self.succeeds(&grad);
        let arrays = bisam::data::read_npz(&self.path("g.npz")).expect("reads");
        let close = |a: f64, b: f64, what: &str| assert!((a - b).abs() < 2e-5, "{name}: {what} {a}, not {b}");
        close(arrays["loss"].to_f64()[0], loss, "loss");
        for (a, b) in arrays["grad/c"].to_f64().iter().zip(by_c.unwrap_or_default()) {
            close(*a, *b, "gradient");
        }
        let (stdout, _) = self.succeeds(&eval);
        let value: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
        close(value["loss"].as_f64().expect("a number"), loss, "loss of eval");
        close(value["accuracy"].as_f64().expect("a number"), accuracy, "accuracy of eval");
        let (_, said) = self.succeeds(&train);
        let notes: Vec<&str> = said.lines().filter(|l| l.contains("behind") || l.contains("taken")).collect();
        assert!(notes.len() < 2, "{name}: {notes:?}");
        let [before, after] = ["model.onnx", "run/model.onnx"]
            .map(|f| ModelProto::parse_from_bytes(&fs::read(self.path(f)).expect("reads")).expect("a model"));
        assert_eq!(before.graph.node, after.graph.node, "{name}: the exported file has other nodes");
        assert_eq!(before.graph.output, after.graph.output, "{name}: the exported file has other outputs");
        assert_ne!(before.graph.initializer, after.graph.initializer, "{name}: nothing was trained");
        notes.concat()
    }
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|z| z.exp()).sum();
    row.iter().map(|z| z.exp() / sum).collect()
}

/// Mean of p − t over the samples.
fn gradient(p: &[Vec<f64>], labels: &[i64]) -> Vec<f64> {
    let mean = |j: usize| {
        let of = p.iter().zip(labels).map(|(row, l)| row[j] - f64::from(u8::from(*l as usize == j)));
        of.sum::<f64>() / N as f64
    };
    (0..p[0].len()).map(mean).collect()
}

#[test]
fn probabilities_are_trained_at_their_logits() {
    let place = Place::new(3, 3);
    let soft = || node("Softmax", &["z"], &["p"], &[("axis", -1)]);
    let tails = [
        ("scale", vec![soft(), node("Mul", &["p", "one"], &["q"], &[]), node("Add", &["q", "zero"], &["y"], &[])]),
        ("clip", vec![soft(), node("Clip", &["p", "low", "high"], &["y"], &[])]),
        ("cast", vec![soft(), node("Cast", &["p"], &["y"], &[("to", 1)])]),
        ("concat", vec![soft(), node("Concat", &["p"], &["y"], &[("axis", 1)])]),
        (
            "one step of a sequence",
            vec![
                node("Unsqueeze", &["z", "axis1"], &["zz"], &[]),
                node("Softmax", &["zz"], &["pp"], &[("axis", 2)]),
                node("Squeeze", &["pp", "axis1"], &["y"], &[]),
            ],
        ),
        (
            "written out",
            vec![
                node("ReduceMax", &["z"], &["m"], &[]),
                node("Sub", &["z", "m"], &["d"], &[]),
                node("Exp", &["d"], &["e"], &[]),
                node("ReduceSum", &["e", "axis1"], &["s"], &[]),
                node("Reciprocal", &["s"], &["r"], &[]),
                node("Mul", &["e", "r"], &["y"], &[]),
            ],
        ),
        ("of a logarithm", vec![node("LogSoftmax", &["z"], &["l"], &[]), node("Exp", &["l"], &["y"], &[])]),
        ("normalized", vec![soft(), node("ml.Normalizer", &["p"], &["y"], &[])]),
    ];
    let p: Vec<Vec<f64>> = place.z().iter().map(|z| softmax(z)).collect();
    let by_c = gradient(&p, &place.labels());
    for (name, mut tail) in tails {
        if name == "written out" {
            tail[0].attribute.push(AttributeProto {
                name: "axes".into(),
                ints: vec![1],
                type_: EnumOrUnknown::new(AttributeType::INTS),
                ..Default::default()
            });
        }
        if name == "normalized" {
            tail[1].attribute.push(AttributeProto {
                name: "norm".into(),
                s: b"L1".to_vec(),
                type_: EnumOrUnknown::new(AttributeType::STRING),
                ..Default::default()
            });
        }
        place.model(tail, vec![float("y", &[0, 3])], vec![]);
        let note = place.works(name, &p, Some(&by_c), &[]);
        assert!(note.contains("output `y` is probabilities of 3 classes"), "{name}: {note}");
    }
    let (shown, _) = place.succeeds(&["inspect", "model.onnx"]);
    assert!(shown.contains("logits  z of y: 3 classes, seen through Normalizer, Softmax"), "{shown}");
}

#[test]
fn a_sigmoid_is_a_classifier_of_two_classes() {
    let place = Place::new(1, 2);
    let sigmoid = || node("Sigmoid", &["z"], &["p"], &[]);
    let other = || node("Sub", &["one", "p"], &["q"], &[]);
    let tails = [
        ("sigmoid", vec![node("Sigmoid", &["z"], &["y"], &[])], 1, false),
        ("one logit", vec![node("Identity", &["z"], &["y"], &[])], 1, false),
        ("flat", vec![sigmoid(), node("Reshape", &["p", "all"], &["y"], &[])], 0, false),
        ("pair", vec![sigmoid(), other(), node("Concat", &["q", "p"], &["y"], &[("axis", 1)])], 2, false),
        ("pair the other way", vec![sigmoid(), other(), node("Concat", &["p", "q"], &["y"], &[("axis", 1)])], 2, true),
        (
            "written out",
            vec![
                node("Neg", &["z"], &["n"], &[]),
                node("Exp", &["n"], &["e"], &[]),
                node("Add", &["e", "one"], &["d"], &[]),
                node("Div", &["one", "d"], &["p"], &[]),
                other(),
                node("Concat", &["q", "p"], &["y"], &[("axis", -1)]),
            ],
            2,
            false,
        ),
    ];
    for (name, tail, columns, flipped) in tails {
        let dims: &[i64] = if columns == 0 { &[0] } else { &[0, columns] };
        place.model(tail, vec![float("y", dims)], vec![]);
        let p: Vec<Vec<f64>> = place
            .z()
            .iter()
            .map(|z| 1.0 / (1.0 + (-z[0]).exp()))
            .map(|p| if flipped { vec![p, 1.0 - p] } else { vec![1.0 - p, p] })
            .collect();
        let toward_one = gradient(&p, &place.labels())[usize::from(!flipped)];
        let note = place.works(name, &p, Some(&[toward_one]), &[]);
        assert!(note.contains("two"), "{name}: {note}");
        let (shown, _) = place.succeeds(&["inspect", "model.onnx"]);
        assert!(shown.contains(": 2 classes"), "{name}: {shown}");
    }
    let mut labels = place.labels();
    labels[3] = 2;
    place.data(&labels);
    let [grad, train, eval] = place.commands(&[]);
    for command in [grad, train, eval] {
        let said = String::from_utf8_lossy(&place.bisam(&command).stderr).into_owned();
        assert!(said.contains("label 2") && said.contains("0..2"), "{command:?}: {said}");
    }
    let more = place.commands(&["--num-classes", "3"]);
    assert!(place.fails(&more[1]).contains("tells 2 classes apart"));
}

#[test]
fn probabilities_without_logits_are_trained_by_their_logarithm() {
    let place = Place::new(3, 3);
    let mean = vec![
        node("Softmax", &["z"], &["p"], &[("axis", 1)]),
        node("Neg", &["z"], &["n"], &[]),
        node("Softmax", &["n"], &["q"], &[("axis", 1)]),
        node("Add", &["p", "q"], &["s"], &[]),
        node("Mul", &["s", "half"], &["y"], &[]),
    ];
    place.model(mean, vec![float("y", &[0, 3])], vec![]);
    let of = |z: &Vec<f64>| {
        let (p, q) = (softmax(z), softmax(&z.iter().map(|z| -z).collect::<Vec<_>>()));
        p.iter().zip(q).map(|(p, q)| (p + q) / 2.0).collect()
    };
    let p: Vec<Vec<f64>> = place.z().iter().map(of).collect();
    let note = place.works("mean of two", &p, None, &[]);
    assert!(note.contains("no logits were found behind them: their logarithms are taken"), "{note}");
    let (shown, _) = place.succeeds(&["gradcheck", "model.onnx"]);
    assert!(shown.contains(" 0 off"), "{shown}");
}

#[test]
fn what_is_no_class_scores_is_refused() {
    let place = Place::new(3, 3);
    place.model(vec![node("Softmax", &["z"], &["y"], &[("axis", 0)])], vec![float("y", &[0, 3])], vec![]);
    for command in place.commands(&[]) {
        let said = place.fails(&command);
        assert!(said.contains("Softmax `the_y`: it runs over axis 0") && said.contains("--logits 'z'"), "{said}");
    }
    place.model(vec![node("Sigmoid", &["z"], &["y"], &[])], vec![float("y", &[0, 3])], vec![]);
    for command in place.commands(&[]) {
        let said = place.fails(&command);
        assert!(said.contains("3 independent probabilities a sample") && said.contains("--logits 'z'"), "{said}");
    }
    let p: Vec<Vec<f64>> = place.z().iter().map(|z| softmax(z)).collect();
    place.works("named", &p, Some(&gradient(&p, &place.labels())), &["--logits", "z"]);
    let said = place.fails(&place.commands(&["--logits", "nothing"])[0]);
    assert!(said.contains("no output `nothing`"), "{said}");
}

/// A linear layer that hands on its input is not known to give probabilities until it is fed some.
#[test]
fn probabilities_never_reach_the_loss_on_real_data() {
    let place = Place::new(2, 2);
    let rows: Vec<f64> = (0..N).flat_map(|i| [i as f64 / N as f64, 1.0 - i as f64 / N as f64, 0.0, 0.0]).collect();
    let first = [1.0, 0.0, 0.0, 1.0, 0.37, -0.82, -0.59, 0.21];
    let eye = to_proto("eye", &Tensor::from_f64(DType::F32, &[FEATURES, 2], &first));
    place.model(vec![node("MatMul", &["x", "eye"], &["y"], &[])], vec![float("y", &[0, 2])], vec![eye]);
    let x = Tensor::from_f64(DType::F32, &[N, FEATURES], &rows);
    let labels = Tensor::new(&[N], &place.labels()).expect("fits");
    let arrays = [("x", &x), ("labels", &labels), ("test_x", &x), ("test_labels", &labels)];
    write_npz(&place.path("data.npz"), &arrays.map(|(n, t)| (n.to_owned(), t.clone())).into()).expect("writes");
    for command in place.commands(&[]) {
        let said = place.fails(&command);
        assert!(said.contains("output `y` is probabilities") && said.contains("--logits"), "{said}");
    }
    assert!(!place.path("run").exists(), "a refused run leaves nothing");
}

#[test]
fn an_embedding_beside_the_logits_is_passed_over() {
    let place = Place::new(3, 3);
    let layer = to_proto(
        "u",
        &Tensor::from_f64(DType::F32, &[FEATURES, 6], &(0..24).map(|i| (i as f64).sin()).collect::<Vec<_>>()),
    );
    let tail = vec![node("MatMul", &["x", "u"], &["e"], &[]), node("Relu", &["e"], &["embedding"], &[])];
    place.model(tail, vec![float("embedding", &[0, 6]), float("z", &[0, 3])], vec![layer]);
    let p: Vec<Vec<f64>> = place.z().iter().map(|z| softmax(z)).collect();
    let note = place.works("embedding", &p, Some(&gradient(&p, &place.labels())), &[]);
    assert!(note.contains("output `z` is taken for the class scores, not `embedding` (--logits chooses)"), "{note}");
    let (shown, _) = place.succeeds(&["inspect", "model.onnx", "--logits", "embedding"]);
    assert!(shown.contains("logits  embedding: 6 classes"), "{shown}");
}

#[test]
fn outputs_without_numbers_are_passed_over_and_stay_in_the_file() {
    let place = Place::new(3, 3);
    let classes = ["eggs", "ham", "spam"];
    let tail = vec![
        node("Softmax", &["z"], &["p"], &[("axis", 1)]),
        node("ArgMax", &["p"], &["best"], &[("axis", 1)]),
        node("ml.ArrayFeatureExtractor", &["classes", "best"], &["found"], &[]),
        node("Reshape", &["found", "all"], &["label"], &[]),
        with_strings(node("ml.ZipMap", &["p"], &["probabilities"], &[]), "classlabels_strings", &classes),
    ];
    let label = info("label", tensor_type(DType::Str.onnx(), &[0]));
    place.model(tail, vec![label, maps("probabilities")], vec![strings("classes", &classes)]);
    let p: Vec<Vec<f64>> = place.z().iter().map(|z| softmax(z)).collect();
    place.works("maps", &p, Some(&gradient(&p, &place.labels())), &[]);
    place.succeeds(&["verify", "run/model.onnx"]);
    place.succeeds(&["build", "model.onnx", "--batch", "4", "-o", "stages"]);
    let (shown, _) = place.succeeds(&["inspect", "model.onnx"]);
    assert!(shown.contains("sequence of maps"), "{shown}");
    assert!(shown.contains("label, probabilities passed over in training, and kept in the file"), "{shown}");
}

#[test]
fn classical_operators_and_strings_are_refused_in_words() {
    let place = Place::new(2, 2);
    let floats = |name: &str, values: &[f32]| AttributeProto {
        name: name.into(),
        floats: values.to_vec(),
        type_: EnumOrUnknown::new(AttributeType::FLOATS),
        ..Default::default()
    };
    let mut linear = node("ml.LinearClassifier", &["x"], &["label", "y"], &[]);
    linear.attribute.push(floats("coefficients", &[0.5, -0.5, 1.0, 2.0, -0.5, 0.5, -1.0, -2.0]));
    linear.attribute.push(floats("intercepts", &[0.1, -0.1]));
    linear.attribute.push(AttributeProto {
        name: "classlabels_ints".into(),
        ints: vec![0, 1],
        type_: EnumOrUnknown::new(AttributeType::INTS),
        ..Default::default()
    });
    let label = info("label", tensor_type(DType::I64.onnx(), &[0]));
    place.model(vec![linear], vec![label, float("y", &[0, 2])], vec![]);
    let [_, train, _] = place.commands(&[]);
    let said = place.fails(&train);
    assert!(said.contains("ai.onnx.ml.LinearClassifier `the_label`: its weights are attributes"), "{said}");

    let lookup = with_strings(node("ml.LabelEncoder", &["names"], &["numbers"], &[]), "keys_strings", &["a", "b"]);
    let add = node("Add", &["z", "numbers"], &["y"], &[]);
    place.model(vec![lookup, add], vec![float("y", &[0, 2])], vec![strings("names", &["a", "b"])]);
    let said = place.fails(&train);
    assert!(said.contains("initializer `names`: it holds strings"), "{said}");
}
