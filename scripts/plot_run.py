"""Draws a run's training loss and validation accuracy over its epochs as SVG, with the standard library alone.

    python scripts/plot_run.py runs/demo docs/run.svg
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, INNER_W, INNER_H = 640, 300, 56, 40, 520, 210


def curve(values, low, high, colour):
    """A polyline of `values`, one for each epoch, between `low` and `high`."""
    step = INNER_W / max(len(values) - 1, 1)
    points = (f"{LEFT + i * step:.1f},{TOP + INNER_H * (high - v) / (high - low):.1f}" for i, v in enumerate(values))
    return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(points)}"/>'


def text(x, y, content, colour="#57606a", anchor="middle"):
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{content}</text>'


def main(run, target):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "valid_accuracy" in line]
    summary = json.loads((run / "summary.json").read_text())
    accuracy = [100 * e["valid_accuracy"] for e in epochs]
    loss = [e["loss"] for e in epochs]
    top = max(loss)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>')
    for i in range(6):
        y = TOP + INNER_H * (5 - i) / 5
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + INNER_W}" y1="{y}" y2="{y}" stroke="#d8dee4"/>')
        parts.append(text(LEFT - 8, y + 4, f"{20 * i} %", "#0969da", "end"))
        parts.append(text(LEFT + INNER_W + 8, y + 4, f"{top * i / 5:.1f}", "#bc4c00", "start"))
    parts += [curve(accuracy, 0, 100, "#0969da"), curve(loss, 0, top, "#bc4c00")]
    parts.append(text(LEFT, 22, "validation accuracy", "#0969da", "start"))
    parts.append(text(LEFT + INNER_W, 22, "training loss", "#bc4c00", "end"))
    caption = f"{len(epochs)} epochs; test accuracy {100 * summary['test_accuracy']:.1f} %"
    parts += [text(LEFT + INNER_W / 2, HEIGHT - 14, caption), "</svg>"]
    target.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
