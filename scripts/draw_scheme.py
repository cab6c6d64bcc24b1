"""Draw how fastrl's processes share work: imgs/parallelism_scheme.png.

python scripts/draw_scheme.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from command_line import Parser, output
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ENV, MODEL, TABLE, LEARN, QUIET = "#dbe9f6", "#fde5cc", "#eeeeee", "#dcefdc", "#f7f7f7"
EDGE, TEXT = "#44546a", "#1f2933"


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
            x,
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
        box(axes, 0.2, y, 2.8, 1.15, title=name, note="n environments,\nin G groups", colour=ENV)
    axes.text(1.6, 3.2, "⋮", ha="center", va="center", size=18, color=TEXT)
    box(
        axes,
        5.6,
        1.5,
        2.9,
        4.85,
        title="shared tensors",
        note="one table [T + 1, B]\nB = N · n slots\n\nobservation\nreward\nterminated, truncated\n"
        "final_observation\n\naction\nlog_prob, value\nfinal_value\npolicy_version\n\n"
        "2 banks: one is filled,\none is learnt from",
        colour=TABLE,
    )
    for y, name in ((5.2, "0"), (3.4, "M − 1")):
        note = "policy, on CPU or GPU"
        box(axes, 11.1, y, 2.9, 1.15, title=f"model worker {name}", note=note, colour=MODEL)
    axes.text(12.55, 4.87, "⋮", ha="center", va="center", size=18, color=TEXT)
    box(axes, 11.1, 1.5, 2.9, 1.15, title="learner", note="A2C, PPO", colour=LEARN)
    box(axes, 0.2, 0.0, 2.8, 0.8, title="throughput process", colour=QUIET)
    box(axes, 5.6, 0.0, 2.9, 0.8, title="counters", colour=QUIET)

    arrow(axes, (3.0, 5.95), (5.6, 5.95), label="observations, rewards")
    arrow(axes, (5.6, 5.45), (3.0, 5.45), label="actions", lift="-0.32")
    arrow(axes, (3.0, 4.28), (5.6, 4.28))
    arrow(axes, (3.0, 2.08), (5.6, 2.08))
    arrow(axes, (8.5, 5.95), (11.1, 5.95), label="ready groups, batched")
    arrow(axes, (11.1, 5.45), (8.5, 5.45), label="actions, values", lift="-0.32")
    arrow(axes, (8.5, 3.98), (11.1, 3.98))
    arrow(axes, (8.5, 2.08), (11.1, 2.08), label="rollouts, as views")
    arrow(axes, (12.55, 2.65), (12.55, 3.4))
    axes.text(12.75, 3.02, "weights, versioned", ha="left", va="center", size=9, color=TEXT)
    arrow(axes, (5.6, 0.4), (3.0, 0.4), label="frames per second", line="dashed")
    arrow(axes, (7.05, 1.5), (7.05, 0.8), line="dashed")


def main() -> None:
    """Write the picture."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=output, default=TARGET, help="a picture, such as a .png")
    target = parser.parse_args().output
    figure, axes = plt.subplots(figsize=(11, 5.2), dpi=160)
    axes.set_xlim(-0.1, 14.6)
    axes.set_ylim(-0.2, 6.6)
    axes.axis("off")
    draw(axes)
    figure.savefig(target, bbox_inches="tight", facecolor="white")
    print(target)


if __name__ == "__main__":
    main()
