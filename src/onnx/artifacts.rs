//! The files of ONNX Runtime Training: `training_model.onnx` or `eval_model.onnx`, whose parameters lie in `checkpoint` beside them.
//!
//! The forward part up to the logits is kept; what computes gradients and the loss goes. The checkpoint is a FlatBuffer of ONNX
//! Runtime's schemas `ort_training_checkpoint.fbs` and `ort.fbs`.

use super::tensor::to_proto;
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use std::collections::HashSet;
use std::path::Path;

/// Losses with the input that holds the logits.
const LOSSES: &[&str] = &["SoftmaxCrossEntropyLoss", "SoftmaxCrossEntropyLossInternal", "SoftmaxCrossEntropy"];

/// Turns an artifact into the classifier it was made from; other models stay as they are.
///
/// # Errors
/// An artifact whose checkpoint is missing or damaged, or that has no loss on logits.
pub(super) fn recover(proto: &mut ModelProto, folder: &Path) -> Result<()> {
    let Some(g) = proto.graph.as_mut() else { return Ok(()) };
    let gradients = g.node.iter().any(|n| n.op_type.starts_with("InPlaceAccumulator"));
    let path = folder.join("checkpoint");
    let bare = g.initializer.is_empty() && g.input.len() > 1 && path.is_file();
    if !gradients && !bare {
        return Ok(());
    }
    let bytes = std::fs::read(&path).map_err(|_| {
        Error::new(
            "this is an artifact of ONNX Runtime Training, whose parameters are in a file `checkpoint` beside it",
        )
        .hint("put the checkpoint there, or give the model that the artifacts were made from")
    })?;
    let parameters = match checkpoint(&bytes) {
        Ok(parameters) => parameters,
        // Some other file may have this name.
        Err(_) if !gradients => return Ok(()),
        Err(e) => return Err(e.in_file(&path)),
    };
    for (name, tensor) in parameters {
        let before = g.input.len();
        g.input.retain(|i| i.name != name);
        if g.input.len() < before {
            g.initializer.push(to_proto(&name, &tensor));
        }
    }
    let loss = g.node.iter().find(|n| LOSSES.contains(&n.op_type.as_str()));
    let Some(logits) = loss.and_then(|n| n.input.first().cloned()) else {
        return Err(Error::new(
            "this artifact of ONNX Runtime Training has no cross-entropy loss, so it is no classifier",
        )
        .hint("give the model that the artifacts were made from"));
    };
    keep(g, &logits);
    let used: HashSet<&str> =
        g.node.iter().map(|n| if n.domain == "ai.onnx" { "" } else { n.domain.as_str() }).collect();
    proto.opset_import.retain(|o| o.domain.is_empty() || used.contains(o.domain.as_str()));
    Ok(())
}

/// Makes `output` the only output, and removes what it does not depend on.
fn keep(g: &mut GraphProto, output: &str) {
    let mut live: HashSet<String> = HashSet::from([output.to_owned()]);
    let mut nodes: Vec<NodeProto> = Vec::new();
    for node in std::mem::take(&mut g.node).into_iter().rev() {
        if node.output.iter().any(|o| live.contains(o)) {
            live.extend(node.input.iter().cloned());
            nodes.push(node);
        }
    }
    nodes.reverse();
    g.node = nodes;
    g.input.retain(|i| live.contains(&i.name));
    g.initializer.retain(|i| live.contains(&i.name));
    let declared = g.value_info.iter().chain(&g.output).find(|i| i.name == output).cloned();
    g.output = vec![declared.unwrap_or_else(|| ValueInfoProto { name: output.to_owned(), ..Default::default() })];
    g.value_info.retain(|i| live.contains(&i.name) && i.name != output);
}

/// The parameters in a checkpoint, trained and frozen ones.
fn checkpoint(bytes: &[u8]) -> Result<Vec<(String, Tensor)>> {
    if bytes.get(4..8) != Some(b"ODTC".as_slice()) {
        crate::bail!("not a checkpoint of ONNX Runtime Training");
    }
    let damaged = || Error::new("the checkpoint is damaged").hint("copy it again");
    let buffer = Buffer(bytes);
    let root = buffer.table(0).ok_or_else(damaged)?;
    let module = root.child(1).ok_or_else(damaged)?;
    if module.byte(3).is_some_and(|b| b != 0) {
        return Err(Error::new("its parameters lie in another file (external data)")
            .hint("save the checkpoint without external data, or give the model that the artifacts were made from"));
    }
    let mut parameters = Vec::new();
    for list in [0, 1] {
        for tensor in module.children(list) {
            let tensor = tensor.ok_or_else(damaged)?;
            let name = tensor.bytes(0, 1).and_then(|b| String::from_utf8(b.to_vec()).ok()).ok_or_else(damaged)?;
            let dims = tensor.bytes(2, 8).unwrap_or_default();
            let dims: Option<Vec<usize>> =
                dims.chunks_exact(8).map(|c| usize::try_from(i64::from_le_bytes(c.try_into().ok()?)).ok()).collect();
            let dtype = DType::from_onnx(tensor.int(3).unwrap_or(0)).ok_or_else(damaged)?;
            let data = tensor.bytes(4, 1).unwrap_or_default().to_vec();
            parameters.push((name, Tensor::from_bytes(dtype, &dims.ok_or_else(damaged)?, data)?));
        }
    }
    Ok(parameters)
}

/// Reads a FlatBuffer; every access is checked.
#[derive(Clone, Copy)]
struct Buffer<'a>(&'a [u8]);

/// A table of a FlatBuffer, at a place in it.
#[derive(Clone, Copy)]
struct Table<'a> {
    buffer: Buffer<'a>,
    at: usize,
}

impl<'a> Buffer<'a> {
    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    /// The place that the offset at `at` leads to.
    fn follow(self, at: usize) -> Option<usize> {
        at.checked_add(u32::from_le_bytes(self.array(at)?) as usize)
    }

    fn table(self, at: usize) -> Option<Table<'a>> {
        Some(Table { buffer: self, at: self.follow(at)? })
    }
}

impl<'a> Table<'a> {
    /// The place of field `i`; none where it has its default.
    fn field(self, i: usize) -> Option<usize> {
        let back = i32::from_le_bytes(self.buffer.array(self.at)?);
        let fields = usize::try_from(self.at as i64 - i64::from(back)).ok()?;
        let size = usize::from(u16::from_le_bytes(self.buffer.array(fields)?));
        let slot = 4 + 2 * i;
        let offset = if slot + 2 <= size { u16::from_le_bytes(self.buffer.array(fields + slot)?) } else { 0 };
        (offset != 0).then_some(self.at + usize::from(offset))
    }

    fn int(self, i: usize) -> Option<i32> {
        Some(i32::from_le_bytes(self.buffer.array(self.field(i)?)?))
    }

    fn byte(self, i: usize) -> Option<u8> {
        self.buffer.array::<1>(self.field(i)?).map(|[b]| b)
    }

    fn child(self, i: usize) -> Option<Table<'a>> {
        self.buffer.table(self.field(i)?)
    }

    /// The elements of a vector of `width` bytes each, or of a string.
    fn bytes(self, i: usize, width: usize) -> Option<&'a [u8]> {
        let start = self.buffer.follow(self.field(i)?)?;
        let n = u32::from_le_bytes(self.buffer.array(start)?) as usize;
        self.buffer.0.get(start + 4..start.checked_add(4)?.checked_add(n.checked_mul(width)?)?)
    }

    /// The tables of a vector.
    fn children(self, i: usize) -> impl Iterator<Item = Option<Table<'a>>> {
        let start = self.field(i).and_then(|f| self.buffer.follow(f));
        let n = start.and_then(|s| self.buffer.array(s)).map_or(0, u32::from_le_bytes) as usize;
        let n = n.min(self.buffer.0.len());
        (0..n).map(move |k| self.buffer.table(start? + 4 + 4 * k))
    }
}
