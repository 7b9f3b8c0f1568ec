//! Finds out by trying what the loaded ONNX Runtime accepts; it has no function that says.

use super::library::take_log;
use super::{Engine, Memory};
use crate::error::{Error, Result};
use crate::ir::{DType, Dim, Graph};
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

/// Whether the engine's device can be used: memory is had on it, written and read back.
///
/// # Errors
/// Why not.
pub fn usable(engine: &Engine) -> Result<()> {
    let buffer = Memory::new(engine)?.zeros(4)?;
    buffer.write_f32(&[1.5])?;
    if buffer.scalar()? == 1.5 { Ok(()) } else { Err(Error::new("memory of the device reads back wrong")) }
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
        usable(&engine())
    }
}
