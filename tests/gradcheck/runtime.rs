//! Runs models of the gradient checks.

use bisam::ir::{DType, Graph, Tensor};
use bisam::onnx::{Weights, emit};
use bisam::trace::Evaluator;
use bisam::{Error, Result};
use onnx_protobuf::Message;
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor as OrtTensor};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

fn environment() -> &'static Environment {
    static ENV: OnceLock<Environment> = OnceLock::new();
    ENV.get_or_init(|| {
        let path = std::env::var("ORT_DYLIB_PATH").map(PathBuf::from).expect("ORT_DYLIB_PATH is set");
        let env = ort::init_from(path).expect("library").with_telemetry(false).build().expect("environment");
        env.set_log_level(ort::logging::LogLevel::Fatal);
        env
    })
}

/// A compiled graph.
pub struct Compiled(Mutex<Session>);

impl Compiled {
    pub fn new(graph: &Graph) -> Result<Self> {
        let bytes = emit(graph, Weights::Initializers).write_to_bytes().map_err(|e| Error::new(e.to_string()))?;
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let session = Session::builder(environment())
            .map_err(text)?
            .with_intra_threads(1)
            .map_err(text)?
            .with_log_level(ort::logging::LogLevel::Fatal)
            .map_err(text)?
            .commit_from_memory(bytes)
            .map_err(text)?;
        Ok(Self(Mutex::new(session)))
    }

    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        let inputs: Vec<(String, SessionInputValue<'static>)> = inputs
            .iter()
            .map(|(n, t)| Ok(((*n).to_owned(), SessionInputValue::from(to_ort(t)?))))
            .collect::<Result<_>>()?;
        let mut session = self.0.lock().expect("not poisoned");
        let outputs = session.run(inputs).map_err(text)?;
        outputs.values().map(|v| from_ort(&v)).collect()
    }
}

/// Runs a model once.
pub struct Once;

impl Evaluator for Once {
    fn evaluate(&self, model: &[u8], inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        Compiled::from_bytes(model)?.run(inputs)
    }
}

fn text<R>(e: ort::Error<R>) -> Error {
    Error::new(e.to_string())
}

fn to_ort(t: &Tensor) -> Result<DynValue> {
    let shape: Vec<i64> = t.shape().iter().map(|d| *d as i64).collect();
    macro_rules! make {
        ($ty:ty) => {
            OrtTensor::from_array((shape, t.to_vec::<$ty>().expect("type"))).map_err(text)?.into_dyn()
        };
    }
    Ok(match t.dtype() {
        DType::F32 => make!(f32),
        DType::F64 => make!(f64),
        DType::I64 => make!(i64),
        DType::I32 => make!(i32),
        DType::Bool => {
            let data: Vec<bool> = t.bytes().iter().map(|b| *b != 0).collect();
            OrtTensor::from_array((shape, data)).map_err(text)?.into_dyn()
        }
        other => return Err(Error::new(format!("{other} inputs"))),
    })
}

fn from_ort(v: &ort::value::ValueRef<'_>) -> Result<Tensor> {
    fn dims(s: &ort::value::Shape) -> Vec<usize> {
        s.iter().map(|d| *d as usize).collect()
    }
    if let Ok((s, d)) = v.try_extract_tensor::<f32>() {
        return Tensor::new(&dims(s), d);
    }
    if let Ok((s, d)) = v.try_extract_tensor::<f64>() {
        return Tensor::new(&dims(s), d);
    }
    if let Ok((s, d)) = v.try_extract_tensor::<i64>() {
        return Tensor::new(&dims(s), d);
    }
    if let Ok((s, d)) = v.try_extract_tensor::<i32>() {
        return Tensor::new(&dims(s), d);
    }
    if let Ok((s, d)) = v.try_extract_tensor::<bool>() {
        return Tensor::from_bytes(DType::Bool, &dims(s), d.iter().map(|b| u8::from(*b)).collect());
    }
    Err(Error::new("an output of an unexpected type"))
}
