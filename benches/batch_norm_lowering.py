"""Times plain-operator forms of training BatchNormalization, forward and backward, on ONNX Runtime's CPU provider.

    python benches/batch_norm_lowering.py [--threads 1]
"""
import argparse

import numpy as np
from conv_lowering import G, measure
from onnx import helper

EPS = 1e-5


def wide(g, v, r=4):
    return g.op("Unsqueeze", v, g.ints([0, 2, 3]))


def bn(g, x, scale, bias, mean, var, eps=EPS):
    return g.op("BatchNormalization", x, scale, bias, mean, var, epsilon=eps)


def mean_of(g, x):
    return g.op("ReduceMean", x, g.ints([0, 2, 3]), keepdims=1)


def f_kernel(g, s):
    ys = [g.name() for _ in range(3)]
    g.nodes.append(helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ys, training_mode=1, momentum=0.0, epsilon=EPS))
    return ys[0]


def f_mul(g, s):
    m = mean_of(g, "x")
    c = g.op("Sub", "x", m)
    v = mean_of(g, g.op("Mul", c, c))
    return bn(g, "x", "scale", "bias", g.reshape(m, [-1]), g.reshape(v, [-1]))


def f_sumsq(g, s):
    m = mean_of(g, "x")
    c = g.op("Sub", "x", m)
    v = g.op("ReduceSumSquare", c, g.ints([0, 2, 3]), keepdims=0)
    v = g.op("Mul", v, g.const(np.float32(1 / (s[0] * s[2] * s[3]))))
    return bn(g, "x", "scale", "bias", g.reshape(m, [-1]), v)


def dot(g, a, b, s):
    d = g.op("MatMul", g.reshape(a, [s[0], s[1], 1, -1]), g.reshape(b, [s[0], s[1], -1, 1]))
    return g.reshape(g.sum(d, [0]), [s[1]])


def f_dot(g, s):
    m = mean_of(g, "x")
    c = g.op("Sub", "x", m)
    v = g.op("Mul", dot(g, c, c, s), g.const(np.float32(1 / (s[0] * s[2] * s[3]))))
    return bn(g, "x", "scale", "bias", g.reshape(m, [-1]), v)


def f_two_step(g, s):
    """Sums over the plane first: the last axes are contiguous."""
    n = s[0] * s[2] * s[3]
    m = g.op("ReduceMean", g.op("ReduceMean", g.reshape("x", [s[0], s[1], -1]), g.ints([2]), keepdims=0), g.ints([0]), keepdims=0)
    c = g.op("Sub", "x", wide(g, m))
    v = g.op("ReduceMean", g.op("ReduceMean", g.reshape(g.op("Mul", c, c), [s[0], s[1], -1]), g.ints([2]), keepdims=0), g.ints([0]), keepdims=0)
    return bn(g, "x", "scale", "bias", m, v)


def f_two_step_sq(g, s):
    n = s[0] * s[2] * s[3]
    m = g.op("ReduceMean", g.op("ReduceMean", g.reshape("x", [s[0], s[1], -1]), g.ints([2]), keepdims=0), g.ints([0]), keepdims=0)
    c = g.op("Sub", "x", wide(g, m))
    v = g.op("ReduceSum", g.op("ReduceSumSquare", g.reshape(c, [s[0], s[1], -1]), g.ints([2]), keepdims=0), g.ints([0]), keepdims=0)
    v = g.op("Mul", v, g.const(np.float32(1 / n)))
    return bn(g, "x", "scale", "bias", m, v)


def f_bn_center(g, s):
    """the centring by the BatchNormalization kernel"""
    n = s[0] * s[2] * s[3]
    m = g.reshape(mean_of(g, "x"), [-1])
    one, zero = g.const(np.ones(s[1], np.float32)), g.const(np.zeros(s[1], np.float32))
    c = bn(g, "x", one, zero, m, one, 0.0)
    v = g.op("Mul", dot(g, c, c, s), g.const(np.float32(1 / n)))
    return bn(g, c, "scale", "bias", zero, v)


def f_sample_var(g, s):
    """variance within each sample by ReduceSumSquare over a row-centred... via per-plane means"""
    n = s[0] * s[2] * s[3]
    hw = s[2] * s[3]
    m = g.reshape(mean_of(g, "x"), [-1])
    c = g.op("Sub", g.reshape("x", [s[0], s[1], hw]), g.reshape(m, [1, s[1], 1]))
    v = g.op("ReduceL2", c, g.ints([0, 2]), keepdims=0)
    v = g.op("Mul", g.op("Mul", v, v), g.const(np.float32(1 / n)))
    return bn(g, "x", "scale", "bias", m, v)


FWD = [f_kernel, f_mul, f_sumsq, f_dot, f_two_step, f_two_step_sq, f_bn_center, f_sample_var]


def coefficients(g, s1, s2, s):
    """a, b, c of dx = a dy + b x + c, each [C]"""
    inv = g.const(np.float32(1 / (s[0] * s[2] * s[3])))
    r = g.op("Reciprocal", g.op("Sqrt", g.op("Add", "var", g.const(np.float32(EPS)))))
    a = g.op("Mul", "scale", r)
    dscale = g.op("Mul", s2, r)
    b = g.op("Neg", g.op("Mul", g.op("Mul", g.op("Mul", a, r), dscale), inv))
    c = g.op("Neg", g.op("Add", g.op("Mul", b, "mean"), g.op("Mul", g.op("Mul", a, s1), inv)))
    return a, b, c


def sums_mul(g, s):
    x = g.op("Sub", "x", wide(g, "mean"))
    return g.sum("dy", [0, 2, 3]), g.sum(g.op("Mul", "dy", x), [0, 2, 3])


def sums_dot(g, s):
    x = g.op("Sub", "x", wide(g, "mean"))
    return g.sum("dy", [0, 2, 3]), dot(g, "dy", x, s)


def sums_bn_dot(g, s):
    one, zero = g.const(np.ones(s[1], np.float32)), g.const(np.zeros(s[1], np.float32))
    x = bn(g, "x", one, zero, "mean", one, 0.0)
    return g.sum("dy", [0, 2, 3]), dot(g, "dy", x, s)


def sums_raw_dot(g, s):
    s1 = g.sum("dy", [0, 2, 3])
    return s1, g.op("Sub", dot(g, "dy", "x", s), g.op("Mul", "mean", s1))


def dx_plain(g, s, a, b, c):
    t = g.op("Add", g.op("Mul", "dy", wide(g, a)), g.op("Mul", "x", wide(g, b)))
    return g.op("Add", t, wide(g, c))


def dx_bn(g, s, a, b, c):
    one, zero = g.const(np.ones(s[1], np.float32)), g.const(np.zeros(s[1], np.float32))
    return g.op("Add", g.op("Mul", "dy", wide(g, a)), bn(g, "x", b, c, zero, one, 0.0))


def dx_bn2(g, s, a, b, c):
    one, zero = g.const(np.ones(s[1], np.float32)), g.const(np.zeros(s[1], np.float32))
    return g.op("Add", bn(g, "dy", a, zero, zero, one, 0.0), bn(g, "x", b, c, zero, one, 0.0))


def dx_ratio(g, s, a, b, c):
    """a (dy + b/a x + c/a)"""
    one, zero = g.const(np.ones(s[1], np.float32)), g.const(np.zeros(s[1], np.float32))
    t = g.op("Add", "dy", g.op("Mul", "x", wide(g, g.op("Div", b, a))))
    return bn(g, t, a, c, zero, one, 0.0)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--threads", type=int, nargs="+", default=[1])
    args = p.parse_args()
    rng = np.random.default_rng(0)
    for s in [(128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8), (128, 512, 4, 4), (8, 64, 56, 56)]:
        x = (rng.standard_normal(s) * 0.5 + 1.5).astype(np.float32)
        x64 = x.astype(np.float64)
        m, v = x64.mean((0, 2, 3)), x64.var((0, 2, 3))
        data = {"x": x, "dy": rng.standard_normal(s, np.float32), "mean": m.astype(np.float32), "var": v.astype(np.float32),
                "scale": rng.standard_normal(s[1], np.float32), "bias": rng.standard_normal(s[1], np.float32)}
        d64 = {k: a.astype(np.float64) for k, a in data.items()}
        e = lambda a: a.reshape(1, -1, 1, 1)
        xh = (x64 - e(m)) / np.sqrt(e(v) + EPS)
        y = xh * e(d64["scale"]) + e(d64["bias"])
        dxh = d64["dy"] * e(d64["scale"])
        dx = (dxh - e(dxh.mean((0, 2, 3))) - xh * e((dxh * xh).mean((0, 2, 3)))) / np.sqrt(e(v) + EPS)
        for threads in args.threads:
            def go(name, build, names, ref):
                g = G()
                out = build(g)
                se = g.session([(n, data[n].shape) for n in names], out, threads)
                feed = {n: data[n] for n in names}
                r = se.run(None, feed)[0]
                err = np.abs(r - ref).max() / np.abs(ref).max()
                return f"{name} {measure(se, feed, threads, True):.2f} ({err:.0e})"
            line = [go(f.__name__, lambda g: f(g, s), ["x", "scale", "bias", "mean", "var"], y) for f in FWD]
            print(s, f"t{threads}:", "  ".join(line), flush=True)
            line = []
            for f in (sums_mul, sums_dot, sums_bn_dot, sums_raw_dot):
                for d in (dx_plain, dx_bn, dx_bn2, dx_ratio):
                    if f is sums_mul or d is dx_bn:
                        line.append(go(f"{f.__name__}+{d.__name__}", lambda g: d(g, s, *coefficients(g, *f(g, s), s)), ["x", "dy", "scale", "mean", "var"], dx))
            print(s, f"t{threads}:", "  ".join(line), flush=True)


if __name__ == "__main__":
    main()
