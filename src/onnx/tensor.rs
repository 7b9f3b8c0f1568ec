//! `TensorProto` ↔ [`Tensor`].

use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use onnx_protobuf::TensorProto;

/// Reads a tensor whose data is in the message itself.
///
/// # Errors
/// Negative dimensions, a type this crate has no tensors of, data that does not fill the shape, or data kept outside.
pub fn to_tensor(proto: &TensorProto) -> Result<Tensor> {
    let (dtype, shape) = header(proto)?;
    if proto.data_location.enum_value_or_default() == onnx_protobuf::tensor_proto::DataLocation::EXTERNAL {
        crate::bail!("its data lies outside the file");
    }
    if !proto.raw_data.is_empty() {
        return Tensor::from_bytes(dtype, &shape, proto.raw_data.clone());
    }
    let bytes: Vec<u8> = match dtype {
        DType::F32 => proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => proto.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U64 => proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U32 => proto.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
        // Everything up to 32 bits wide is widened to int32_data, low bytes first.
        _ => proto.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(dtype.width())).collect(),
    };
    Tensor::from_bytes(dtype, &shape, bytes)
}

/// Type and shape of a tensor, without its data.
///
/// # Errors
/// Negative or absurd dimensions, or a type this crate has no tensors of.
pub(super) fn header(proto: &TensorProto) -> Result<(DType, Vec<usize>)> {
    let dtype = DType::from_onnx(proto.data_type).filter(|d| *d != DType::Str).ok_or_else(|| {
        Error::new(format!("tensors of type {} are not supported", DType::name_of(proto.data_type)))
            .hint("supported are float16/32/64, bfloat16, the integers of 8 to 64 bits and bool")
    })?;
    let shape: Option<Vec<usize>> = proto.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let fits = |s: &Vec<usize>| s.iter().try_fold(dtype.width(), |n, d| n.checked_mul(*d)).is_some();
    let shape = shape.filter(fits).ok_or_else(|| Error::new(format!("shape {:?} is not possible", proto.dims)))?;
    Ok((dtype, shape))
}

/// Writes a tensor, its data as raw bytes.
pub fn to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: tensor.shape().iter().map(|d| *d as i64).collect(),
        data_type: tensor.dtype().onnx(),
        raw_data: tensor.bytes().to_vec(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_types_are_read_from_int32_data() -> Result<()> {
        let proto = TensorProto {
            data_type: DType::F16.onnx(),
            dims: vec![2],
            int32_data: vec![0x3C00, 0x4000],
            ..Default::default()
        };
        assert_eq!(to_tensor(&proto)?.to_f32(), [1.0, 2.0]);
        Ok(())
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for dims in [vec![-1], vec![i64::MAX, 8], vec![3]] {
            let proto = TensorProto { data_type: 1, dims, float_data: vec![0.0; 2], ..Default::default() };
            assert!(to_tensor(&proto).is_err());
        }
    }

    #[test]
    fn tensors_round_trip() -> Result<()> {
        let t = Tensor::new(&[2, 2], &[1.5f32, -2.0, 0.0, 3.0])?;
        assert_eq!(to_tensor(&to_proto("t", &t))?, t);
        Ok(())
    }
}
