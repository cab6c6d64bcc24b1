"""Draw a trained agent beside the panel of its training: imgs/cartpole.gif.

python docs/draw_agent.py configs/cartpole_ppo.yaml imgs/cartpole.gif evaluation.stop_at=475

Trains the configuration in a terminal, in a new runs/NAME of the picture's name, then plays.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageSequence

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import fastrl  # noqa: E402
from tests.terminal import Terminal  # noqa: E402

COLUMNS, ROWS = 78, 32
HEIGHT, LINE, MARGIN = 240, 17, 10
"""Of the picture, in pixels."""
FRAMES, EVERY, FRAME_MS = 100, 2, 40
"""Pictures of the agent, one of so many frames, and how long each is shown."""
BACKGROUND, INK, ACCENT, DIM = "#1a1b26", "#c0caf5", "#7aa2f7", "#3b4261"
HELD = 5
"""Pictures for which a panel is shown."""
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"


def watch(config: str, overrides: list[str], run: Path) -> list[str]:
    """Train in a terminal; return the panels that its screen showed, several per second."""
    command = [sys.executable, "-m", "fastrl", "train", config, f"run_dir={run}", *overrides]
    terminal = Terminal(command, COLUMNS, ROWS, cwd=ROOT, env=os.environ | {"TERM": "xterm"})
    shown: list[str] = []
    try:
        while terminal.process.poll() is None:
            terminal._read(0.2)
            panel = "╭" + str(terminal.screen).rpartition("╭")[2]
            if "return" in panel and panel.endswith("╯") and panel not in shown[-1:]:
                shown.append(panel)
    finally:
        terminal.close()
    return shown


def play(run: Path) -> list[Image.Image]:
    """Return pictures of one episode of the trained policy."""
    with tempfile.TemporaryDirectory() as directory:
        path, returns = fastrl.record_run(run, Path(directory) / "episode.gif", seed=1)
        print(f"a return of {returns[0]:.1f}")
        with Image.open(path) as episode:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(episode)]
    width = frames[0].width * HEIGHT // frames[0].height
    return [
        frame.resize((width, HEIGHT), Image.Resampling.LANCZOS)
        for frame in frames[: FRAMES * EVERY : EVERY]
    ]


def draw_panel(text: str) -> Image.Image:
    """Draw the lines of a screen."""
    font = ImageFont.truetype(str(FONT), 13)
    step = font.getlength("─")
    picture = Image.new("RGB", (int(COLUMNS * step) + 2 * MARGIN, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    lines = text.splitlines()
    top = (HEIGHT - LINE * len(lines)) // 2
    for number, line in enumerate(lines):
        for column, sign in enumerate(line):
            is_left = any(end in line[:column] for end in "╸╺")  # of the bar
            colour = (DIM if is_left else ACCENT) if sign == "━" else INK
            draw.text((MARGIN + column * step, top + LINE * number), sign, font=font, fill=colour)
    return picture


def main() -> None:
    """Train, play and draw."""
    config, target, *overrides = sys.argv[1:]
    run = Path("runs") / Path(target).stem
    panels = watch(config, overrides, run)
    agent = play(ROOT / run)
    pictures = []
    for number, frame in enumerate(agent):
        panel = draw_panel(panels[number // HELD * HELD * (len(panels) - 1) // (len(agent) - HELD)])
        both = Image.new("RGB", (frame.width + panel.width, HEIGHT))
        both.paste(frame, (0, 0))
        both.paste(panel, (frame.width, 0))
        pictures.append(both.quantize(32, dither=Image.Dither.NONE))
    options = {"duration": FRAME_MS, "loop": 0, "optimize": True}
    pictures[0].save(target, save_all=True, append_images=pictures[1:], **options)


if __name__ == "__main__":
    main()
