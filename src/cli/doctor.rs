//! `bisam doctor`: what is loaded, what is missing, and the command that gets it.

use super::Global;
use crate::error::Result;
use serde_json::json;

/// Runs the command.
///
/// # Errors
/// When no usable ONNX Runtime is found.
pub fn run(global: &Global) -> Result<()> {
    let runtime = crate::engine::load_with(global.ort.as_deref(), global.threads)?;
    let cuda = runtime.providers.iter().any(|p| p == "CUDAExecutionProvider");
    let skipped: Vec<String> = runtime.skipped.iter().map(ToString::to_string).collect();
    let features = features();
    let value = json!({
        "path": runtime.path, "version": runtime.version, "providers": runtime.providers, "threads": runtime.threads,
        "cuda": cuda, "cpu_features": features, "skipped": skipped,
    });
    let mut text = format!(
        "ONNX Runtime  {} ({})\nproviders     {}\nthreads       {}\nCPU features  {}\n",
        runtime.version,
        runtime.path.display(),
        runtime.providers.join(", "),
        runtime.threads,
        if features.is_empty() { "portable".into() } else { features.join(", ") },
    );
    text += if cuda {
        "CUDA          the library has the provider; `--device cuda` uses it"
    } else {
        "CUDA          not in this library; `pip install onnxruntime-gpu` and name its library with --ort PATH"
    };
    for s in skipped {
        text += &format!("\npassed over   {s}");
    }
    global.print(&value, &text);
    Ok(())
}

fn features() -> Vec<&'static str> {
    let mut list = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ] {
        if there {
            list.push(name);
        }
    }
    #[cfg(target_arch = "aarch64")]
    list.push("neon");
    list
}
