//! Weights back into the user's file.

use crate::common::{engine, repo};
use bisam::adapt::{Mode, replace_head, set_mode};
use bisam::export::{export, fresh, verify, with_values};
use bisam::ir::{DType, Declared, Dim, Graph, Source, Tensor};
use bisam::onnx::{Model, Weights, emit, import, save, to_tensor};
use bisam::trace::{Sizes, concretize};
use onnx_protobuf::{Message, ModelProto};
use std::collections::{BTreeMap, HashSet};

/// Every model of the repository.
fn models() -> Vec<Model> {
    let mut paths: Vec<_> = std::fs::read_dir(repo("models"))
        .expect("models")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 10);
    paths.iter().map(|p| import(p).expect("imports")).collect()
}

fn name(model: &Model) -> String {
    model.path.file_stem().expect("a name").to_string_lossy().into_owned()
}

/// The values that parameters and statistics have in the file.
fn own_values(graph: &Graph) -> BTreeMap<String, Tensor> {
    let stored = |v| match &graph[v].source {
        Source::Param(t) | Source::Stat(t) => Some((graph[v].name.clone(), t.clone())),
        _ => None,
    };
    graph.value_ids().filter_map(stored).collect()
}

fn inputs(graph: &Graph, batch: usize) -> Vec<(String, Tensor)> {
    let input = |v: &bisam::ir::ValueId| {
        let Source::Input(Declared { dtype, dims }) = &graph[*v].source else { panic!("an input") };
        let dims = dims.as_ref().expect("a rank");
        let size = |(i, d): (usize, &Dim)| match d {
            Dim::Fixed(n) => *n,
            _ => {
                if i == 0 {
                    batch
                } else {
                    16
                }
            }
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let n: usize = shape.iter().product();
        let value = |i: usize| if *dtype == DType::F32 { ((i * 7919 % 1000) as f64) / 500.0 - 1.0 } else { 1.0 };
        (graph[*v].name.clone(), Tensor::from_f64(*dtype, &shape, &(0..n).map(value).collect::<Vec<_>>()))
    };
    graph.inputs.iter().map(input).collect()
}

fn run(proto: &ModelProto, inputs: &[(String, Tensor)]) -> Vec<Tensor> {
    let bytes = proto.write_to_bytes().expect("encodes");
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    engine().compile_model(&bytes).and_then(|mut s| s.run(&inputs)).expect("runs")
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.to_f64().iter().zip(b.to_f64()).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

#[test]
fn a_models_own_values_change_nothing() {
    for model in models() {
        let own = own_values(&model.graph);
        assert!(!own.is_empty());
        assert!(with_values(&model, &own).expect("exports") == model.proto, "{}", name(&model));
    }
}

/// What the model computes in evaluation mode, without the exporter.
fn evaluated(model: &Model, inputs: &[(String, Tensor)]) -> Vec<Tensor> {
    let shapes = inputs.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
    let batch = inputs[0].1.shape()[0];
    let mut graph = model.graph.clone();
    concretize(&mut graph, &Sizes { batch, shapes, ..Sizes::default() }, &engine()).expect("concretizes");
    set_mode(&mut graph, Mode::Eval).expect("evaluation mode");
    run(&emit(&graph, Weights::Initializers), inputs)
}

#[test]
fn exported_files_compute_what_evaluation_does_at_any_batch_size() {
    for model in models() {
        let exported = export(&model, &own_values(&model.graph)).expect("exports");
        let (before, after) = (&model.proto.graph, &exported.graph);
        assert!(before.input == after.input && before.output == after.output, "{}: declared types", name(&model));
        let training =
            |n: &&onnx_protobuf::NodeProto| n.attribute.iter().any(|a| a.name == "training_mode" && a.i == 1);
        assert_eq!(after.node.iter().filter(training).count(), 0);
        assert!(after.node.iter().filter(|n| n.op_type == "BatchNormalization").all(|n| n.output.len() == 1));
        for batch in [2, 5] {
            let inputs = inputs(&model.graph, batch);
            for (ours, want) in run(&exported, &inputs).iter().zip(evaluated(&model, &inputs)) {
                let scale = want.to_f64().iter().fold(1.0f64, |m, v| m.max(v.abs()));
                let d = difference(ours, &want);
                assert!(d <= 1e-5 * scale, "{} at {batch}: {d:e} of {scale}", name(&model));
            }
        }
    }
}

#[test]
fn merged_parameters_get_initializers_of_their_own() {
    for file in ["bert", "vit", "vit_dynamo", "bert_dynamo"] {
        let model = import(repo(&format!("models/{file}.onnx"))).expect("imports");
        let (graph, untied) = (&model.graph, &model.untied);
        assert!(untied.len() > 5, "{file}: {}", untied.len());
        let mut values = own_values(graph);
        let untied: Vec<_> = untied.iter().filter(|u| values.contains_key(&u.name)).collect();
        for (i, u) in untied.iter().enumerate() {
            let old = &values[&u.name];
            let new = Tensor::full(DType::F32, old.shape(), 1.5 + i as f64 / 100.0);
            values.insert(u.name.clone(), new);
        }
        let exported = export(&model, &values).expect("exports");
        let mut stored: BTreeMap<&str, Tensor> = BTreeMap::new();
        for i in &exported.graph.initializer {
            assert!(stored.insert(&i.name, to_tensor(i).expect("a tensor")).is_none(), "{file}: {} twice", i.name);
        }
        for u in &untied {
            assert_eq!(stored[u.name.as_str()], values[&u.name], "{file}: {}", u.name);
            assert_eq!(stored[u.merged.as_str()], values[&u.merged], "{file}: {}", u.merged);
        }
        let identities = |p: &ModelProto| p.graph.node.iter().filter(|n| n.op_type == "Identity").count();
        let through: HashSet<&String> = untied.iter().flat_map(|u| &u.through).collect();
        assert!(identities(&exported) + through.len() <= identities(&model.proto) + untied.len());
        // The same weights through the graph itself.
        let mut moved = graph.clone();
        for (name, tensor) in &values {
            let v = moved.find(name).expect("a parameter");
            moved.set_source(v, Source::Param(tensor.clone()));
        }
        let inputs = inputs(&model.graph, 3);
        let want = evaluated(&Model { graph: moved, ..model.clone() }, &inputs);
        let d = difference(&run(&exported, &inputs)[0], &want[0]);
        assert!(d < 1e-4, "{file}: {d:e}");
    }
}

#[test]
fn a_frozen_parameter_does_not_follow_the_one_it_was_merged_into() {
    let model = import(repo("models/vit.onnx")).expect("imports");
    let (graph, untied) = (&model.graph, &model.untied);
    let u = &untied[0];
    let old = graph.tensor(graph.find(&u.merged).expect("merged")).expect("stored").clone();
    let new = Tensor::full(DType::F32, old.shape(), 0.25);
    let exported = export(&model, &BTreeMap::from([(u.merged.clone(), new.clone())])).expect("exports");
    let stored =
        |n: &str| to_tensor(exported.graph.initializer.iter().find(|i| i.name == n).expect("stored")).expect("read");
    assert_eq!(stored(&u.merged), new);
    assert_eq!(stored(&u.name), old);
}

#[test]
fn a_new_head_changes_the_declared_shapes() {
    let mut replaced = 0;
    for model in models() {
        let mut graph = model.graph.clone();
        // A head whose parameters are merged with others cannot be replaced.
        if replace_head(&mut graph, None, 7, 0).is_err() {
            continue;
        }
        replaced += 1;
        let model = Model { graph, ..model };
        let exported = export(&model, &own_values(&model.graph)).expect("exports");
        let reread = tempfile::tempdir().expect("a folder");
        let path = reread.path().join("m.onnx");
        save(&exported, &path).expect("saves");
        let again = import(&path).expect("imports");
        let logits = run(&again.proto, &inputs(&model.graph, 3)).remove(0);
        assert_eq!(logits.shape(), [3, 7], "{}", name(&model));
        let text = format!("{:?}", exported.graph.output[0].type_);
        assert!(text.contains("DimValue(7)") && !text.contains("DimValue(10)"), "{}: {text}", name(&model));
    }
    assert!(replaced >= 8, "{replaced}");
}

#[test]
fn parameters_in_constant_nodes_are_written_there() {
    let mut model = import(repo("models/mlp.onnx")).expect("imports");
    let graph = model.proto.graph.mut_or_insert_default();
    let tensor = graph.initializer.remove(0);
    let (name, dims) = (tensor.name.clone(), tensor.dims.iter().map(|d| *d as usize).collect::<Vec<_>>());
    let value = onnx_protobuf::AttributeProto {
        name: "value".into(),
        t: protobuf::MessageField::some(tensor),
        type_: protobuf::EnumOrUnknown::new(onnx_protobuf::attribute_proto::AttributeType::TENSOR),
        ..Default::default()
    };
    let node = onnx_protobuf::NodeProto {
        op_type: "Constant".into(),
        output: vec![name.clone()],
        attribute: vec![value],
        ..Default::default()
    };
    graph.node.insert(0, node);
    let new = Tensor::full(DType::F32, &dims, 0.125);
    let exported = export(&model, &BTreeMap::from([(name, new.clone())])).expect("exports");
    assert_eq!(to_tensor(&exported.graph.node[0].attribute[0].t).expect("a tensor"), new);
    run(&exported, &inputs(&model.graph, 2));
}

#[test]
fn what_is_not_in_the_file_is_refused_by_name() {
    let model = import(repo("models/mlp.onnx")).expect("imports");
    let one = Tensor::scalar(DType::F32, 1.0);
    let e = export(&model, &BTreeMap::from([("nobody".into(), one.clone())])).expect_err("refused").to_string();
    assert!(e.contains("nobody") && e.contains("mlp.onnx"), "{e}");
    let weight = model.proto.graph.initializer[0].name.clone();
    let e = export(&model, &BTreeMap::from([(weight.clone(), one)])).expect_err("refused").to_string();
    assert!(e.contains(&weight), "{e}");
}

#[test]
fn data_outside_the_file_moves_into_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut proto = import(repo("models/mlp.onnx")).expect("imports").proto;
    let original = proto.clone();
    let mut data = Vec::new();
    for tensor in &mut proto.graph.mut_or_insert_default().initializer {
        let bytes = std::mem::take(&mut tensor.raw_data);
        let entry = |k: &str, v: String| onnx_protobuf::StringStringEntryProto {
            key: k.into(),
            value: v,
            ..Default::default()
        };
        tensor.external_data = vec![
            entry("location", "m.data".into()),
            entry("offset", data.len().to_string()),
            entry("length", bytes.len().to_string()),
        ];
        tensor.data_location = protobuf::EnumOrUnknown::new(onnx_protobuf::tensor_proto::DataLocation::EXTERNAL);
        data.extend(bytes);
    }
    std::fs::write(folder.path().join("m.data"), &data).expect("writes");
    let path = folder.path().join("m.onnx");
    save(&proto, &path).expect("saves");
    let model = import(&path).expect("imports");
    let exported = export(&model, &BTreeMap::new()).expect("exports");
    assert!(exported.graph.initializer.iter().all(|i| i.external_data.is_empty()));
    let inputs = inputs(&model.graph, 2);
    assert_eq!(run(&exported, &inputs), run(&original, &inputs));
    assert!(verify(&engine(), &path, None, 2, 1e-4).expect("runs").agrees);
}

#[test]
fn tract_agrees_about_exported_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut wrong = Vec::new();
    for model in models() {
        let exported = export(&model, &own_values(&model.graph)).expect("exports");
        let path = folder.path().join(format!("{}.onnx", name(&model)));
        save(&exported, &path).expect("saves");
        match verify(&engine(), &path, None, 3, 1e-4) {
            Ok(v) if v.agrees => println!("{}: {:.1e}", name(&model), v.max_difference),
            Ok(v) => wrong.push(format!("{}: {v:?}", name(&model))),
            Err(e) => wrong.push(e.to_string()),
        }
        assert!(verify(&engine(), &path, Some(&path), 3, 0.0).expect("runs").agrees);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_operator_that_tract_lacks_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut proto = import(repo("models/mlp.onnx")).expect("imports").proto;
    let graph = proto.graph.mut_or_insert_default();
    // The determinant of logitsᵀ · logits.
    let logits = graph.output[0].name.clone();
    for (op, inputs, output) in
        [("Transpose", vec![&*logits], "t"), ("MatMul", vec!["t", &*logits], "m"), ("Det", vec!["m"], "d")]
    {
        graph.node.push(onnx_protobuf::NodeProto {
            op_type: op.into(),
            input: inputs.into_iter().map(str::to_owned).collect(),
            output: vec![output.into()],
            ..Default::default()
        });
    }
    graph.output[0].name = "d".into();
    if let Some(onnx_protobuf::type_proto::Value::TensorType(t)) =
        &mut graph.output[0].type_.mut_or_insert_default().value
    {
        t.shape.clear();
    }
    let path = folder.path().join("m.onnx");
    save(&proto, &path).expect("saves");
    let e = verify(&engine(), &path, None, 2, 1e-4).expect_err("tract lacks it");
    assert!(e.to_string().ends_with("m.onnx: tract has no operator Det"), "{e}");
    assert!(e.hint_text().is_some_and(|h| h.contains("--against")));
    assert!(verify(&engine(), &path, Some(&path), 2, 0.0).expect("runs").agrees);
}

#[test]
fn a_training_mode_file_is_not_compared_with_tract() {
    let e = verify(&engine(), &repo("models/tiny_bn.onnx"), None, 2, 1e-4).expect_err("it is in training mode");
    assert!(e.to_string().contains("BatchNormalization") && e.to_string().contains("training mode"), "{e}");
}

#[test]
fn verify_sees_a_changed_weight() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = import(repo("models/mlp.onnx")).expect("imports");
    let path = folder.path().join("other.onnx");
    save(&with_values(&model, &fresh(&model.graph, 5)).expect("exports"), &path).expect("saves");
    let verdict = verify(&engine(), &model.path, Some(&path), 3, 1e-4).expect("runs");
    assert!(!verdict.agrees && verdict.max_difference > 1e-3, "{verdict:?}");
    let other = verify(&engine(), &model.path, Some(&repo("models/lenet.onnx")), 3, 1e-4);
    assert!(other.is_ok_and(|v| !v.agrees));
}

#[test]
fn fresh_weights_keep_the_mode_and_give_finite_logits() {
    for model in models() {
        let graph = &model.graph;
        let values = fresh(graph, 3);
        let proto = with_values(&model, &values).expect("exports");
        let training = |p: &ModelProto| {
            p.graph.node.iter().flat_map(|n| &n.attribute).filter(|a| a.name == "training_mode" && a.i == 1).count()
        };
        assert_eq!(training(&proto), training(&model.proto), "{}", name(&model));
        let logits = run(&proto, &inputs(&model.graph, 3)).remove(0).to_f64();
        let largest = logits.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(largest.is_finite() && largest > 1e-6 && largest < 20.0, "{}: {largest}", name(&model));
        if name(&model) != "lenet" {
            continue;
        }
        // PyTorch initialized these weights with the defaults that are drawn here.
        for (weight, tensor) in values.iter().filter(|(_, t)| t.shape().len() >= 2 && t.len() > 500) {
            let spread = |t: &Tensor| (t.to_f64().iter().map(|v| v * v).sum::<f64>() / t.len() as f64).sqrt();
            let old = graph.tensor(graph.find(weight).expect("there")).expect("stored");
            let ratio = spread(tensor) / spread(old);
            assert!((ratio - 1.0).abs() < 0.1, "{weight}: {ratio}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.onnx");
    std::fs::write(&out, b"old").expect("writes");
    // A limit on file sizes stands in for a full disk; the signal it sends is ignored, so that the write fails.
    let status = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_bisam"), "init"])
        .arg(repo("models/resnet20.onnx"))
        .args(["--seed", "1", "-o"])
        .arg(&out)
        .output()
        .expect("starts");
    let stderr = String::from_utf8_lossy(&status.stderr);
    assert_eq!(status.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains("out.onnx"), "{stderr}");
    assert_eq!(std::fs::read(&out).expect("reads"), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
}

#[test]
fn a_missing_folder_is_an_error() {
    let model = import(repo("models/mlp.onnx")).expect("imports");
    let folder = tempfile::tempdir().expect("a folder");
    let e = save(&model.proto, &folder.path().join("none/out.onnx")).expect_err("no folder").to_string();
    assert!(e.contains("none/out.onnx"), "{e}");
    // A folder of the file's name cannot be replaced.
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).expect("makes");
    assert!(save(&model.proto, &taken).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
}

#[cfg(unix)]
#[test]
fn a_new_file_is_readable_as_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, other) = (folder.path().join("ours"), folder.path().join("other"));
    bisam::files::write_atomically(&ours, b"x").expect("writes");
    std::fs::write(&other, b"x").expect("writes");
    let mode = |p| std::fs::metadata(p).expect("is there").permissions().mode();
    assert_eq!(mode(&ours), mode(&other));
}
