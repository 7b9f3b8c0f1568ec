//! What a run leaves behind, as a user meets it: the right model, in a folder that can be evaluated, gone on with and repeated.

use crate::common;
use bisam::data::write_npz;
use bisam::ir::Tensor;
use bisam::onnx::{import, save, to_proto};
use onnx_protobuf::tensor_shape_proto::Dimension;
use onnx_protobuf::tensor_shape_proto::dimension::Value as Dim;
use onnx_protobuf::type_proto::{Tensor as TensorType, Value as Type};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType,
};
use protobuf::{EnumOrUnknown, MessageField};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder for models, data and runs; commands run there.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn model(&self, name: &str, nodes: Vec<NodeProto>, inputs: &[Port], outputs: &[Port], weights: &[(&str, Tensor)]) {
        let graph = GraphProto {
            name: "g".into(),
            node: nodes,
            input: inputs.iter().map(port).collect(),
            output: outputs.iter().map(port).collect(),
            initializer: weights.iter().map(|(name, value)| to_proto(name, value)).collect(),
            ..Default::default()
        };
        save(&model(graph), &self.path(name)).expect("writes");
    }

    fn data(&self, name: &str, arrays: Vec<(&str, Tensor)>) {
        let arrays: BTreeMap<String, Tensor> = arrays.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
        write_npz(&self.path(name), &arrays).expect("writes");
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = common::bisam();
        command.args(arguments.split_whitespace()).args(["--threads", "1"]).current_dir(self.0.path());
        command
    }

    fn run(&self, arguments: &str) -> Shown {
        Shown::new(arguments, self.command(arguments).output().expect("starts"))
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(file)).expect("reads")).expect("is JSON")
    }

    /// The lines of epochs in a run's metrics.
    fn epochs(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).expect("reads");
        let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).expect("is JSON"));
        lines.filter(|l| l.get("step").is_none()).collect()
    }

    fn weight(&self, file: &str, name: &str) -> Vec<f32> {
        let graph = import(self.path(file)).expect("imports").graph;
        graph.find(name).and_then(|v| graph.tensor(v)).expect("a value").to_f32()
    }

    /// Every file of a folder with its bytes.
    fn contents(&self, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.path(folder)];
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(folder).expect("lists") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    todo.push(path);
                } else {
                    found.insert(path.clone(), fs::read(path).expect("reads"));
                }
            }
        }
        found
    }
}

/// What a command printed.
struct Shown {
    arguments: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Shown {
    fn new(arguments: &str, output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            arguments: arguments.to_owned(),
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{}: {}", self.arguments, self.err);
        self
    }

    /// Failed with every part, the last of which is in the hint.
    fn refused(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{}: {}{}", self.arguments, self.out, self.err);
        let hint = self.err.lines().last().filter(|l| l.starts_with("hint: ")).unwrap_or_default();
        let last = parts.last().expect("a part");
        assert!(hint.contains(last), "{}: no `{last}` in the hint: {}", self.arguments, self.err);
        for part in parts {
            assert!(self.err.contains(part), "{}: no `{part}` in: {}", self.arguments, self.err);
        }
        self
    }

    fn says(self, part: &str) -> Self {
        assert!(
            self.out.contains(part) || self.err.contains(part),
            "{}: no `{part}` in: {}{}",
            self.arguments,
            self.out,
            self.err
        );
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{}: {e} in: {}", self.arguments, self.out))
    }
}

/// Name, type and dimensions after the batch; without any, a scalar.
type Port<'a> = (&'a str, DataType, Option<&'a [i64]>);

fn port((name, dtype, dims): &Port) -> ValueInfoProto {
    let dim = |value| Dimension { value: Some(value), ..Default::default() };
    let batch = dims.iter().map(|_| dim(Dim::DimParam("N".into())));
    let fixed = dims.iter().flat_map(|d| d.iter()).map(|d| dim(Dim::DimValue(*d)));
    let shape = TensorShapeProto { dim: batch.chain(fixed).collect(), ..Default::default() };
    let tensor = TensorType { elem_type: *dtype as i32, shape: MessageField::some(shape), ..Default::default() };
    let ty = TypeProto { value: Some(Type::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: (*name).into(), type_: MessageField::some(ty), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: format!("make_{output}"),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn with_int(mut node: NodeProto, name: &str, value: i64) -> NodeProto {
    let type_ = EnumOrUnknown::new(AttributeType::INT);
    node.attribute.push(AttributeProto { name: name.into(), i: value, type_, ..Default::default() });
    node
}

fn model(graph: GraphProto) -> ModelProto {
    let opset = OperatorSetIdProto { version: 17, ..Default::default() };
    ModelProto { ir_version: 8, opset_import: vec![opset], graph: MessageField::some(graph), ..Default::default() }
}

fn floats(shape: &[usize], value: impl Fn(usize) -> f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::new(shape, &values).expect("fits")
}

fn ints(values: impl Iterator<Item = i64>) -> Tensor {
    let values: Vec<i64> = values.collect();
    Tensor::new(&[values.len()], &values).expect("fits")
}

/// Numbers without a pattern in −1 to 1.
fn wave(i: usize) -> f32 {
    ((i as f32 * 12.9898).sin() * 43_758.547).fract()
}

/// A regression with its own mean squared error over `target`.
fn regression(place: &Place) {
    let mse = vec![
        node("MatMul", &["x", "w"], "y"),
        node("Sub", &["y", "target"], "d"),
        node("Mul", &["d", "d"], "s"),
        with_int(node("ReduceMean", &["s"], "mse"), "keepdims", 0),
    ];
    let float = DataType::FLOAT;
    let inputs: [Port; 2] = [("x", float, Some(&[4])), ("target", float, Some(&[1]))];
    let outputs: [Port; 2] = [("y", float, Some(&[1])), ("mse", float, None)];
    place.model("mse.onnx", mse, &inputs, &outputs, &[("w", floats(&[4, 1], |i| 0.01 * (i as f32 - 1.5)))]);
    // Validation wants half of what training wants, so that its loss is lowest half-way.
    let x = |n: usize, from: usize| floats(&[n, 4], |i| wave(i + from));
    let target = |x: &Tensor, scale: f32| {
        let sums: Vec<f32> = x.to_f32().chunks(4).map(|row| scale * (row[0] + row[1] - row[2])).collect();
        Tensor::new(&[sums.len(), 1], &sums).expect("fits")
    };
    let (train, valid, test) = (x(64, 0), x(21, 1000), x(19, 2000));
    let targets = (target(&train, 2.0), target(&valid, 1.0), target(&test, 1.0));
    let arrays = vec![("x", train), ("valid_x", valid), ("test_x", test)];
    let targets = vec![("target", targets.0), ("valid_target", targets.1), ("test_target", targets.2)];
    place.data("mse.npz", arrays.into_iter().chain(targets).collect());
}

/// A linear classifier of two classes, and samples that it separates; the first ones are the validation set.
fn classifier(place: &Place) {
    let float = DataType::FLOAT;
    let nodes = || vec![node("MatMul", &["x", "w"], "m"), node("Add", &["m", "b"], "logits")];
    let (inputs, outputs): ([Port; 1], [Port; 1]) = ([("x", float, Some(&[2]))], [("logits", float, Some(&[2]))]);
    let weights = [("w", floats(&[2, 2], |i| [0.05, -0.05, 0.1, 0.0][i])), ("b", floats(&[2], |_| 0.0))];
    place.model("linear.onnx", nodes(), &inputs, &outputs, &weights);
    let labels = |n: usize| ints((0..n as i64).map(|i| i % 2));
    let x = |n: usize, from: usize| {
        floats(&[n, 2], |i| if i % 2 == 0 { if i / 2 % 2 == 0 { -1.0 } else { 1.0 } } else { wave(i + from) })
    };
    let arrays = [("", 40, 0), ("valid_", 20, 500), ("test_", 20, 900)]
        .map(|(part, n, from)| [(format!("{part}x"), x(n, from)), (format!("{part}labels"), labels(n))]);
    write_npz(&place.path("linear.npz"), &arrays.into_iter().flatten().collect()).expect("writes");
    place.data("whole.npz", vec![("x", x(40, 0)), ("labels", labels(40))]);
}

const SGD: &str = "--optimizer sgd --momentum 0 --weight-decay 0 --label-smoothing 0 --schedule constant";

#[test]
fn the_epoch_of_the_lowest_own_loss_is_shipped_without_any_labels() {
    let place = Place::new();
    regression(&place);
    let train =
        format!("train mse.onnx --data npz:mse.npz --loss mse {SGD} --lr 0.03 --batch-size 8 --epochs 8 -o run");
    let shown = place.run(&train).done();
    let (summary, epochs) = (place.json("run/summary.json"), place.epochs("run"));
    let losses: Vec<f64> = epochs.iter().map(|e| e["valid_loss"].as_f64().expect("a loss")).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = losses.iter().position(|l| *l == lowest).expect("is there") as u64 + 1;
    assert!(best > 1 && best < 8, "the lowest is on the way: {losses:?}");
    assert_eq!(epochs.iter().map(|e| e["epoch"].as_u64()).collect::<Vec<_>>(), (1..=8).map(Some).collect::<Vec<_>>());
    assert_eq!((summary["metric"].as_str(), summary["best_epoch"].as_u64()), (Some("loss"), Some(best)));
    assert_eq!(summary["best_valid_loss"].as_f64(), Some(lowest));
    for absent in ["best_valid_accuracy", "test_accuracy"] {
        assert!(summary.get(absent).is_none(), "a number that nobody measured: {summary}");
    }
    assert!(epochs[0].get("accuracy").is_none() && !shown.out.contains("accuracy"), "{}", shown.out);
    shown.says(&format!("validation loss      {lowest:.4} (epoch {best})"));
    // The numbers are those of the file, short last batches included.
    for (split, key, samples) in [("valid", "best_valid_loss", 21), ("test", "test_loss", 19)] {
        let shown = place.run(&format!("eval run --split {split} --json")).done().json();
        let (found, told) = (shown["loss"].as_f64().expect("a loss"), summary[key].as_f64().expect("a loss"));
        assert!((found - told).abs() < 1e-6 * told, "{split}: {found} is not {told}");
        assert_eq!(shown["samples"], samples);
        assert!(shown.get("accuracy").is_none());
    }
    let w = place.weight("run/model.onnx", "w");
    let mse = |x: &str, t: &str| {
        let data = bisam::data::read_npz(&place.path("mse.npz")).expect("reads");
        let (x, t) = (data[x].to_f32(), data[t].to_f32());
        let error =
            |(row, t): (&[f32], &f32)| f64::from(row.iter().zip(&w).map(|(a, b)| a * b).sum::<f32>() - t).powi(2);
        x.chunks(4).zip(&t).map(error).sum::<f64>() / t.len() as f64
    };
    assert!((mse("valid_x", "valid_target") - lowest).abs() < 1e-5);
    assert_ne!(w, place.weight("run/last.onnx", "w"));
}

#[test]
fn what_needs_classes_is_refused_where_there_are_none() {
    let place = Place::new();
    regression(&place);
    let base = "train mse.onnx --data npz:mse.npz --loss mse --batch-size 8 --epochs 1 -o run";
    place.run(&format!("{base} --optimizer bisam")).refused(&["mse.onnx", "logits of classes", "--optimizer sam"]);
    place.run(&format!("{base} --optimizer bisam-tanh")).refused(&["logits of classes", "--optimizer sam"]);
    place.run(&format!("{base} --metric accuracy")).refused(&["mse.onnx", "accuracy", "--metric loss"]);
    place.run(&format!("{base} --optimizer ksam --top-k 4")).refused(&["top-k", "--logits"]);
    assert!(!place.path("run").exists(), "nothing is begun");
    place.run(&format!("{base} --optimizer sam")).done();
    place.run("eval run --split valid --per-class").refused(&["no classes", "--per-class"]);
    // Labels are asked for where they are read.
    classifier(&place);
    place.data("unlabelled.npz", vec![("x", floats(&[16, 2], wave))]);
    let train = "train linear.onnx --data npz:unlabelled.npz --batch-size 4 --epochs 1 -o other";
    place.run(train).refused(&["unlabelled.npz", "no array `labels`", "np.savez"]);
}

#[test]
fn of_equal_metrics_the_lowest_loss_wins() {
    let place = Place::new();
    classifier(&place);
    let train = format!("train linear.onnx --data npz:linear.npz {SGD} --lr 0.5 --batch-size 8 --epochs 5 -o run");
    place.run(&train).done();
    let (summary, epochs) = (place.json("run/summary.json"), place.epochs("run"));
    let of = |key: &str| epochs.iter().map(|e| e[key].as_f64().expect("is there")).collect::<Vec<_>>();
    let (accuracy, loss) = (of("valid_accuracy"), of("valid_loss"));
    assert!(accuracy[2..].iter().all(|a| *a == 1.0) && loss.is_sorted_by(|a, b| a > b), "{accuracy:?} {loss:?}");
    assert_eq!(summary["best_epoch"].as_u64(), Some(5));
    assert_eq!(summary["best_valid_loss"].as_f64(), loss.last().copied());
    assert_eq!(place.weight("run/model.onnx", "w"), place.weight("run/last.onnx", "w"));
    // `--metric loss` is there for cross-entropy, too.
    place.run(&format!("{train}2 --metric loss")).done().says("validation loss");
    assert_eq!(place.json("run2/summary.json")["metric"], "loss");
}

#[cfg(unix)]
#[test]
fn a_killed_run_has_both_models_and_goes_on() {
    let place = Place::new();
    classifier(&place);
    let train =
        format!("train linear.onnx --data npz:linear.npz {SGD} --lr 0.01 --batch-size 8 --epochs 100000 -o run");
    let mut child = place.command(&train).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let (metrics, start) = (place.path("run/metrics.jsonl"), Instant::now());
    let ended = || fs::read_to_string(&metrics).is_ok_and(|t| t.contains("valid_loss"));
    while !ended() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("is killed");
    child.wait().expect("ends");
    for file in ["run/model.onnx", "run/last.onnx"] {
        import(place.path(file)).unwrap_or_else(|e| panic!("{e}"));
    }
    assert!(!place.path("run/summary.json").exists());
    place.run("eval run").done().says("test accuracy");
    let epochs = place.epochs("run").len() + 20;
    place.run(&format!("train --resume run --epochs {epochs}")).done();
    assert_eq!(place.epochs("run").len(), epochs);
}

#[test]
fn a_finished_run_stays_as_it_is_unless_it_is_extended() {
    let place = Place::new();
    classifier(&place);
    // Five batches an epoch: seven steps end within the second one.
    let train = |steps: &str, out: &str| {
        format!("train linear.onnx --data npz:linear.npz {SGD} --lr 0.1 --batch-size 8 --log-every 1 {steps} -o {out}")
    };
    place.run(&train("--steps 7", "run")).done();
    assert_eq!(place.epochs("run").len(), 2);
    let before = place.contents("run");
    for arguments in ["train --resume run", "train --resume run --steps 7", "train --resume run --steps 3 --json"] {
        let shown = place.run(arguments).done().says("finished");
        assert!(shown.err.contains("--epochs") && shown.out.contains('7'), "{}", shown.err);
        assert!(place.contents("run") == before, "{arguments} changed something");
    }
    let seconds = place.json("run/summary.json")["seconds"].as_f64().expect("is there");
    place.run("train --resume run --epochs 4").done();
    place.run(&train("--epochs 4", "whole")).done();
    assert_eq!(place.weight("run/last.onnx", "w"), place.weight("whole/last.onnx", "w"));
    assert_eq!(place.epochs("run").len(), 4);
    let summary = place.json("run/summary.json");
    assert_eq!(summary["steps"], 20);
    assert!(summary["seconds"].as_f64().expect("is there") > seconds, "time adds up");
    let kept = |run: &str| {
        let text = fs::read_to_string(place.path(run).join("metrics.jsonl")).expect("reads");
        text.lines().map(|l| l.split(",\"samples_per_second").next().unwrap_or(l).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kept("run"), kept("whole"), "as if it had been asked for at once");
    place.run("train --resume run --epochs 3").done().says("finished");
}

#[test]
fn a_run_is_evaluated_resumed_and_repeated_from_any_folder() {
    let place = Place::new();
    classifier(&place);
    let train = format!(
        "train linear.onnx --data npz:whole.npz --valid 0.25 --seed 3 {SGD} --lr 0.1 --batch-size 8 --epochs 2"
    );
    let mut command = place.command(&format!("{train} -o runs/a"));
    Shown::new(&train, command.output().expect("starts")).done();
    let summary = place.json("runs/a/summary.json");
    fs::create_dir(place.path("elsewhere")).expect("makes");
    fs::rename(place.path("runs/a"), place.path("elsewhere/moved")).expect("moves");
    let there = |arguments: &str| {
        let output = place.command(arguments).current_dir(place.path("elsewhere")).output().expect("starts");
        Shown::new(arguments, output)
    };
    let valid = there("eval moved --split valid --json").done().json();
    let (found, told) = (valid["loss"].as_f64().expect("a loss"), summary["best_valid_loss"].as_f64().expect("a loss"));
    assert!(valid["samples"] == 10 && (found - told).abs() < 1e-6, "{valid} {summary}");
    assert_eq!(there("eval moved --split train --json").done().json()["samples"], 30);
    assert_eq!(there("eval moved/model.onnx --split valid --json").done().json(), valid);
    there("eval moved").refused(&["no test split", "--split train or --split valid"]);
    // The same data named again are split alike; other data are not split.
    let same = format!("eval moved --split valid --json --data npz:{}", place.path("whole.npz").display());
    assert_eq!(there(&same).done().json(), valid);
    assert_eq!(there("eval moved --split valid --json --data npz:../linear.npz").done().json()["samples"], 20);
    there("train --resume moved --epochs 3").done();
    there("train --recipe moved/recipe.toml --epochs 3 -o again").done();
    let w = |run: &str| place.weight(&format!("elsewhere/{run}/last.onnx"), "w");
    assert_eq!(w("moved"), w("again"));
    // What is not there is said.
    there("eval nowhere").refused(&["nowhere", ""]);
    there("train --resume nowhere").refused(&["nowhere: there is no such folder", "bisam train -o"]);
    there("eval .").refused(&["no recipe.toml", "bisam train -o"]);
    fs::rename(place.path("whole.npz"), place.path("gone.npz")).expect("moves");
    there("eval moved --split valid").refused(&["whole.npz", "gone.npz"]);
}

#[test]
fn weights_are_loaded_by_name() {
    let place = Place::new();
    classifier(&place);
    let write = |name: &str, tensors: &[(&str, Tensor)]| {
        let view = |t: &Tensor| {
            let (shape, bytes) = (t.shape().to_vec(), t.bytes().to_vec());
            (shape, bytes)
        };
        let parts: Vec<_> = tensors.iter().map(|(n, t)| (*n, view(t))).collect();
        let views = parts.iter().map(|(n, (shape, bytes))| {
            let f32 = safetensors::Dtype::F32;
            (*n, safetensors::tensor::TensorView::new(f32, shape.clone(), bytes).expect("fits"))
        });
        fs::write(place.path(name), safetensors::serialize(views, None).expect("encodes")).expect("writes");
    };
    let w = floats(&[2, 2], |i| i as f32);
    write("good.safetensors", &[("w", w.clone()), ("other", floats(&[3], wave))]);
    let train = format!("train linear.onnx --data npz:linear.npz {SGD} --lr 1e-9 --batch-size 8 --steps 1");
    let shown = place.run(&format!("{train} --weights good.safetensors -o run")).done();
    shown
        .says("1 of 2 parameters")
        .says("not in the file and keep the model's values: b")
        .says("not in the model: other");
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near(&place.weight("run/last.onnx", "w"), &w.to_f32()));
    assert!(fs::read_to_string(place.path("run/recipe.toml")).expect("reads").contains("good.safetensors"));
    write("shape.safetensors", &[("w", floats(&[2, 3], wave))]);
    let shape = place.run(&format!("{train} --weights shape.safetensors -o x"));
    shape.refused(&["shape.safetensors", "`w`", "[2, 3]", "[2, 2]", "another model"]);
    write("none.safetensors", &[("fc.weight", w)]);
    let none = place.run(&format!("{train} --weights none.safetensors -o x"));
    none.refused(&["none.safetensors", "fc.weight", "b, w"]);
    fs::write(place.path("bad.safetensors"), "bad").expect("writes");
    place.run(&format!("{train} --weights bad.safetensors -o x")).refused(&["bad.safetensors", "save_file"]);
    place.run(&format!("{train} --weights gone.safetensors -o x")).refused(&["gone.safetensors", ""]);
    assert!(!place.path("x").exists());
}

#[test]
fn a_model_that_cannot_be_exported_is_refused_before_the_first_step() {
    let place = Place::new();
    classifier(&place);
    let mut proto = import(place.path("linear.onnx")).expect("imports").proto;
    let graph = proto.graph.mut_or_insert_default();
    let at = graph.initializer.iter().position(|t| t.name == "w").expect("a weight");
    let mut values = graph.initializer.remove(at);
    values.dims = vec![4];
    let indices = to_proto("", &ints(0..4));
    graph.sparse_initializer.push(SparseTensorProto {
        values: MessageField::some(values),
        indices: MessageField::some(indices),
        dims: vec![2, 2],
        ..Default::default()
    });
    save(&proto, &place.path("sparse.onnx")).expect("writes");
    let train = format!("train sparse.onnx --data npz:linear.npz {SGD} --batch-size 8 --epochs 2 -o run");
    let shown = place.run(&train).refused(&["sparse.onnx", "parameter `w`", "sparse tensor", "dense weights"]);
    assert!(!shown.err.contains("epoch") && !place.path("run").exists(), "{}", shown.err);
}

#[test]
fn a_run_that_diverged_says_so() {
    let place = Place::new();
    regression(&place);
    let train = |data: &str, rest: &str| {
        place.run(&format!("train {data} --batch-size 8 --schedule constant --momentum 0 --weight-decay 0 {rest}"))
    };
    let mse = "mse.onnx --data npz:mse.npz --loss mse";
    // The loss grows, but stays finite.
    let shown = train(mse, "--lr 6 --epochs 2 -o grows").done();
    shown.says("diverged").says("lower --lr: 6 was too high");
    let warning = place.json("grows/summary.json")["warning"].as_str().map(str::to_owned).expect("is there");
    assert!(fs::read_to_string(place.path("grows/report.html")).expect("reads").contains(&warning));
    train(mse, "--lr 1e20 --epochs 3 -o breaks").refused(&["the loss is", "--lr"]);
    // A good run says nothing of the kind.
    train(mse, "--lr 0.1 --epochs 2 -o good").done();
    assert!(place.json("good/summary.json").get("warning").is_none());
}
