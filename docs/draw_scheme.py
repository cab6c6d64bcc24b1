"""Draw how fastrl's processes share work: imgs/parallelism_scheme.png.

python docs/draw_scheme.py
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ENV, MODEL, TABLE, LEARN, QUIET = "#dbe9f6", "#fde5cc", "#eeeeee", "#dcefdc", "#f7f7f7"
EDGE, TEXT = "#44546a", "#1f2933"
CAPTION: dict[str, Any] = {"ha": "center", "va": "top", "size": 8.5, "color": TEXT}


TARGET = Path(__file__).parents[1] / "imgs" / "parallelism_scheme.png"


def box(axes: Axes, left: float, bottom: float, width: float, height: float, **style: str) -> None:
    """Draw a rounded box with a title and, smaller, a note."""
    title, note, colour = style["title"], style.get("note", ""), style["colour"]
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colour,
            edgecolor=EDGE,
            linewidth=1.2,
            linestyle=style.get("line", "solid"),
        )
    )
    middle, top = left + width / 2, bottom + height
    title_y = top - 0.3 if note else bottom + height / 2
    axes.text(middle, title_y, title, ha="center", va="center", color=TEXT, weight="bold", size=9.5)
    if note:
        axes.text(middle, top - 0.55, note, ha="center", va="top", color=TEXT, size=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: str) -> None:
    """Draw an arrow with a label beside it."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=14,
            color=EDGE,
            linewidth=1.4,
            linestyle=style.get("line", "solid"),
        )
    )
    label = style.get("label")
    if label:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(
            x + float(style.get("shift", "0")),
            y + float(style.get("lift", "0.12")),
            label,
            ha="center",
            va="bottom",
            size=9,
            color=TEXT,
        )


def draw(axes: Axes) -> None:
    """Draw the scheme."""
    for index, y in enumerate((5.2, 3.7, 1.5)):
        name = f"env worker {('0', '1', 'N − 1')[index]}"
        note = "n environments, G groups;\nwith M = 0 the policy, too"
        box(axes, 0.0, y, 3.2, 1.15, title=name, note=note, colour=ENV)
    axes.text(1.6, 3.2, "⋮", ha="center", va="center", size=18, color=TEXT)
    box(
        axes,
        5.9,
        1.5,
        2.9,
        4.85,
        title="shared tensors",
        note="one table [T + 1, B]\nB = N · n slots\n\nobservation\nreward\nterminated, truncated\n"
        "final_observation\n\naction\nlog_prob, value\nfinal_value\npolicy_version\n\n"
        "2 banks: one is filled,\none is learnt from",
        colour=TABLE,
    )
    axes.text(13.0, 6.62, "only with M > 0; the default is M = 0", **CAPTION)
    for y, name in ((5.2, "0"), (3.7, "M − 1")):
        note = "policy, on CPU or GPU"
        style = {"title": f"model worker {name}", "note": note, "line": "dashed"}
        box(axes, 11.5, y, 3.0, 1.15, colour=MODEL, **style)
    axes.text(13.0, 5.02, "⋮", ha="center", va="center", size=14, color=TEXT)
    box(axes, 11.5, 1.5, 3.0, 1.15, title="learner", note="A2C, PPO", colour=LEARN)
    note = "plays episodes of its own"
    box(axes, 11.5, -0.4, 3.0, 1.15, title="evaluator", note=note, colour=MODEL)
    box(axes, 0.0, -0.2, 3.2, 0.8, title="throughput process", colour=QUIET)
    box(axes, 5.9, -0.2, 2.9, 0.8, title="counters", colour=QUIET)
    _draw_arrows(axes)


def _draw_arrows(axes: Axes) -> None:
    arrow(axes, (3.2, 5.95), (5.9, 5.95), label="observations, rewards")
    arrow(axes, (5.9, 5.45), (3.2, 5.45), label="actions", lift="-0.32")
    axes.text(4.55, 5.0, "(with M = 0 written\nby the env workers)", **CAPTION)
    arrow(axes, (3.2, 4.28), (5.9, 4.28))
    arrow(axes, (3.2, 2.08), (5.9, 2.08))
    arrow(axes, (8.8, 5.95), (11.5, 5.95), label="ready groups, batched", line="dashed")
    arrow(axes, (11.5, 5.45), (8.8, 5.45), label="actions, values", lift="-0.32", line="dashed")
    arrow(axes, (8.8, 4.28), (11.5, 4.28), line="dashed")
    arrow(axes, (8.8, 2.08), (11.5, 2.08), label="rollouts, as views")
    arrow(axes, (13.0, 2.65), (13.0, 3.7))
    axes.text(
        12.85,
        3.17,
        "weights, versioned:\nto model workers, or\nwith M = 0 to env workers",
        ha="right",
        va="center",
        size=9,
        color=TEXT,
    )
    arrow(axes, (13.0, 1.5), (13.0, 0.75), label="weights", shift="0.5", lift="-0.15")
    arrow(axes, (5.9, 0.2), (3.2, 0.2), label="frames per second")
    arrow(axes, (7.35, 1.5), (7.35, 0.6))


def main() -> None:
    """Write the picture."""
    figure, axes = plt.subplots(figsize=(11, 5.5), dpi=160)
    axes.set_xlim(-0.1, 14.6)
    axes.set_ylim(-0.5, 6.75)
    axes.axis("off")
    draw(axes)
    figure.savefig(TARGET, bbox_inches="tight", facecolor="white")
    print(TARGET)


if __name__ == "__main__":
    main()
