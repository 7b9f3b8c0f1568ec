//! `bisam doctor`: what is loaded, what is missing, and the command that gets it.

use super::Global;
use crate::engine::{Device, Engine, Runtime, load_with};
use crate::error::{Error, Result};
use crate::ir::{Attrs, DType, Declared, Dim, Graph, Node, Source};
use serde_json::json;

/// Whether graphs run on CUDA, and if not, why and what to do.
struct Cuda {
    device: Device,
    missing: Option<(String, String)>,
}

/// Runs the command.
///
/// # Errors
/// When no usable ONNX Runtime is found, or `--device cuda` asks for what cannot be had; the report is printed first.
pub fn run(global: &Global) -> Result<()> {
    let runtime = load_with(global.ort.as_deref(), global.threads)?;
    let cuda = Cuda::probe(runtime, global.device);
    let skipped: Vec<String> = runtime.skipped.iter().map(ToString::to_string).collect();
    let features = features();
    let (missing, command) = cuda.missing.clone().unzip();
    let value = json!({
        "path": runtime.path, "version": runtime.version, "providers": runtime.providers, "threads": runtime.threads,
        "cpu_features": features, "skipped": skipped,
        "cuda": { "usable": cuda.missing.is_none(), "missing": missing, "hint": command },
    });
    let mut lines = vec![
        format!("ONNX Runtime  {} ({})", runtime.version, runtime.path.display()),
        format!("providers     {}", runtime.providers.join(", ")),
        format!("threads       {}", runtime.threads),
        format!("CPU features  {}", if features.is_empty() { "portable".into() } else { features.join(", ") }),
    ];
    match &cuda.missing {
        None => lines.push(format!("CUDA          usable with `--device {}`", cuda.device)),
        Some((missing, hint)) => lines.extend([format!("CUDA          {missing}"), format!("              {hint}")]),
    }
    lines.extend(skipped.iter().map(|error| format!("passed over   {error}")));
    global.print(&value, &lines.join("\n"));
    match cuda.missing {
        Some((missing, hint)) if global.device != Device::Cpu => {
            Err(Error::new(format!("`{}` cannot be had: {missing}", global.device)).in_file(&runtime.path).hint(hint))
        }
        _ => Ok(()),
    }
}

impl Cuda {
    /// Compiles a small graph for the CUDA device that is asked for, else the first one.
    fn probe(runtime: &'static Runtime, asked: Device) -> Self {
        let device = if asked == Device::Cpu { Device::Cuda(0) } else { asked };
        let has_provider = runtime.providers.iter().any(|name| name == "CUDAExecutionProvider");
        let install = "`pip install 'onnxruntime-gpu[cuda,cudnn]'`";
        let missing = if has_provider {
            Engine { runtime, device }.compile(&identity()).err().map(|error| {
                let why = error.hint_text().unwrap_or(error.cause()).replace('\n', " ");
                (
                    why,
                    format!(
                        "{install} and put its folders `nvidia/*/lib` on LD_LIBRARY_PATH; `nvidia-smi` lists the GPUs"
                    ),
                )
            })
        } else {
            let cause = "this library was built without it";
            Some((cause.into(), format!("{install} and name its library with --ort PATH; `nvidia-smi` lists the GPUs")))
        };
        Self { device, missing }
    }
}

/// A graph that every device can run.
fn identity() -> Graph {
    let mut graph = Graph::default();
    graph.name.push_str("doctor");
    graph.opsets.insert(String::new(), 18);
    let dims = Some(vec![Dim::Fixed(1)]);
    let x = graph.add_value("x", None, Source::Input(Declared { dtype: DType::F32, dims }));
    let y = graph.add_value("y", None, Source::Node);
    let (inputs, outputs) = (vec![Some(x)], vec![Some(y)]);
    let (name, op) = ("identity".into(), "Identity".into());
    graph.nodes.push(Node { name, domain: String::new(), op, inputs, outputs, attrs: Attrs::new() });
    graph.inputs.push(x);
    graph.outputs.push(y);
    graph
}

/// What the CPU can do, of what ONNX Runtime has kernels for.
fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let all = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}
