//! The typed graph every stage works on: an arena of values and a topologically ordered list of nodes.
//!
//! Data only moves forward through the crate: import makes a [`Graph`], tracing fills in every [`Type`], differentiation
//! and the step append nodes, emit writes it out. [`Graph::check`] holds after every one of these.

mod attr;
mod check;
mod dtype;
mod graph;
mod precision;
mod tensor;
mod text;

pub use attr::{Attr, AttrReader, Attrs, Body};
pub use dtype::{DType, Element};
pub use graph::{Declared, Dim, Graph, Node, NodeId, Source, Type, Value, ValueId};
pub use precision::set_float_type;
pub use tensor::Tensor;
