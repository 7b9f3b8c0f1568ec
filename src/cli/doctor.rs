//! `bisam doctor`: what is loaded, what is missing, and the command that gets it.

use super::Global;
use crate::engine::probe::{accepted, has_kernels, usable};
use crate::engine::{Device, Engine, Runtime, load_with};
use crate::error::{Error, Result};
use serde_json::json;
use std::path::Path;

/// Whether graphs run on CUDA, and if not, why and what to do.
struct Cuda {
    device: Device,
    missing: Option<(String, String)>,
    /// Why its own kernels cannot be had there, if nothing else is missing.
    plain: Option<String>,
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
    let newest = accepted(&Engine::on(runtime, Device::Cpu)?)?;
    let (missing, command) = cuda.missing.clone().unzip();
    let value = json!({
        "path": runtime.path, "version": runtime.version, "providers": runtime.providers, "threads": runtime.threads,
        "opset": newest.opset, "ir_version": newest.ir_version,
        "cpu_features": features, "skipped": skipped,
        "cuda": { "usable": cuda.missing.is_none(), "missing": missing, "hint": command, "only_plain_kernels": cuda.plain },
    });
    let mut lines = vec![
        format!("ONNX Runtime  {} ({})", runtime.version, runtime.path.display()),
        format!("providers     {}", runtime.providers.join(", ")),
        format!("accepts       opset {}, file format (IR) {}", newest.opset, newest.ir_version),
        format!("threads       {}", runtime.threads),
        format!("CPU features  {}", if features.is_empty() { "portable".into() } else { features.join(", ") }),
    ];
    match &cuda.missing {
        None => {
            lines.push(format!("CUDA          usable with `--device {}`", cuda.device));
            lines.extend(cuda.plain.iter().map(|why| format!("              with --kernels plain only: {why}")));
        }
        Some((missing, hint)) => lines.extend([format!("CUDA          {missing}"), format!("              {hint}")]),
    }
    lines.extend(skipped.iter().map(|error| format!("passed over   {error}")));
    global.print(&value, &lines.join("\n"))?;
    match cuda.missing {
        Some((missing, hint)) if global.device != Device::Cpu => {
            Err(Error::new(format!("`{}` cannot be had: {missing}", global.device)).in_file(&runtime.path).hint(hint))
        }
        _ => Ok(()),
    }
}

impl Cuda {
    /// Tries the CUDA device that is asked for, else the first one.
    fn probe(runtime: &'static Runtime, asked: Device) -> Self {
        let device = if asked == Device::Cpu { Device::Cuda(0) } else { asked };
        // The second is the driver under Windows' Linux subsystem.
        let driver = ["/proc/driver/nvidia", "/dev/dxg"].iter().any(|path| Path::new(path).exists());
        if cfg!(target_os = "linux") && !driver {
            let hint = "install NVIDIA's driver, and pass the GPU into a container; `nvidia-smi` lists what is there";
            return Self {
                device,
                missing: Some(("no NVIDIA driver on this machine".into(), hint.into())),
                plain: None,
            };
        }
        let engine = Engine::on(runtime, device);
        let why = |e: Error| (e.cause().to_owned(), e.hint_text().unwrap_or_default().to_owned());
        match engine.and_then(|engine| usable(&engine).map(|()| engine)) {
            Err(e) => Self { device, missing: Some(why(e)), plain: None },
            Ok(engine) => Self { device, missing: None, plain: has_kernels(&engine).err().map(|e| why(e).0) },
        }
    }
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
