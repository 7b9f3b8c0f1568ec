//! Finds out by trying what the loaded ONNX Runtime accepts; it has no function that says.

use super::library::take_log;
use super::{Engine, Memory};
use crate::autodiff::DOMAIN;
use crate::error::{Error, Result};
use crate::ir::{DType, Dim, Graph, Type};
use crate::onnx::{Weights, emit};
use crate::trace::encode;

/// The newest formats that the loaded ONNX Runtime reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Operator set of the standard domain.
    pub opset: i64,
    /// Version of the file format.
    pub ir_version: i64,
}

/// The oldest opset and file format tried: any supported library reads them.
const OLDEST: Accepted = Accepted { opset: 17, ir_version: 8 };
/// Where trying ends, should a library refuse nothing.
const ENOUGH: i64 = 100;

/// The newest opset and file format that `engine` compiles.
///
/// # Errors
/// When not even the oldest ones are accepted.
pub fn accepted(engine: &Engine) -> Result<Accepted> {
    if !reads(engine, OLDEST)? {
        let Accepted { opset, ir_version } = OLDEST;
        return Err(Error::new(format!("this ONNX Runtime refuses opset {opset} in file format {ir_version}")));
    }
    let mut newest = OLDEST;
    while newest.ir_version < ENOUGH && reads(engine, Accepted { ir_version: newest.ir_version + 1, ..newest })? {
        newest.ir_version += 1;
    }
    while newest.opset < ENOUGH && reads(engine, Accepted { opset: newest.opset + 1, ..newest })? {
        newest.opset += 1;
    }
    Ok(newest)
}

/// Whether the engine's device can be used: memory is had on it, and ONNX Runtime computes there.
///
/// # Errors
/// Why not.
pub fn usable(engine: &Engine) -> Result<()> {
    computes(engine, "", "Relu", 1.5)
}

/// Whether operators of domain `bisam` can be used on the engine's device.
///
/// # Errors
/// Why not.
pub fn has_kernels(engine: &Engine) -> Result<()> {
    computes(engine, DOMAIN, "Gelu", 1.399_79)
}

/// Whether the operator makes `y` of 1.5.
fn computes(engine: &Engine, domain: &str, op: &str, y: f32) -> Result<()> {
    let mut graph = Graph::of_one_node(op, ["x", "y"], DType::F32, Dim::Fixed(1), OLDEST.opset);
    if !domain.is_empty() {
        domain.clone_into(&mut graph.nodes[0].domain);
        graph.opsets.insert(domain.into(), 1);
    }
    let (memory, ty) = (Memory::new(engine)?, Type::new(DType::F32, &[1]));
    let (from, to) = (memory.zeros(4)?, memory.zeros(4)?);
    from.write_f32(&[1.5])?;
    let mut session = engine.compile(&graph)?;
    let mut binding = session.binding()?;
    binding.input("x", &from, 0, &ty)?;
    binding.output("y", &to, 0, &ty)?;
    session.run_bound(&binding)?;
    let got = to.scalar()?;
    if (got - y).abs() < 1e-4 { Ok(()) } else { Err(Error::new(format!("{op} of 1.5 is {got} there"))) }
}

fn reads(engine: &Engine, formats: Accepted) -> Result<bool> {
    let graph = Graph::of_one_node("Relu", ["x", "y"], DType::F32, Dim::Fixed(1), formats.opset);
    let mut model = emit(&graph, Weights::Inputs);
    model.ir_version = formats.ir_version;
    let accepted = engine.compile_model(&encode(&model)?).is_ok();
    take_log();
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use super::super::tests::engine;
    use super::*;

    #[test]
    fn the_newest_formats_are_found() -> Result<()> {
        let newest = accepted(&engine())?;
        // 1.23, the oldest library supported, has opset 23 and format 11.
        assert!((23..ENOUGH).contains(&newest.opset), "{newest:?}");
        assert!((10..ENOUGH).contains(&newest.ir_version), "{newest:?}");
        Ok(())
    }

    #[test]
    fn the_cpu_is_usable() -> Result<()> {
        usable(&engine())?;
        has_kernels(&engine())
    }
}
