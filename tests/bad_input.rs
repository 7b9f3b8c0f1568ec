//! Damaged and hostile files: an error that names file and cause, never a panic.

use crate::common::repo;
use bisam::onnx::import;
use onnx_protobuf::{Message, ModelProto};
use std::path::PathBuf;

/// The folder, which goes with it, and the path.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(bytes: &[u8]) -> File {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bad.onnx");
    std::fs::write(&path, bytes).expect("written");
    File { _folder: folder, path }
}

fn refused(file: &File, cause: &str) {
    let error = import(&file.path).expect_err("refused").to_string();
    assert!(error.contains("bad.onnx") && error.contains(cause), "{error}");
}

fn changed(change: impl FnOnce(&mut ModelProto)) -> File {
    let bytes = std::fs::read(repo("models/mlp.onnx")).expect("a model");
    let mut proto = ModelProto::parse_from_bytes(&bytes).expect("parses");
    change(&mut proto);
    file(&proto.write_to_bytes().expect("encodes"))
}

#[test]
fn damaged_files_are_refused() {
    let whole = std::fs::read(repo("models/mlp.onnx")).expect("a model");
    refused(&file(&[]), "empty");
    refused(&file(&whole[..whole.len() / 2]), "cut short");
    let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    refused(&file(&noise), "not an ONNX model");
    refused(&changed(|m| m.graph.clear()), "no graph");
    let missing = import("/nowhere/model.onnx").expect_err("refused").to_string();
    assert!(missing.contains("/nowhere/model.onnx"), "{missing}");
}

#[test]
fn malformed_graphs_are_refused_by_node() {
    let cyclic = changed(|m| {
        let last = m.graph.node.last().expect("a node").output[0].clone();
        m.graph.as_mut().expect("a graph").node[0].input[0] = last;
    });
    refused(&cyclic, "cycle");
    let unmade = changed(|m| m.graph.as_mut().expect("a graph").node[0].input[0] = "ghost".into());
    refused(&unmade, "`ghost`, which nothing makes");
    let negative = changed(|m| m.graph.as_mut().expect("a graph").initializer[0].dims = vec![-3, 5]);
    refused(&negative, "not possible");
    let absurd = changed(|m| m.graph.as_mut().expect("a graph").initializer[0].dims = vec![i64::MAX, i64::MAX]);
    refused(&absurd, "not possible");
}

#[test]
fn external_data_stays_in_the_models_folder() {
    for (location, cause) in [
        ("../secret", "outside the model's folder"),
        ("/etc/passwd", "outside the model's folder"),
        ("gone.bin", "gone.bin"),
    ] {
        let external = changed(|m| {
            let init = &mut m.graph.as_mut().expect("a graph").initializer[0];
            init.raw_data.clear();
            init.data_location = protobuf::EnumOrUnknown::new(onnx_protobuf::tensor_proto::DataLocation::EXTERNAL);
            init.external_data.push(onnx_protobuf::StringStringEntryProto {
                key: "location".into(),
                value: location.into(),
                ..Default::default()
            });
        });
        refused(&external, cause);
    }
}
