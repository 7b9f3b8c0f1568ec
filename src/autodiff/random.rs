//! Random numbers written out in plain operators.

use super::DOMAIN;
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Attrs, DType, Graph, Tensor, Type};

/// The modulus. p − 1 is no multiple of 3, so x³ is a permutation of the numbers modulo p.
pub const PRIME: u64 = 2_147_483_579;

/// Where the numbers of source `id` begin.
pub fn start(id: i64) -> u64 {
    id.unsigned_abs().wrapping_mul(0x9e37_79b1) % PRIME
}

/// Writes every `bisam.Uniform` out.
///
/// Element i of source s under key (k₁, k₂, k₃) is ⌊x/2⁷⌋/2²⁴, where x starts at i + start(s) and goes to (x + kᵣ)³ modulo p three times. Exponential sums over a
/// polynomial of degree 27 are bounded by 26√p (Weil), so that any stretch of numbers is spread evenly.
///
/// # Errors
/// A graph that is not concretized.
pub fn lower_uniform(graph: &mut Graph) -> Result<()> {
    let is = |n: &crate::ir::Node| n.domain == DOMAIN && n.op == "Uniform";
    if !graph.nodes.iter().any(is) {
        return Ok(());
    }
    let nodes = std::mem::take(&mut graph.nodes);
    for node in nodes {
        let (Some(key), Some(out), true) = (node.input(0), node.output(0), is(&node)) else {
            graph.nodes.push(node);
            continue;
        };
        let id = match node.attrs.get("id") {
            Some(Attr::Int(id)) => *id,
            _ => 0,
        };
        let ty = graph.ty(out)?.clone();
        let n = ty.len();
        let mut b = Builder::new(graph, "uniform");
        let flat = Type::new(DType::I64, &[n]);
        let number = |b: &mut Builder, v: i64| b.constant(Tensor::from_f64(DType::I64, &[], &[v as f64]));
        let (zero, end, one) = (number(&mut b, 0), number(&mut b, n as i64), number(&mut b, 1));
        let (prime, first) = (number(&mut b, PRIME as i64), number(&mut b, start(id) as i64));
        let places = b.op("Range", &[zero, end, one], Attrs::new(), flat.clone());
        let mut x = b.op("Add", &[places, first], Attrs::new(), flat.clone());
        let keys = b.cast(key, DType::I64);
        for round in 0..3 {
            let index = number(&mut b, round);
            let k = b.op("Gather", &[keys, index], attrs([("axis", Attr::Int(0))]), Type::new(DType::I64, &[]));
            let sum = b.op("Add", &[x, k], Attrs::new(), flat.clone());
            x = b.op("Mod", &[sum, prime], Attrs::new(), flat.clone());
            let square = b.op("Mul", &[x, x], Attrs::new(), flat.clone());
            let square = b.op("Mod", &[square, prime], Attrs::new(), flat.clone());
            let cube = b.op("Mul", &[square, x], Attrs::new(), flat.clone());
            x = b.op("Mod", &[cube, prime], Attrs::new(), flat.clone());
        }
        let low = number(&mut b, 128);
        let high = b.op("Div", &[x, low], Attrs::new(), flat);
        let float = b.cast(high, DType::F32);
        let u = b.scale(float, 1.0 / 16_777_216.0)?;
        let shape = b.constant(Tensor::ints(&ty.shape.iter().map(|d| *d as i64).collect::<Vec<_>>()));
        b.op("Reshape", &[u, shape], Attrs::new(), ty);
        if let Some(last) = graph.nodes.last_mut() {
            last.outputs = vec![Some(out)];
        }
    }
    if !graph.nodes.iter().any(|n| n.domain == DOMAIN) {
        graph.opsets.remove(DOMAIN);
    }
    graph.check_typed()
}
