"""Draw how the state of a policy with a memory travels: imgs/memory.png.

python docs/draw_memory.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from draw_scheme import EDGE, ENV, LEARN, MODEL, TABLE, TEXT, arrow, box
from matplotlib.axes import Axes

TARGET = Path(__file__).parents[1] / "imgs" / "memory.png"
STEPS, LENGTH, BEGINS = 8, 4, 6
"""T, L, and the step with which an episode begins."""
WIDTH, GAP = 1.15, 0.5
ACTING, STORED, LEARNING = 4.0, 1.95, 0.0


def draw(axes: Axes) -> None:
    """Draw a rollout of one environment, what is stored of it, and the sequences learnt from."""
    for step in range(STEPS):
        colour = ENV if step < BEGINS else MODEL
        box(axes, _left(step), ACTING, WIDTH, 0.9, title=f"step {step}", colour=colour)
        box(axes, _left(step), LEARNING, WIDTH, 0.9, title=f"step {step}", colour=LEARN)
    for step in range(STEPS + 1):
        begins_episode, begins_segment = step == BEGINS, step % LENGTH == 0
        _state(axes, step, ACTING, cut=begins_episode)
        _state(axes, step, LEARNING, cut=begins_episode or step % LENGTH == 0)
        if begins_segment:
            _stored(axes, step)
    _initial(axes)
    sizes = f"one environment, T = {STEPS} steps,\nsequences of L = {LENGTH}"
    axes.text(-3.3, ACTING + 1.55, sizes, va="center", color=TEXT)
    for y, text in ((ACTING, "acting"), (STORED, "policy_state"), (LEARNING, "learning")):
        axes.text(-1.25, y + 0.45, text, ha="right", va="center", weight="bold", color=TEXT)


def _left(step: int) -> float:
    return step * (WIDTH + GAP)


def _state(axes: Axes, step: int, y: float, *, cut: bool) -> None:
    """Draw the state that enters a step from the one before, unless it is replaced there."""
    is_outside = step in (0, STEPS) and y == LEARNING
    if not cut and not is_outside:
        arrow(axes, (_left(step) - GAP, y + 0.45), (_left(step), y + 0.45))


def _stored(axes: Axes, step: int) -> None:
    """Draw a row of ``policy_state``: taken before a step, and where a sequence begins from it."""
    middle = _left(step) - GAP / 2
    row = step // LENGTH
    box(axes, middle - 0.75, STORED, 1.5, 0.9, title=f"row {row}", colour=TABLE)
    arrow(axes, (middle, ACTING + 0.45), (middle, STORED + 0.9))
    if step < STEPS:
        arrow(axes, (middle, STORED), (_left(step) + 0.25, LEARNING + 0.9))
    else:
        axes.text(
            middle, STORED - 0.1, "begins the\nnext rollout", ha="center", va="top", color=TEXT
        )


def _initial(axes: Axes) -> None:
    """Draw where an episode begins, in both rows, and whose value a truncated step takes."""
    x = _left(BEGINS)
    for y in (ACTING, LEARNING):
        axes.plot([x - GAP / 2] * 2, [y - 0.1, y + 1.0], color=EDGE, linewidth=2, linestyle=":")
        arrow(axes, (x + 0.35, y + 1.45), (x + 0.35, y + 0.9))
        axes.text(x + 0.4, y + 1.45, "initial state", ha="left", va="center", color=TEXT)
    last = _left(BEGINS - 1)
    axes.text(
        last + WIDTH,
        ACTING + 1.15,
        "an episode ends: final_value is the value of the\n"
        "final observation with this state, before the reset",
        ha="right",
        va="bottom",
        color=TEXT,
    )
    arrow(axes, (last + WIDTH, ACTING + 1.3), (x - GAP / 2 - 0.05, ACTING + 0.5))


def main() -> None:
    """Write the picture."""
    figure, axes = plt.subplots(figsize=(12, 5), dpi=160)
    axes.set_xlim(-3.4, _left(STEPS) + 0.9)
    axes.set_ylim(-0.3, 6.1)
    axes.axis("off")
    draw(axes)
    figure.savefig(TARGET, bbox_inches="tight", facecolor="white")
    print(TARGET)


if __name__ == "__main__":
    main()
