//! The bounds of the 0-1 loss that BiSAM ascends, as a figure (Xie et al., ICML 2024, figure 1).

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::figure::{Chart, Series};
use crate::ir::{DType, Declared, Dim, Graph, Source, Tensor, Type};
use crate::onnx::{Weights, emit};
use crate::step::ascent::bound;
use crate::step::{Ascent, StepOptions};
use crate::trace::{Evaluator, encode};

/// The bounds and their settings, as the legend calls them.
const BOUNDS: [(&str, Ascent, f32); 3] = [
    ("1 − log(1 + exp(γ − x))", Ascent::NegLog, 1.0),
    ("tanh(αx), α = 1", Ascent::Tanh, 1.0),
    ("tanh(αx), α = 0.1", Ascent::Tanh, 0.1),
];

/// Steps on either side of 0, and their width.
const STEPS: i16 = 80;
const WIDTH: f32 = 0.05;

/// The step function `1[x > 0]`, the 0-1 loss of a margin, and the bounds below it: the graph that a training step ascends, run by
/// `evaluator`.
///
/// # Errors
/// Whatever the runtime says.
pub fn bounds(evaluator: &dyn Evaluator) -> Result<Chart> {
    let margins: Vec<f32> = (-STEPS..=STEPS).map(|i| f32::from(i) * WIDTH).collect();
    let ty = Type::new(DType::F32, &[margins.len()]);
    let mut graph = Graph::default();
    graph.name.push_str("bounds");
    graph.opsets.insert(String::new(), 18);
    let declared = Declared { dtype: DType::F32, dims: Some(vec![Dim::Fixed(margins.len())]) };
    let x = graph.add_value("x", Some(ty), Source::Input(declared));
    graph.inputs.push(x);
    let mut b = Builder::new(&mut graph, "bound");
    for (_, ascent, alpha) in BOUNDS {
        let phi = bound(&mut b, ascent, x, &StepOptions { alpha, ..StepOptions::default() })?;
        b.graph.outputs.push(phi);
    }
    let input = Tensor::new(&[margins.len()], &margins)?;
    let outputs = evaluator.evaluate(&encode(&emit(&graph, Weights::Inputs))?, &[("x", &input)])?;
    if outputs.len() != BOUNDS.len() {
        return Err(Error::new(format!("{} outputs instead of {}", outputs.len(), BOUNDS.len())));
    }
    let end = f64::from(STEPS) * f64::from(WIDTH);
    let points = vec![(-end, 0.0), (0.0, 0.0), (0.0, 1.0), (end, 1.0)];
    let mut series = vec![Series { name: "0-1 loss".into(), points, band: vec![] }];
    for ((name, ..), values) in BOUNDS.iter().zip(&outputs) {
        let points = margins.iter().map(|x| f64::from(*x)).zip(values.to_f64()).collect();
        series.push(Series { name: (*name).into(), points, band: vec![] });
    }
    Ok(Chart {
        title: "Lower bounds of the 0-1 loss".into(),
        x: "x = max fⱼ − f_y".into(),
        y: "φ(x)".into(),
        series,
        log_y: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Device, Engine};

    #[test]
    fn the_graph_gives_the_formulas_and_bounds_the_loss() {
        let engine = Engine::new(None, None, Device::Cpu).expect("run `make setup` first");
        let chart = bounds(&engine).expect("runs");
        let gamma = (std::f64::consts::E - 1.0).ln();
        let formulas: [fn(f64, f64) -> f64; 3] =
            [|x, gamma| 1.0 - (gamma - x).exp().ln_1p(), |x, _| x.tanh(), |x, _| (0.1 * x).tanh()];
        for (series, formula) in chart.series[1..].iter().zip(formulas) {
            assert_eq!(series.points.len(), 161);
            for (x, value) in &series.points {
                assert!((value - formula(*x, gamma)).abs() < 1e-6, "{} at {x}: {value}", series.name);
                let loss = if *x > 0.0 { 1.0 } else { 0.0 };
                assert!(*value <= loss + 1e-6, "{} at {x}: {value}", series.name);
            }
        }
    }
}
