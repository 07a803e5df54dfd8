"""Draw each architecture's block as an SVG: ``python tools/diagrams.py`` writes ``notebooks/diagrams/``.

The upper row is the network, the lower one its block. Blue mixes positions, orange mixes channels, what is grey treats
each number, or each position's vector, by itself. Sizes are the tuned tier's.
"""

from html import escape
from pathlib import Path

import yaml

from patchlib import models
from patchlib.parameters import ARCHITECTURES

ROOT = Path(__file__).parents[1]
FILLS = {"positions": "#2f6fc4", "channels": "#c9731a", "both": "url(#both)", "neither": "#7a828c", "data": "#3d444d"}
HEIGHT, GAP, ARROW, LETTER = 44, 16, 84, 7.6  # pixels; an arrow with a shape on it is longer than one without
TALL = 200
LEGEND = {"positions": "mixes positions", "channels": "mixes channels", "both": "both", "neither": "neither"}


class Residual(list):
    """Steps whose input is added to their output."""


class Gate(list):
    """Steps that one half of the channels goes through, before it multiplies the other half."""


def box(text, kind="neither"):
    return text, kind


def network(name, p, tokens):
    """The steps of the network and of its block; a string is the shape on an arrow."""
    dim = f"{tokens} × {p.dim}"
    norm, gelu = box("LayerNorm"), box("GELU")
    pool, head = box("mean of positions", "positions"), box("linear head", "channels")
    embed = (
        box(f"patch embedding|{p.patch_size} × {p.patch_size} pixels", "channels") if hasattr(p, "patch_size") else None
    )
    position = box("+ position|embedding")

    def mlp(hidden, out=p.dim, kind="channels"):
        return [box(f"dense {hidden}", kind), gelu, box(f"dense {out}", kind)]

    if name == "convmixer":
        side = int(tokens**0.5)
        dim = f"{side} × {side} × {p.dim}"
        batchnorm = box("BatchNorm")
        stem = [embed, gelu, batchnorm, dim]
        depthwise = box(f"depthwise conv|{p.kernel_size} × {p.kernel_size}", "positions")
        pointwise = box("pointwise conv|1 × 1", "channels")
        block = [Residual([depthwise, gelu, batchnorm]), pointwise, gelu, batchnorm]
        tail = [pool, str(p.dim)]
    elif name in ("cct", "vit"):
        attention = box(f"self-attention|{p.heads} heads", "both")
        block = [Residual([norm, attention]), Residual([norm, *mlp(p.mlp_dim)])]
        if name == "cct":
            convolutions = f"{p.conv_layers} × conv {p.kernel_size} × {p.kernel_size},|ReLU, max pooling"
            stem = [box(convolutions, "both"), dim, position]
            tail = [norm, box("sequence pooling:|a learned vote", "positions"), str(p.dim)]
        else:
            stem = [embed, box("class token|in front"), f"{tokens} × {p.dim}", position]
            tail = [norm, box("class token"), str(p.dim)]
    elif name == "mlp_mixer":
        turn = box("transpose")
        over_tokens = [turn, f"{p.dim} × {tokens}", *mlp(p.tokens_dim, tokens, "positions"), turn]
        block = [Residual([norm, *over_tokens]), Residual([norm, *mlp(p.channels_dim)])]
        stem, tail = [embed, dim], [norm, pool, str(p.dim)]
    elif name == "fnet":
        block = [Residual([box("Fourier transform,|real part", "both")]), norm]
        block += [Residual(mlp(p.hidden_dim)), norm]
        stem, tail = [embed, dim, position], [pool, str(p.dim)]
    else:
        half = f"{tokens} × {p.hidden_dim // 2}"
        gate = Gate([half, norm, box(f"dense {tokens}|over positions", "positions")])
        inner = [norm, box(f"dense {p.hidden_dim}", "channels"), gelu, f"{tokens} × {p.hidden_dim}", gate]
        block = [Residual([*inner, half, box(f"dense {p.dim}", "channels")])]
        stem, tail = [embed, dim], [norm, pool, str(p.dim)]
    image = ["32 × 32 × 3"]
    whole = [*image, *stem, box(f"block|{p.depth} times", "data"), dim, *tail, head, "logits"]
    return whole, [dim, *block, dim]


class Drawing:
    """SVG elements."""

    def __init__(self):
        self.parts = []

    def line(self, points, head=True):
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#head)"' if head else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="#3d444d" stroke-width="1.5"{end}/>')

    def text(self, x, y, words, color="#1f2328", anchor="middle"):
        self.parts.append(f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}">{escape(words)}</text>')

    def box(self, x, y, text, kind):
        """Draw a box centred on y; returns its width."""
        lines = text.split("|")
        width = max(LETTER * max(map(len, lines)) + 12, 44)
        corner = f'x="{x:g}" y="{y - HEIGHT / 2:g}" width="{width:g}" height="{HEIGHT}"'
        self.parts.append(f'<rect {corner} rx="6" fill="{FILLS[kind]}"/>')
        for i, words in enumerate(lines):
            self.text(x + width / 2, y + 5 + 17 * (i - (len(lines) - 1) / 2), words, "#ffffff")
        return width

    def sign(self, x, y, what):
        """A sum or a product in a circle."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="#ffffff" stroke="#3d444d" stroke-width="1.5"/>')
        self.text(x, y + 5, what)

    def steps(self, x, y, steps):
        """Draw steps from left to right, with an arrow before each box but a first one; returns where they end."""
        shape = joined = None
        for step in steps:
            if isinstance(step, str):
                shape = step
                continue
            x = self.arrow(x, y, shape, head=not isinstance(step, list)) if joined or shape else x
            shape, joined = None, True
            if isinstance(step, Residual):
                x = self.residual(x, y, step)
            elif isinstance(step, Gate):
                x = self.gate(x, y, step)
            else:
                x += self.box(x, y, *step)
        return self.arrow(x, y, shape) if shape else x

    def arrow(self, x, y, shape=None, head=True):
        length = max(ARROW, LETTER * len(shape) + 24) if shape else GAP
        if shape:
            self.text(x + length / 2 - 3, y - 7, shape)
        self.line([(x, y), (x + length, y)], head)
        return x + length

    def residual(self, x, y, steps):
        start = x
        self.line([(x, y), (x + GAP, y)])
        end = self.steps(x + GAP, y, steps)
        end = self.arrow(end, y) + 9
        self.sign(end, y, "+")
        self.line([(start, y), (start, y - 42), (end, y - 42), (end, y - 9)])
        return end + 9

    def gate(self, x, y, steps):
        start, lower = x, y + 54
        self.line([(x, y), (x, lower)], head=False)
        end = self.steps(x, lower, steps) + GAP + 9
        self.line([(end - GAP - 9, lower), (end, lower), (end, y + 9)])
        self.text((start + end) / 2, y - 7, f"the other half, {steps[0]}")
        self.line([(start, y), (end - 9, y)])
        self.sign(end, y, "×")
        return end + 9


def svg(name):
    """The diagram of an architecture, as text."""
    p = ARCHITECTURES[name](**yaml.safe_load((ROOT / "notebooks" / "tiers" / f"{name}-tuned.yaml").read_text()))
    build = getattr(models, name)
    shape = build(**p.arguments(build)).get_layer("block_0").input.shape[1:-1]
    tokens = shape[0] if len(shape) == 1 else shape[0] * shape[1]
    drawing = Drawing()
    whole, block = network(name, p, tokens)
    drawing.text(16, 26, "the network", anchor="start")
    wide = drawing.steps(16, 66, whole)
    drawing.text(16, 118, "its block", anchor="start")
    wide = max(drawing.steps(16, 168, block), wide) + 16
    drawn, x, y = "".join(drawing.parts), 150, 22
    for kind, words in LEGEND.items():
        if FILLS[kind] in drawn:
            drawing.parts.append(f'<rect x="{x}" y="{y - 9}" width="13" height="13" rx="3" fill="{FILLS[kind]}"/>')
            drawing.text(x + 20, y + 3, words, anchor="start")
            x += 40 + LETTER * len(words)
    tall = TALL + 52 * (name == "gmlp")
    return _SVG.format(name=name, width=round(wide), height=tall, body="\n".join(drawing.parts))


_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
font-family="Helvetica, Arial, sans-serif" font-size="14" role="img" aria-label="{name}: the network and its block">
<defs>
<linearGradient id="both">
<stop offset="0.5" stop-color="#2f6fc4"/><stop offset="0.5" stop-color="#c9731a"/>
</linearGradient>
<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0,0 L8,4 L0,8 z" fill="#3d444d"/></marker>
</defs>
<rect width="100%" height="100%" rx="10" fill="#ffffff"/>
{body}
</svg>
"""


if __name__ == "__main__":
    folder = ROOT / "notebooks" / "diagrams"
    folder.mkdir(exist_ok=True)
    for name in ARCHITECTURES:
        (folder / f"{name}.svg").write_text(svg(name))
