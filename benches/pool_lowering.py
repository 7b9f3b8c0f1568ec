"""Times the plain-operator forms of MaxPool's gradient on ONNX Runtime's CPU provider.

    python benches/pool_lowering.py [--threads 1]
"""
import argparse

import numpy as np
from conv_lowering import G, measure
from onnx import TensorProto, helper


class P:
    def __init__(self, n, c, h, k, s, p):
        self.n, self.c, self.h, self.k, self.s, self.p = n, c, h, k, s, p
        self.o = (h + 2 * p - k) // s + 1
        self.x, self.y = (n, c, h, h), (n, c, self.o, self.o)


def pool(g, L, indices):
    y, i = g.name(), g.name()
    g.nodes.append(helper.make_node("MaxPool", ["x"], [y, i] if indices else [y], kernel_shape=[L.k] * 2,
                                    strides=[L.s] * 2, pads=[L.p] * 4))
    return y, i


def forward(g, L):
    return pool(g, L, False)[0]


def forward_indices(g, L):
    y, i = pool(g, L, True)
    return g.op("Add", y, g.op("Cast", g.reshape(g.slice(g.reshape(i, [-1]), [0], [0], [1], [1]), [1, 1, 1, 1]), to=1))


def zeros(g, n):
    return g.op("Expand", g.const(np.float32(0)), g.ints([n]))


def scatter_add(g, L):
    _, i = pool(g, L, True)
    z = zeros(g, L.n * L.c * L.h * L.h)
    return g.reshape(g.op("ScatterElements", z, g.reshape(i, [-1]), g.reshape("dy", [-1]), axis=0, reduction="add"), L.x)


def scatter(g, L):
    if L.k != L.s:
        return None
    _, i = pool(g, L, True)
    z = zeros(g, L.n * L.c * L.h * L.h)
    return g.reshape(g.op("ScatterElements", z, g.reshape(i, [-1]), g.reshape("dy", [-1]), axis=0), L.x)


def scatter_nd(g, L):
    if L.k != L.s:
        return None
    _, i = pool(g, L, True)
    z = zeros(g, L.n * L.c * L.h * L.h)
    return g.reshape(g.op("ScatterND", z, g.reshape(i, [-1, 1]), g.reshape("dy", [-1])), L.x)


def rows(g, L):
    """scatter along the last axis of [N C, H W]"""
    _, i = pool(g, L, True)
    base = g.const((np.arange(L.n * L.c) * L.h * L.h).reshape(-1, 1))
    i = g.op("Sub", g.reshape(i, [L.n * L.c, L.o**2]), base)
    z = g.op("Expand", g.const(np.float32(0)), g.ints([L.n * L.c, L.h**2]))
    return g.reshape(g.op("ScatterElements", z, i, g.reshape("dy", [L.n * L.c, L.o**2]), axis=1, reduction="add"), L.x)


def first_equal(g, L):
    """Windows do not overlap: dy where x equals y, and no earlier x of the window does."""
    if L.k != L.s or L.p or L.h % L.k:
        return None
    y, _ = pool(g, L, False)
    k, o = L.k, L.o
    cols = []
    free = None
    for u in range(k):
        for v in range(k):
            x = g.slice("x", [2, 3], [u, v], [L.h, L.h], [k, k])
            e = g.op("Equal", x, y)
            if free is None:
                hit, free = e, g.op("Not", e)
            else:
                hit = g.op("And", e, free)
                free = g.op("And", free, g.op("Not", e))
            d = g.op("Mul", g.op("Cast", hit, to=1), "dy")
            cols.append(g.reshape(d, [L.n, L.c, o, o, 1]))
    r = [g.reshape(g.op("Concat", *cols[u * k:u * k + k], axis=4), [L.n, L.c, o, 1, o * k]) for u in range(k)]
    return g.reshape(g.op("Concat", *r, axis=3), L.x)


def first_equal_overlap(g, L):
    """Any window: one mask per tap; the masked dy of each tap is spread to where the tap reads and added."""
    y, _ = pool(g, L, False)
    k, o, s = L.k, L.o, L.s
    span = (o - 1) * s + 1
    size = span + k - 1
    ninf = g.const(np.float32(-np.inf))
    e = size - L.h - L.p
    x = g.op("Pad", "x", g.ints([0, 0, L.p, L.p, 0, 0, e, e]), ninf) if L.p or e else "x"
    free = total = None
    for u in range(k):
        for v in range(k):
            t = g.slice(x, [2, 3], [u, v], [u + span, v + span], [s, s])
            eq = g.op("Equal", t, y)
            if free is None:
                hit, free = eq, g.op("Not", eq)
            else:
                hit = g.op("And", eq, free)
                free = g.op("And", free, g.op("Not", eq))
            d = g.op("Mul", g.op("Cast", hit, to=1), "dy")
            if s > 1:
                d = g.pad(g.reshape(d, [L.n, L.c, o, 1, o, 1]), [0] * 6 + [0, 0, 0, s - 1, 0, s - 1])
                d = g.reshape(d, [L.n, L.c, o * s, o * s])
            w = o * s
            d = g.pad(d, [0, 0, u - L.p, v - L.p, 0, 0, L.h - (w + u - L.p), L.h - (w + v - L.p)])
            total = d if total is None else g.op("Add", total, d)
    return total


FORMS = [forward, forward_indices, scatter_add, scatter, scatter_nd, rows, first_equal, first_equal_overlap]


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--threads", type=int, nargs="+", default=[1])
    args = a.parse_args()
    rng = np.random.default_rng(0)
    for L in [P(128, 64, 32, 2, 2, 0), P(128, 128, 16, 2, 2, 0), P(8, 64, 112, 3, 2, 1), P(64, 128, 16, 3, 1, 1)]:
        data = {"x": rng.standard_normal(L.x, np.float32), "dy": rng.standard_normal(L.y, np.float32)}
        data["x"] = np.maximum(data["x"], 0)  # many ties
        for threads in args.threads:
            line, ref = [], None
            for f in FORMS:
                g = G()
                out = f(g, L)
                if out is None:
                    continue
                names = ["x"] if f in FORMS[:2] else ["x", "dy"]
                s = g.session([(n, data[n].shape) for n in names], out, threads)
                feed = {n: data[n] for n in names}
                r = s.run(None, feed)[0]
                if f not in FORMS[:2]:
                    ref = r if ref is None else ref
                    if not np.allclose(r, ref, atol=1e-4):
                        print("WRONG", f.__name__)
                line.append(f"{f.__name__} {measure(s, feed, threads, True):.2f}")
            print(f"{L.x} k{L.k} s{L.s} p{L.p} t{threads}:", "  ".join(line), flush=True)


if __name__ == "__main__":
    main()
