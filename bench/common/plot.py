"""An SVG of ratios: one bar a figure, how many times as fast as TCG, on a logarithmic axis."""
import math
from html import escape

LABEL, AXIS, BAR, GAP, TOP_MARGIN = 230, 560, 13, 4, 62
TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)
FASTER, SLOWER, GRID, INK = "#2a6f97", "#c0504d", "#d9dde1", "#22272b"


def text(x, y, content, anchor="start", size=11, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{INK}">'
            f"{escape(content)}</text>")


def axis(values):
    """The ticks that enclose all values, and the place of a value on the axis."""
    low, high = min([*values, 1]), max([*values, 8])
    ticks = [t for t in TICKS if low / 2 < t < high * 2]
    first, last = math.log(ticks[0]), math.log(ticks[-1])

    def place(value):
        return LABEL + AXIS * (min(max(math.log(value), first), last) - first) / (last - first)
    return ticks, place


def draw(subjects):
    """`subjects`: results in their JSON form. Figures without a ratio are left out."""
    groups = [(s["subject"], [(r["name"], r["speedup_over_tcg"]) for r in s["rows"] if r["speedup_over_tcg"]]) for s in subjects]
    groups = [g for g in groups if g[1]]
    ticks, place = axis([ratio for _, rows in groups for _, ratio in rows])
    y, body = TOP_MARGIN, []
    for name, rows in groups:
        body.append(text(10, y + BAR, name, size=13, weight="bold"))
        y += BAR + 2 * GAP
        for label, ratio in rows:
            left, right = sorted((place(1), place(ratio)))
            body.append(text(LABEL - 8, y + BAR - 3, label, "end"))
            body.append(f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 1):.1f}" height="{BAR}" '
                        f'fill="{FASTER if ratio >= 1 else SLOWER}"/>')
            body.append(text(max(right, place(1)) + 4, y + BAR - 3, f"{ratio:.1f}"))
            y += BAR + GAP
        y += 2 * GAP
    lines = [f'<line x1="{place(t):.1f}" y1="{TOP_MARGIN - 6}" x2="{place(t):.1f}" y2="{y}" stroke="{INK if t == 1 else GRID}"/>'
             + text(place(t), TOP_MARGIN - 12, f"{t:g}x", "middle") for t in ticks]
    head = text(10, 24, "polder-vmm jit against QEMU TCG: times as fast (the better of TCG's machines)", size=15, weight="bold")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + AXIS + 60}" height="{y + 10}" font-family="sans-serif">\n'
            '<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join([head, *lines, *body]) + "\n</svg>\n")
