//! Tracing of files that hold their batch size.

use crate::common::engine;
use bisam::builder::{Builder, attrs};
use bisam::ir::{Attr, Attrs, DType, Declared, Dim, Graph, Source, Tensor, Type};
use bisam::trace::{Sizes, concretize};

/// Reshapes an input of shape [batch, 6] to [8, 3], which fits a batch of 4 only.
fn for_a_batch_of_four() -> Graph {
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), 17);
    let declared = Declared { dtype: DType::F32, dims: Some(vec![Dim::Fixed(4), Dim::Fixed(6)]) };
    let x = graph.add_value("x", Some(Type::new(DType::F32, &[4, 6])), Source::Input(declared));
    graph.inputs.push(x);
    let mut b = Builder::new(&mut graph, "model");
    let shape = b.ints(&[8, 3]);
    let y = b.op("Reshape", &[x, shape], Attrs::new(), Type::new(DType::F32, &[8, 3]));
    graph.outputs.push(y);
    graph
}

fn sizes(batch: usize) -> Sizes {
    Sizes { batch, shapes: [("x".to_owned(), vec![batch, 6])].into(), ..Sizes::default() }
}

#[test]
fn a_file_that_holds_its_batch_size_is_traced_at_that_size() {
    let mut graph = for_a_batch_of_four();
    concretize(&mut graph, &sizes(4), &engine()).expect("concretizes");
    assert_eq!(graph.ty(graph.outputs[0]).expect("typed").shape, [8, 3]);
}

#[test]
fn for_another_batch_size_it_is_rewritten() {
    let mut graph = for_a_batch_of_four();
    let notes = concretize(&mut graph, &sizes(6), &engine()).expect("concretizes");
    assert_eq!(graph.ty(graph.outputs[0]).expect("typed").shape, [12, 3]);
    assert!(notes.iter().any(|n| n.contains("batches of 4")), "{notes:?}");
}

/// A chain long enough to be traced in many parts, with a large weight, a value read far away and a list alive in between.
#[test]
fn a_long_graph_is_traced_in_parts() {
    const WIDTH: usize = 200;
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), 17);
    let declared = Declared { dtype: DType::F32, dims: Some(vec![Dim::Unknown, Dim::Fixed(WIDTH)]) };
    let x = graph.add_value("x", None, Source::Input(declared));
    graph.inputs.push(x);
    let weight = Tensor::full(DType::F32, &[WIDTH, WIDTH], 0.01);
    let w = graph.add_value("w", Some(weight.ty()), Source::Param(weight));
    let mut b = Builder::new(&mut graph, "model");
    let untyped = || Type::new(DType::F32, &[]);
    let list = b.op("SequenceConstruct", &[x], Attrs::new(), untyped());
    let mut y = b.op("MatMul", &[x, w], Attrs::new(), untyped());
    for i in 0..100 {
        y = b.op("Tanh", &[y], Attrs::new(), untyped());
        if i == 40 {
            let place = b.ints(&[0]);
            let place = b.op("Squeeze", &[place], Attrs::new(), untyped());
            let first = b.op("SequenceAt", &[list, place], Attrs::new(), untyped());
            y = b.op("Add", &[y, first], Attrs::new(), untyped());
        }
    }
    let y = b.op("Concat", &[y, x], attrs([("axis", Attr::Int(1))]), untyped());
    graph.outputs.push(y);
    for v in graph.value_ids().filter(|v| graph.tensor(*v).is_none()).collect::<Vec<_>>() {
        graph[v].ty = None;
    }
    concretize(&mut graph, &Sizes::batch(7), &engine()).expect("concretizes");
    assert_eq!(graph.ty(y).expect("typed").shape, [7, 2 * WIDTH]);
}
