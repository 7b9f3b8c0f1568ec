//! Files made for one batch size at any other: what comes out is what the file itself gives for each sample.

use crate::common::{self, engine, npz, relative};
use bisam::builder::attrs;
use bisam::data::write_npz;
use bisam::ir::{Attr, Attrs, DType, Declared, Dim, Graph, Node, Source, Tensor, Type, ValueId};
use bisam::onnx::{Weights, emit, import, save};
use bisam::trace::{Sizes, concretize};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CLASSES: usize = 3;

/// A network under construction, for batches of a fixed size.
struct Net {
    graph: Graph,
    batch: usize,
    rng: ChaCha8Rng,
}

impl Net {
    fn new(batch: usize) -> Self {
        let mut graph = Graph::default();
        graph.opsets.insert(String::new(), 18);
        Self { graph, batch, rng: ChaCha8Rng::seed_from_u64(3) }
    }

    fn input(&mut self, name: &str, dtype: DType, sample: &[usize]) -> ValueId {
        let shape = [&[self.batch], sample].concat();
        let declared = Declared { dtype, dims: Some(shape.iter().map(|d| Dim::Fixed(*d)).collect()) };
        let v = self.graph.add_value(name, Some(Type::new(dtype, &shape)), Source::Input(declared));
        self.graph.inputs.push(v);
        v
    }

    fn weight(&mut self, shape: &[usize]) -> ValueId {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| self.rng.random_range(-0.5..0.5)).collect();
        let tensor = Tensor::new(shape, &values).expect("fits");
        self.graph.add_value("weight", None, Source::Param(tensor))
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_value("ints", None, Source::Constant(Tensor::ints(values)))
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.graph.add_value("constant", None, Source::Constant(tensor))
    }

    fn several(&mut self, op: &str, inputs: &[Option<ValueId>], attrs: Attrs, outputs: usize) -> Vec<ValueId> {
        let name = format!("/{op}_{}", self.graph.nodes.len());
        let made: Vec<ValueId> = (0..outputs).map(|_| self.graph.add_value(&name, None, Source::Node)).collect();
        let (domain, outputs) = (String::new(), made.iter().copied().map(Some).collect());
        self.graph.nodes.push(Node { name, domain, op: op.into(), inputs: inputs.to_vec(), outputs, attrs });
        made
    }

    fn op(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.several(op, &inputs, attrs, 1)[0]
    }

    fn reshape(&mut self, x: ValueId, shape: &[i64]) -> ValueId {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, shape], Attrs::new())
    }

    fn transpose(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        self.op("Transpose", &[x], attrs([("perm", Attr::Ints(perm.to_vec()))]))
    }

    /// The linear layer of a head on `width` features.
    fn head(&mut self, x: ValueId, width: usize) -> ValueId {
        let (w, b) = (self.weight(&[width, CLASSES]), self.weight(&[CLASSES]));
        self.op("Gemm", &[x, w, b], Attrs::new())
    }

    /// A convolution of images [3, 4, 4] to [4, 4, 4], with Relu.
    fn convolution(&mut self) -> ValueId {
        let x = self.input("x", DType::F32, &[3, 4, 4]);
        let w = self.weight(&[4, 3, 3, 3]);
        let y = self.op("Conv", &[x, w], attrs([("pads", Attr::Ints(vec![1; 4]))]));
        self.op("Relu", &[y], Attrs::new())
    }

    fn ends(mut self, logits: ValueId) -> Self {
        self.graph.rename(logits, "logits");
        self.graph.outputs.push(logits);
        self
    }

    fn save(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.onnx");
        save(&emit(&self.graph, Weights::Initializers), &path).expect("writes");
        path
    }
}

fn axis(n: i64) -> Attrs {
    attrs([("axis", Attr::Int(n))])
}

/// Features by a Reshape that holds the batch size.
fn flattened(batch: usize) -> Net {
    let mut net = Net::new(batch);
    let y = net.convolution();
    let y = net.reshape(y, &[batch as i64, 64]);
    let logits = net.head(y, 64);
    net.ends(logits)
}

/// A Reshape that would make one row of all samples, and a mean that would hide it.
fn merged_then_averaged() -> Net {
    let mut net = Net::new(1);
    let y = net.convolution();
    let y = net.reshape(y, &[1, -1]);
    let axes = net.ints(&[1]);
    let y = net.op("ReduceMean", &[y, axes], attrs([("keepdims", Attr::Int(1))]));
    let logits = net.head(y, 1);
    net.ends(logits)
}

/// A class token before the others, and positions.
fn class_token() -> Net {
    let mut net = Net::new(1);
    let x = net.input("x", DType::F32, &[5, 8]);
    let (token, positions) = (net.weight(&[1, 1, 8]), net.weight(&[1, 6, 8]));
    let y = net.op("Concat", &[token, x], axis(1));
    let y = net.op("Add", &[y, positions], Attrs::new());
    let w = net.weight(&[8, 8]);
    let y = net.op("MatMul", &[y, w], Attrs::new());
    let y = net.op("Tanh", &[y], Attrs::new());
    let axes = net.ints(&[1]);
    let mean = net.op("ReduceMean", &[y, axes], attrs([("keepdims", Attr::Int(0))]));
    let logits = net.head(mean, 8);
    net.ends(logits)
}

/// A Squeeze that takes the batch away.
fn squeezed() -> Net {
    let mut net = Net::new(1);
    let y = net.convolution();
    let y = net.op("GlobalAveragePool", &[y], Attrs::new());
    let y = net.op("Squeeze", &[y], Attrs::new());
    let (w, b) = (net.weight(&[4, CLASSES]), net.weight(&[CLASSES]));
    let y = net.op("MatMul", &[y, w], Attrs::new());
    let y = net.op("Add", &[y, b], Attrs::new());
    let axes = net.ints(&[0]);
    let logits = net.op("Unsqueeze", &[y, axes], Attrs::new());
    net.ends(logits)
}

/// A recurrent network whose first state is a constant of zeros.
fn recurrent(batch: usize) -> Net {
    let mut net = Net::new(batch);
    let x = net.input("x", DType::F32, &[5, 3]);
    let x = net.transpose(x, &[1, 0, 2]);
    let (w, r, b) = (net.weight(&[1, 12, 3]), net.weight(&[1, 12, 4]), net.weight(&[1, 24]));
    let zeros = net.constant(Tensor::full(DType::F32, &[1, batch, 4], 0.0));
    let inputs = [Some(x), Some(w), Some(r), Some(b), None, Some(zeros)];
    let last = net.several("GRU", &inputs, attrs([("hidden_size", Attr::Int(4))]), 2)[1];
    let axes = net.ints(&[0]);
    let last = net.op("Squeeze", &[last, axes], Attrs::new());
    let logits = net.head(last, 4);
    net.ends(logits)
}

/// Attention with the tokens first: the batch lies between tokens and heads.
fn tokens_first() -> Net {
    let mut net = Net::new(1);
    let x = net.input("x", DType::F32, &[4, 6]);
    let x = net.transpose(x, &[1, 0, 2]);
    let w = net.weight(&[6, 6]);
    let q = net.op("MatMul", &[x, w], Attrs::new());
    let q = net.reshape(q, &[4, 2, 3]);
    let q = net.transpose(q, &[1, 0, 2]);
    let k = net.transpose(q, &[0, 2, 1]);
    let scores = net.op("MatMul", &[q, k], Attrs::new());
    let shares = net.op("Softmax", &[scores], axis(-1));
    let y = net.op("MatMul", &[shares, q], Attrs::new());
    let y = net.transpose(y, &[1, 0, 2]);
    let y = net.reshape(y, &[4, 6]);
    let w = net.weight(&[6, 6]);
    let y = net.op("MatMul", &[y, w], Attrs::new());
    let y = net.reshape(y, &[4, 1, 6]);
    let last = net.constant(Tensor::scalar(DType::I64, 3.0));
    let y = net.op("Gather", &[y, last], axis(0));
    let logits = net.head(y, 6);
    net.ends(logits)
}

/// A Slice of the first sample, and an Expand to one.
fn first_sample() -> Net {
    let mut net = Net::new(1);
    let x = net.input("x", DType::F32, &[6]);
    let lists = [[0], [1], [0]].map(|l| net.ints(&l));
    let y = net.op("Slice", &[&[x], lists.as_slice()].concat(), Attrs::new());
    let y = net.reshape(y, &[1, 2, 1, 3]);
    let shape = net.ints(&[1, 2, 4, 3]);
    let y = net.op("Expand", &[y, shape], Attrs::new());
    let y = net.reshape(y, &[1, 24]);
    let logits = net.head(y, 24);
    net.ends(logits)
}

/// Token ids with a mask; the features are those of the last token, found by its place and the number of the sample.
fn last_token(batch: usize) -> Net {
    let mut net = Net::new(batch);
    let (ids, mask) = (net.input("ids", DType::I64, &[5]), net.input("mask", DType::I64, &[5]));
    let table = net.weight(&[11, 6]);
    let y = net.op("Gather", &[table, ids], Attrs::new());
    let y = net.op("Tanh", &[y], Attrs::new());
    let (axes, one) = (net.ints(&[1]), net.ints(&[1]));
    let n = net.op("ReduceSum", &[mask, axes], attrs([("keepdims", Attr::Int(1))]));
    let last = net.op("Sub", &[n, one], Attrs::new());
    let samples: Vec<i64> = (0..batch as i64).collect();
    let samples = net.constant(Tensor::new(&[batch, 1], &samples).expect("fits"));
    let places = net.op("Concat", &[samples, last], axis(1));
    let y = net.op("GatherND", &[y, places], Attrs::new());
    let logits = net.head(y, 6);
    net.ends(logits)
}

/// Normalization and dropout in training form.
fn training_form() -> Net {
    let mut net = Net::new(1);
    let y = net.convolution();
    let (scale, bias) = (net.weight(&[4]), net.weight(&[4]));
    let [mean, var] =
        [0.0, 1.0].map(|v| net.graph.add_value("running", None, Source::Stat(Tensor::full(DType::F32, &[4], v))));
    let inputs = [y, scale, bias, mean, var].map(Some);
    let y = net.several("BatchNormalization", &inputs, attrs([("training_mode", Attr::Int(1))]), 3)[0];
    let ratio = net.constant(Tensor::scalar(DType::F32, 0.5));
    let on = net.constant(Tensor::scalar(DType::Bool, 1.0));
    let y = net.op("Dropout", &[y, ratio, on], Attrs::new());
    let y = net.reshape(y, &[1, 64]);
    let logits = net.head(y, 64);
    net.ends(logits)
}

/// Every sample less the mean over the batch.
fn centred() -> Net {
    let mut net = Net::new(1);
    let x = net.input("x", DType::F32, &[8]);
    let axes = net.ints(&[0]);
    let mean = net.op("ReduceMean", &[x, axes], attrs([("keepdims", Attr::Int(1))]));
    let y = net.op("Sub", &[x, mean], Attrs::new());
    let logits = net.head(y, 8);
    net.ends(logits)
}

fn bisam(arguments: &[&str]) -> (bool, String, String) {
    let output = common::bisam().args(arguments).output().expect("starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain names")
}

/// Random inputs for `count` samples, and labels.
fn batch(net: &Net, count: usize) -> BTreeMap<String, Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut arrays = BTreeMap::new();
    for v in &net.graph.inputs {
        let ty = net.graph.ty(*v).expect("typed");
        let sample: usize = ty.shape[1..].iter().product();
        let shape = [&[count], &ty.shape[1..]].concat();
        let name = net.graph[*v].name.clone();
        let tensor = match (ty.dtype, name.as_str()) {
            (DType::F32, _) => {
                let values: Vec<f32> = (0..count * sample).map(|_| rng.random_range(-1.0..1.0)).collect();
                Tensor::new(&shape, &values)
            }
            (_, "mask") => {
                let values: Vec<i64> =
                    (0..count * sample).map(|i| i64::from(i % sample + i / sample % 3 < sample)).collect();
                Tensor::new(&shape, &values)
            }
            _ => Tensor::new(
                &shape,
                &(0..count * sample)
                    .map(|_| rng.random_range(0..if name == "classes" { 3 } else { 11 }))
                    .collect::<Vec<i64>>(),
            ),
        };
        arrays.insert(name, tensor.expect("fits"));
    }
    let labels: Vec<i64> = (0..count).map(|i| (i % CLASSES) as i64).collect();
    arrays.insert("labels".into(), Tensor::new(&[count], &labels).expect("fits"));
    arrays
}

/// Samples `from..from + n` of every array.
fn part(arrays: &BTreeMap<String, Tensor>, from: usize, n: usize) -> BTreeMap<String, Tensor> {
    let cut = |t: &Tensor| {
        let width = t.bytes().len() / t.shape()[0];
        let shape = [&[n], &t.shape()[1..]].concat();
        Tensor::from_bytes(t.dtype(), &shape, t.bytes()[from * width..(from + n) * width].to_vec()).expect("fits")
    };
    arrays.iter().map(|(name, t)| (name.clone(), cut(t))).collect()
}

/// `bisam grad` on these arrays, and what it says.
fn grad(model: &Path, arrays: &BTreeMap<String, Tensor>) -> Result<(BTreeMap<String, Tensor>, String), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("in.npz"), folder.path().join("out.npz"));
    write_npz(&input, arrays).expect("writes");
    let (done, _, said) = bisam(&["grad", text(model), "--inputs", text(&input), "-o", text(&output)]);
    if done { Ok((npz(&output), said)) } else { Err(said) }
}

/// Loss, logits and gradients of a batch are the means, and the rows, of what the file gives at its own batch size.
fn holds(what: &str, net: &Net) {
    const COUNT: usize = 8;
    let folder = tempfile::tempdir().expect("a folder");
    let model = net.save(folder.path());
    let arrays = batch(net, COUNT);
    let (all, said) = grad(&model, &arrays).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(said.contains("note: ") && said.contains("rewritten"), "{what}: {said}");
    let own: Vec<_> = (0..COUNT)
        .step_by(net.batch)
        .map(|i| grad(&model, &part(&arrays, i, net.batch)).unwrap_or_else(|e| panic!("{what}: {e}")))
        .collect();
    assert!(own.iter().all(|(_, said)| !said.contains("rewritten")), "{what}: its own batch size needs no rewriting");
    // A constant for several samples has a row of its gradient for each of them.
    for (name, got) in all.iter().filter(|(n, _)| *n != "grad/constant") {
        let parts: Vec<Vec<f32>> = own.iter().map(|(o, _)| o[name].to_f32()).collect();
        let want: Vec<f32> = if name == "logits" {
            parts.concat()
        } else {
            (0..got.len()).map(|i| parts.iter().map(|p| p[i]).sum::<f32>() / parts.len() as f32).collect()
        };
        let error = relative(&got.to_f32(), &want, 1e-3);
        assert!(error < 1e-4, "{what}: {name} is off by {error:.1e}");
    }
}

#[test]
fn a_shape_that_holds_the_batch() {
    holds("reshape", &flattened(1));
    holds("for two samples", &flattened(2));
    holds("for four samples", &flattened(4));
}

#[test]
fn samples_that_would_be_merged() {
    holds("merged, then averaged", &merged_then_averaged());
    holds("squeezed", &squeezed());
    holds("only the first", &first_sample());
}

#[test]
fn constants_that_hold_the_batch() {
    holds("class token", &class_token());
    holds("first state", &recurrent(1));
    holds("first states of two", &recurrent(2));
}

#[test]
fn a_batch_that_is_not_the_first_dimension() {
    holds("tokens first", &tokens_first());
}

#[test]
fn indices_that_count_samples() {
    holds("last token", &last_token(1));
    holds("last token of two", &last_token(2));
}

#[test]
fn training_form_is_compared_in_evaluation_mode() {
    holds("training form", &training_form());
}

/// The input `v` with a batch dimension that is left open.
fn left_open(net: &mut Net, v: ValueId) {
    net.graph[v].ty = None;
    if let Source::Input(Declared { dims: Some(dims), .. }) = &mut net.graph[v].source {
        dims[0] = Dim::Symbol("batch".into());
    }
}

#[test]
fn a_batch_that_is_open_in_name_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut net = flattened(1);
    let arrays = batch(&net, 4);
    let fixed = grad(&net.save(folder.path()), &arrays).expect("runs").0;
    let x = net.graph.inputs[0];
    left_open(&mut net, x);
    let (open, said) = grad(&net.save(folder.path()), &arrays).expect("runs");
    assert!(said.contains("note: the file is made for batches of 1"), "{said}");
    assert_eq!(open["logits"], fixed["logits"]);
}

#[test]
fn noise_of_one_sample_becomes_noise_of_each() {
    let mut net = Net::new(1);
    let y = net.convolution();
    let drawn = net.op("RandomUniform", &[], attrs([("shape", Attr::Ints(vec![1; 4]))]));
    let half = net.constant(Tensor::scalar(DType::F32, 0.5));
    let kept = net.op("Less", &[drawn, half], Attrs::new());
    let kept = net.op("Cast", &[kept], attrs([("to", Attr::Int(1))]));
    let y = net.op("Mul", &[y, kept], Attrs::new());
    let y = net.reshape(y, &[1, 64]);
    let logits = net.head(y, 64);
    let mut graph = net.ends(logits).graph;
    concretize(&mut graph, &Sizes::batch(4), &engine()).expect("concretizes");
    let drawn = graph.nodes.iter().find(|n| n.op.starts_with("RandomUniform")).and_then(|n| n.output(0));
    assert_eq!(graph.ty(drawn.expect("drawn")).expect("typed").shape, [4, 1, 1, 1]);
}

#[test]
fn a_loss_of_the_model_is_the_mean_over_the_batch_or_said_to_be_a_sum() {
    for (reduction, is_sum) in [("mean", false), ("sum", true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut net = Net::new(1);
        let y = net.convolution();
        let classes = net.input("classes", DType::I64, &[]);
        let y = net.reshape(y, &[1, 64]);
        let logits = net.head(y, 64);
        let of = attrs([("reduction", Attr::Str(reduction.into()))]);
        let loss = net.op("SoftmaxCrossEntropyLoss", &[logits, classes], of);
        let mut net = net.ends(logits);
        net.graph.rename(loss, "loss");
        net.graph.outputs.push(loss);
        let (_, said) = grad(&net.save(folder.path()), &batch(&net, 4)).expect("runs");
        assert!(said.contains("1 place that holds this size was rewritten"), "{said}");
        assert_eq!(said.contains("output `loss` is a sum over the samples"), is_sum, "{said}");
    }
}

#[test]
fn samples_that_depend_on_each_other_are_refused_with_what_to_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let net = centred();
    let model = net.save(folder.path());
    let said = grad(&model, &batch(&net, 4)).expect_err("refused");
    assert!(said.contains("model.onnx: ReduceMean `/ReduceMean_0`: the file is made for batches of 1"), "{said}");
    assert!(said.contains("hint: ") && said.contains("dynamic_shapes={\"x\": {0: \"batch\"}}"), "{said}");
    assert!(said.contains("dynamic_axes={\"x\": {0: \"batch\"}}"), "{said}");
}

#[test]
fn in_a_file_of_any_batch_size_they_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut net = centred();
    let x = net.graph.inputs[0];
    left_open(&mut net, x);
    let model = net.save(folder.path());
    net.graph[x].ty = Some(Type::new(DType::F32, &[1, 8]));
    let (_, said) = grad(&model, &batch(&net, 4)).expect("runs");
    assert!(
        said.contains("note: what the model gives for a sample in `logits` depends on the other samples"),
        "{said}"
    );
}

#[test]
fn every_command_takes_such_a_file_and_training_leaves_its_batch_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let net = flattened(1);
    let model = net.save(folder.path());
    let data = folder.path().join("data.npz");
    write_npz(&data, &batch(&net, 12)).expect("writes");
    let spec = format!("npz:{}", text(&data));
    let (run, stages) = (folder.path().join("run"), folder.path().join("stages"));
    let trained = run.join("model.onnx");
    let train =
        ["train", text(&model), "--data", &spec, "--batch-size", "4", "--valid", "0", "--steps", "3", "-o", text(&run)];
    let commands: [&[&str]; 7] = [
        &train,
        &["eval", text(&trained), "--data", &spec, "--split", "train", "--batch-size", "5"],
        &["sharpness", text(&trained), "--data", &spec, "--split", "train", "--batch-size", "4", "-o", text(&run)],
        &["build", text(&model), "--batch", "4", "-o", text(&stages)],
        &["bench", text(&model), "--batch", "4", "--steps", "1"],
        &["verify", text(&trained)],
        &["inspect", text(&model), "--batch", "4"],
    ];
    for arguments in commands {
        let (done, shown, said) = bisam(arguments);
        assert!(done, "{arguments:?}: {said}");
        let told = format!("{shown}{said}")
            .contains("the file is made for batches of 1: 1 place that holds this size was rewritten");
        assert!(told || arguments[0] == "verify", "{arguments:?}: {shown}{said}");
    }
    let after = import(&trained).expect("imports");
    let Source::Input(declared) = &after.graph[after.graph.inputs[0]].source else { panic!("an input") };
    assert_eq!(declared.dims.as_ref().expect("a shape")[0], Dim::Fixed(1));
    assert_eq!(after.graph.nodes.len(), net.graph.nodes.len());
}
