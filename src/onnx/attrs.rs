//! `AttributeProto` ↔ [`Attr`].

use super::external::DataFiles;
use super::tensor::to_proto;
use crate::error::Result;
use crate::ir::Attr;
use onnx_protobuf::AttributeProto;
use onnx_protobuf::attribute_proto::AttributeType as T;
use protobuf::EnumOrUnknown;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads an attribute; old files leave its type out, then the field that is filled decides.
///
/// # Errors
/// Attribute kinds without a meaning here: lists of graphs, sparse tensors, types. Graphs are read where the graph around them is known.
pub(super) fn to_attr(a: &AttributeProto, files: &mut DataFiles) -> Result<Attr> {
    let kind = match a.type_.enum_value_or_default() {
        T::UNDEFINED if a.t.is_some() => T::TENSOR,
        T::UNDEFINED if !a.ints.is_empty() => T::INTS,
        T::UNDEFINED if !a.floats.is_empty() => T::FLOATS,
        T::UNDEFINED if !a.strings.is_empty() => T::STRINGS,
        T::UNDEFINED if !a.s.is_empty() => T::STRING,
        T::UNDEFINED if a.f != 0.0 => T::FLOAT,
        T::UNDEFINED => T::INT,
        known => known,
    };
    Ok(match kind {
        T::INT => Attr::Int(a.i),
        T::FLOAT => Attr::Float(a.f),
        T::STRING => Attr::Str(text(&a.s)),
        T::INTS => Attr::Ints(a.ints.clone()),
        T::FLOATS => Attr::Floats(a.floats.clone()),
        T::STRINGS => Attr::Strs(a.strings.iter().map(|s| text(s)).collect()),
        T::TENSOR => Attr::Tensor(files.read(&a.t)?),
        other => crate::bail!("attribute `{}` is of kind {other:?}, which is not supported", a.name),
    })
}

/// Writes an attribute.
pub(super) fn from_attr(name: &str, attr: &Attr) -> AttributeProto {
    let mut a = AttributeProto { name: name.into(), ..Default::default() };
    let kind = match attr {
        Attr::Int(v) => {
            a.i = *v;
            T::INT
        }
        Attr::Float(v) => {
            a.f = *v;
            T::FLOAT
        }
        Attr::Str(v) => {
            a.s = v.as_bytes().to_vec();
            T::STRING
        }
        Attr::Ints(v) => {
            a.ints.clone_from(v);
            T::INTS
        }
        Attr::Floats(v) => {
            a.floats.clone_from(v);
            T::FLOATS
        }
        Attr::Strs(v) => {
            a.strings = v.iter().map(|s| s.as_bytes().to_vec()).collect();
            T::STRINGS
        }
        Attr::Tensor(v) => {
            a.t = protobuf::MessageField::some(to_proto("", v));
            T::TENSOR
        }
        // Written where the names around it are known.
        Attr::Graph(_) => T::GRAPH,
    };
    a.type_ = EnumOrUnknown::new(kind);
    a
}
