//! Heads appended to models that end in an embedding.

use crate::common::{engine, repo};
use bisam::adapt::{Appended, append_head, replace_head};
use bisam::export::verify;
use bisam::ir::Tensor;
use bisam::onnx::{Model, from_proto, import, save, to_tensor};
use bisam::trace::Sizes;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value};
use onnx_protobuf::{Message, ModelProto, TensorShapeProto, type_proto};
use protobuf::MessageField;
use std::collections::BTreeMap;

/// Hidden states [N, T, 64] of `models/bert.onnx`.
pub const TOKENS: &str = "/bert/bert/encoder/layer.1/output/LayerNorm/LayerNormalization_output_0";

/// Its sentence embedding [N, 64].
pub const POOLED: &str = "/bert/bert/pooler/activation/Tanh_output_0";

/// `models/bert.onnx` without its classifier, with other outputs of the ranks given.
pub fn embedder(outputs: &[(&str, usize)]) -> Model {
    let model = import(repo("models/bert.onnx")).expect("imports");
    let mut proto = model.proto;
    let graph = proto.graph.mut_or_insert_default();
    graph.node.retain(|n| n.output[0] != "logits");
    graph.initializer.retain(|i| !i.name.starts_with("bert.classifier."));
    let template = graph.output.remove(0);
    for (name, rank) in outputs {
        let mut info = template.clone();
        info.name = (*name).to_owned();
        if let Some(type_proto::Value::TensorType(t)) = &mut info.type_.mut_or_insert_default().value {
            let mut dim: Vec<Dimension> = (0..*rank).map(|_| Dimension::default()).collect();
            dim[0].value = Some(Value::DimParam("batch".into()));
            t.shape = MessageField::some(TensorShapeProto { dim, ..Default::default() });
        }
        graph.output.push(info);
    }
    from_proto(&model.path, proto).expect("imports")
}

fn append(model: &Model, name: Option<&str>, seed: u64) -> bisam::Result<Appended> {
    append_head(model, name, 3, seed, &Sizes::batch(4), &engine())
}

/// Two texts, of three tokens and of one.
fn feeds() -> BTreeMap<String, Tensor> {
    let ints = |values: [i64; 6]| Tensor::new(&[2, 3], &values).expect("a tensor");
    BTreeMap::from([
        ("input_ids".to_owned(), ints([5, 700, 31, 8, 0, 0])),
        ("attention_mask".to_owned(), ints([1, 1, 1, 1, 0, 0])),
        ("token_type_ids".to_owned(), ints([0; 6])),
    ])
}

/// Every output by name, the names in order first.
fn run(proto: &ModelProto) -> (Vec<String>, BTreeMap<String, Tensor>) {
    let feeds = feeds();
    let given: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let mut session = engine().compile_model(&proto.write_to_bytes().expect("encodes")).expect("compiles");
    let values = session.run(&given).expect("runs");
    let names = session.outputs().to_vec();
    (names.clone(), names.into_iter().zip(values).collect())
}

fn stored(model: &Model, name: &str) -> Vec<f64> {
    let found = model.proto.graph.initializer.iter().find(|i| i.name == name).expect("an initializer");
    to_tensor(found).expect("a tensor").to_f64()
}

#[test]
fn logits_are_a_linear_function_of_the_embedding_and_old_outputs_stay() {
    let both: &[(&str, usize)] = &[(TOKENS, 3), (POOLED, 2)];
    let cases = [(both, None, POOLED), (both, Some(TOKENS), TOKENS), (&both[..1], None, TOKENS)];
    for (outputs, name, from) in cases {
        let model = embedder(outputs);
        assert!(
            replace_head(&mut model.graph.clone(), Some(from), 3, 0).is_err(),
            "there is no linear layer at the end"
        );
        let made = append(&model, name, 7).expect("appends");
        assert_eq!((made.logits.as_str(), made.embedding.as_str()), ("logits", from));
        assert!(made.note.contains(from) && made.note.contains("3 classes"), "{}", made.note);
        assert_eq!(made.note.contains("attention_mask"), from == TOKENS, "{}", made.note);
        let ((_, before), (names, after)) = (run(&model.proto), run(&made.model.proto));
        assert_eq!(names[0], "logits");
        assert!(before.iter().all(|(name, value)| after[name] == *value), "{from}: an embedding changed");
        assert_eq!(names.len(), outputs.len() + 1);

        let embeddings = after[from].to_f64();
        let features: Vec<Vec<f64>> = match from {
            POOLED => embeddings.chunks(64).map(<[f64]>::to_vec).collect(),
            _ => [3, 1]
                .iter()
                .zip(embeddings.chunks(3 * 64))
                .map(|(n, text)| (0..64).map(|d| (0..*n).map(|t| text[t * 64 + d]).sum::<f64>() / *n as f64).collect())
                .collect(),
        };
        let weight = stored(&made.model, "classifier.weight");
        assert!(weight.iter().all(|w| w.abs() <= 0.125) && weight.iter().any(|w| w.abs() > 0.1), "±1/√64");
        assert_eq!(stored(&made.model, "classifier.bias"), [0.0; 3]);
        let want = features.iter().flat_map(|x| {
            weight.chunks(64).map(move |w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()).collect::<Vec<_>>()
        });
        for (got, want) in after["logits"].to_f64().into_iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{from}: {got} is not {want}");
        }
        let again = append(&model, name, 7).expect("appends");
        assert!(again.model.proto == made.model.proto, "the seed decides");
        assert!(append(&model, name, 8).expect("appends").model.proto != made.model.proto);

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.onnx");
        save(&made.model.proto, &path).expect("saves");
        let verdict = verify(&engine(), &path, None, 3, 1e-4).expect("both run it");
        assert!(verdict.agrees && verdict.outputs.len() == outputs.len() + 1, "{from}: {verdict:?}");
        assert!(replace_head(&mut made.model.graph.clone(), None, 5, 0).expect("a head like any other"));
    }
}

#[test]
fn names_that_are_taken_are_left_alone() {
    let model = embedder(&[(POOLED, 2)]);
    let mut proto = model.proto;
    let graph = proto.graph.mut_or_insert_default();
    let names = graph.node.iter_mut().flat_map(|n| &mut n.output).chain(graph.output.iter_mut().map(|o| &mut o.name));
    names.filter(|n| *n == POOLED).for_each(|n| *n = "logits".into());
    let weight = "bert.bert.pooler.dense.weight";
    let names = graph.node.iter_mut().flat_map(|n| &mut n.input);
    names.chain(graph.initializer.iter_mut().map(|i| &mut i.name)).for_each(|n| {
        if n == weight {
            *n = "classifier.weight".into();
        }
    });
    let model = from_proto(&model.path, proto).expect("imports");
    let made = append(&model, None, 0).expect("appends");
    assert_eq!((made.logits.as_str(), made.embedding.as_str()), ("logits_", "logits"));
    let (names, values) = run(&made.model.proto);
    assert_eq!(names, ["logits_", "logits"]);
    assert_eq!(values["logits_"].shape(), [2, 3]);
}

#[test]
fn images_have_embeddings_too() {
    let mut model = import(repo("models/lenet.onnx")).expect("imports");
    let graph = model.proto.graph.mut_or_insert_default();
    let last = graph.node.pop().expect("the head");
    assert_eq!(last.op_type, "Gemm");
    graph.output[0].name.clone_from(&last.input[0]);
    graph.output[0].type_.clear();
    model = from_proto(&model.path, model.proto).expect("imports");
    // Before IR version 4 initializers are inputs, too.
    for version in [8, 3] {
        model.proto.ir_version = version;
        let made = append(&model, None, 0).expect("appends");
        assert_eq!(made.model.graph.inputs.len(), 1);
        assert_eq!(made.model.proto.graph.input.len(), if version < 4 { 3 } else { 1 });
        assert!(made.model.roles.len() >= 2);
    }
}

#[test]
fn what_takes_no_head_is_an_error_with_the_outputs() {
    let model = embedder(&[(TOKENS, 3)]);
    let e = append(&model, Some("nowhere"), 0).expect_err("there is no such output");
    assert_eq!(e.cause(), "the model has no output `nowhere`");
    assert!(e.hint_text().is_some_and(|h| h.contains(TOKENS) && h.contains("f32[4,16,64]")), "{e:?}");

    // Without a mask nothing tells which tokens count.
    let mut unmasked = model.proto;
    let graph = unmasked.graph.mut_or_insert_default();
    let names = graph.node.iter_mut().flat_map(|n| &mut n.input).chain(graph.input.iter_mut().map(|i| &mut i.name));
    names.filter(|n| *n == "attention_mask").for_each(|n| *n = "m".into());
    let model = from_proto(&model.path, unmasked).expect("imports");
    let e = append(&model, None, 0).expect_err("no mask");
    assert!(e.cause().contains("no output that a head can be appended to"), "{e}");
    assert!(e.hint_text().is_some_and(|h| h.contains("attention_mask")), "{e:?}");
    let e = append(&model, Some(TOKENS), 0).expect_err("no mask");
    assert!(e.cause().contains("cannot be appended to output"), "{e}");
}
