//! Files that are no models: an error that names the cause, never a panic.

use crate::common::{engine, repo};
use bisam::onnx::import;
use bisam::trace::{Sizes, concretize};
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::tensor_shape_proto::dimension::Value;
use onnx_protobuf::{GraphProto, Message, ModelProto, NodeProto, StringStringEntryProto, type_proto};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

fn good() -> Vec<u8> {
    std::fs::read(repo("models/mlp.onnx")).expect("reads")
}

fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bad.onnx");
    std::fs::write(&path, bytes).expect("writes");
    (folder, path)
}

/// The error of importing and tracing a file; it names the file.
fn refused(path: &Path) -> String {
    let result = import(path).and_then(|model| {
        let mut graph = model.graph.clone();
        concretize(&mut graph, &Sizes::batch(2), &engine()).map_err(|e| e.in_file(path))
    });
    let e = result.expect_err("a bad file").to_string();
    assert!(e.starts_with(&path.display().to_string()), "{e}");
    e
}

/// The error of the good model after a change to its graph; it contains every part.
fn changed(change: impl FnOnce(&mut GraphProto), parts: &[&str]) {
    let mut model = ModelProto::parse_from_bytes(&good()).expect("parses");
    change(model.graph.mut_or_insert_default());
    let (_folder, path) = file(&model.write_to_bytes().expect("encodes"));
    let e = refused(&path);
    for part in parts {
        assert!(e.contains(part), "no `{part}` in: {e}");
    }
}

#[test]
fn empty_missing_and_graphless_files() {
    assert!(refused(&file(&[]).1.with_file_name("missing.onnx")).contains("missing.onnx"));
    let (_folder, path) = file(&[]);
    assert!(refused(&path).contains("empty"));
    let model = ModelProto { ir_version: 8, ..Default::default() };
    let (_folder, path) = file(&model.write_to_bytes().expect("encodes"));
    assert!(refused(&path).contains("no graph"));
    let folder = tempfile::tempdir().expect("a folder");
    refused(folder.path());
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = good();
    for n in [1, 2, 10, 100, bytes.len() / 3, bytes.len() / 2, bytes.len() - 100, bytes.len() - 1] {
        let (_folder, path) = file(&bytes[..n]);
        let e = refused(&path);
        assert!(e.contains("not an ONNX model, or cut short") || e.contains("no graph"), "{n}: {e}");
    }
}

#[test]
fn random_bytes_are_refused_and_damage_never_panics() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for n in [1, 16, 1000, 100_000] {
        let mut bytes = vec![0; n];
        rng.fill_bytes(&mut bytes);
        let (_folder, path) = file(&bytes);
        let e = refused(&path);
        assert!(e.contains("not an ONNX model, or cut short"), "{n}: {e}");
    }
    let good = std::fs::read(repo("models/tiny_bn.onnx")).expect("reads");
    for _ in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        let (_folder, path) = file(&bytes);
        // Damage to a weight goes unseen; any other is an error.
        let _ = import(&path);
    }
}

#[test]
fn unknown_operators_are_named() {
    changed(
        |g| {
            g.node[0].op_type = "NoSuchOperator".into();
            g.node[0].name = "first".into();
        },
        &["NoSuchOperator", "first"],
    );
}

#[test]
fn a_cycle_is_named() {
    changed(
        |g| {
            let node = |name: &str, input: &str, output: &str| NodeProto {
                name: name.into(),
                op_type: "Relu".into(),
                input: vec![input.into()],
                output: vec![output.into()],
                ..Default::default()
            };
            g.node.push(node("round", "b", "a"));
            g.node.push(node("about", "a", "b"));
        },
        &["cycle", "round"],
    );
}

#[test]
fn values_that_nothing_makes_or_two_make() {
    changed(|g| g.node[1].input[0] = "nobody".into(), &["nobody"]);
    changed(
        |g| {
            let copy = g.node[0].clone();
            g.node.push(copy);
        },
        &["made twice"],
    );
    changed(|g| g.output[0].name = "nowhere".into(), &["nowhere"]);
}

#[test]
fn impossible_dimensions() {
    for dims in [vec![-3], vec![i64::MIN], vec![i64::MAX, i64::MAX], vec![1 << 40], vec![0]] {
        changed(
            |g| {
                g.initializer[0].name = "weight0".into();
                g.initializer[0].dims = dims;
            },
            &["weight0"],
        );
    }
    for n in [-7, 1 << 40, i64::MAX] {
        changed(
            |g| {
                let ty = g.input[0].type_.mut_or_insert_default();
                if let Some(type_proto::Value::TensorType(t)) = &mut ty.value {
                    t.shape.mut_or_insert_default().dim[1].value = Some(Value::DimValue(n));
                }
            },
            &[&n.to_string()],
        );
    }
}

/// The good model with its first weight, called `outside`, in the data file `location`.
fn external(location: &str, extra: &[(&str, &str)]) -> (tempfile::TempDir, std::path::PathBuf) {
    let mut model = ModelProto::parse_from_bytes(&good()).expect("parses");
    let graph = model.graph.mut_or_insert_default();
    let tensor = &mut graph.initializer[0];
    tensor.name = "outside".into();
    tensor.raw_data.clear();
    tensor.data_location = protobuf::EnumOrUnknown::new(DataLocation::EXTERNAL);
    let entry = |k: &str, v: &str| StringStringEntryProto { key: k.into(), value: v.into(), ..Default::default() };
    tensor.external_data = vec![entry("location", location)];
    tensor.external_data.extend(extra.iter().map(|(k, v)| entry(k, v)));
    file(&model.write_to_bytes().expect("encodes"))
}

#[test]
fn external_data_stays_in_the_models_folder() {
    let elsewhere = tempfile::NamedTempFile::new().expect("a file");
    let absolute = elsewhere.path().display().to_string();
    let up = format!("../{}", elsewhere.path().file_name().expect("a name").to_string_lossy());
    for location in [up.as_str(), absolute.as_str(), "../../etc/passwd", "a/../../b", "/etc/passwd"] {
        let (_folder, path) = external(location, &[]);
        let e = refused(&path);
        assert!(e.contains("outside") && e.contains("points outside the model's folder"), "{e}");
    }
    #[cfg(unix)]
    {
        let (folder, path) = external("link.data", &[]);
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("link.data")).expect("links");
        assert!(refused(&path).contains("points outside"));
    }
}

#[test]
fn external_data_that_is_missing_or_short() {
    let (_folder, path) = external("gone.data", &[]);
    let e = refused(&path);
    assert!(e.contains("gone.data") && e.contains("outside"), "{e}");
    for extra in [&[][..], &[("offset", "18446744073709551615")], &[("length", "4")], &[("offset", "-1")]] {
        let (folder, path) = external("short.data", extra);
        std::fs::write(folder.path().join("short.data"), [0; 8]).expect("writes");
        assert!(refused(&path).contains("outside"));
    }
}
