//! Tracing of files that hold their batch size.

use crate::common::engine;
use bisam::builder::Builder;
use bisam::ir::{Attrs, DType, Declared, Graph, Source, Type};
use bisam::trace::{Sizes, concretize};

/// Reshapes an input of shape [batch, 6] to [8, 3], which fits a batch of 4 only.
fn for_a_batch_of_four() -> Graph {
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), 17);
    let declared = Declared { dtype: DType::F32, dims: None };
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
fn another_batch_size_is_refused() {
    let e = concretize(&mut for_a_batch_of_four(), &sizes(6), &engine()).expect_err("no batch of 6");
    assert!(e.to_string().contains("does not run"), "{e}");
}
