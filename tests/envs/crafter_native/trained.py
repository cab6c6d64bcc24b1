"""A player with a trained policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastrl.training.run import _open, _policy


class Trained:
    """Samples from the policy of a run, given the original's observations."""

    def __init__(self, run: Path) -> None:
        config, checkpoint = _open(run, None)
        _, spec, self.model = _policy(config, checkpoint)
        self.steps = checkpoint.steps
        (self.leaf,) = spec.observation
        self.generator = torch.Generator()

    def __call__(self, env, rng: np.random.Generator) -> int:
        self.generator.manual_seed(int(rng.integers(2**31)))
        with torch.inference_mode():
            noise = self.model.draw_noise((1,), self.generator)
            seen = {self.leaf: torch.from_numpy(np.ascontiguousarray(env.picture))[None]}
            (action,) = self.model.act(seen, noise)[0].values()
        return int(action)
