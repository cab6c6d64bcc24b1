"""Examples of each command, shown by its `--help`.

They can be run in order in a checkout: `train`, `record` and `push` create the runs and datasets
that the others use.
"""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "completion": (
        'eval "$(fastrl completion bash)"',
        'eval "$(fastrl completion zsh)"',
        "fastrl completion fish > ~/.config/fish/completions/fastrl.fish",
    ),
    "config": (
        "fastrl config configs/cartpole_ppo.yaml seed=7",
        "fastrl config --env CartPole-v1 --resolve",
        "fastrl config --schema > fastrl.schema.json",
    ),
    "convert": (
        "fastrl convert hyperparams/ppo.yml CartPole-v1 --output cartpole.yaml",
        "fastrl convert ppo.yml atari --env ALE/Breakout-v5 > breakout.yaml",
    ),
    "dataset": (
        "fastrl dataset datasets/cartpole",
        "fastrl dataset datasets/cartpole --picture returns.png",
    ),
    "doctor": ("fastrl doctor", "fastrl doctor --json"),
    "envs": ("fastrl envs", "fastrl envs CartPole", "fastrl envs --all"),
    "eval": (
        "fastrl eval runs/first --episodes 20",
        "fastrl eval first --checkpoint last --sampled --seed 3",
    ),
    "export": (
        "fastrl export first --format torchscript",
        "fastrl export first --format onnx --output cartpole.onnx",
    ),
    "new": ("fastrl new my_project",),
    "play": (
        "fastrl play first",
        "fastrl play CartPole-v1 --record datasets/by_hand",
        "fastrl play first --page",
    ),
    "plot": (
        "fastrl plot first second --output curves.png",
        "fastrl plot first --metric explained_variance",
    ),
    "plugins": ("fastrl plugins",),
    "pull": (
        "fastrl pull ./shared/first runs/theirs",
        "fastrl pull someone/cartpole",
    ),
    "push": (
        "fastrl push runs/first ./shared/first --checkpoint last",
        "fastrl push first someone/cartpole --private",
    ),
    "record": (
        "fastrl record first",
        "fastrl record first --video cartpole.gif --episodes 3",
        "fastrl record first --dataset datasets/cartpole --episodes 20",
    ),
    "resume": ("fastrl resume first total_steps=2e5", "fastrl resume runs/second total_steps=2e5"),
    "sweep": (
        "fastrl sweep configs/cartpole_ppo.yaml --seeds 0:5",
        "fastrl sweep --env CartPole-v1 --over algorithm.gamma=0.98,0.99 --seeds 0:3 --jobs 2",
    ),
    "throughput": (
        "fastrl throughput CartPole-v1 --limit",
        "fastrl throughput configs/cartpole_ppo.yaml --train --seconds 1 --repeats 3",
        "fastrl throughput configs/halfcheetah_v4_ppo_tuned.yaml -n 32 -N 2 --json speed.json",
    ),
    "train": (
        "fastrl train CartPole-v1 total_steps=100_000",
        "fastrl train configs/cartpole_ppo.yaml --name first seed=1",
        "fastrl train configs/cartpole_ppo.yaml --name second seed=2",
        "fastrl train CartPole-v1 sampler=auto",
    ),
    "tune": (
        "fastrl tune CartPole-v1 --budget 60s",
        "fastrl tune configs/cartpole_ppo.yaml --objective train_fps --write",
    ),
    "watch": ("fastrl watch", "fastrl watch first second", "fastrl watch runs --terminal"),
}
"""Examples by the name of the command."""

_VERBATIM = "\b"
"""Marks a paragraph whose lines are not joined."""


def epilog(command: str) -> str | None:
    """Return the end of a command's help, or None for a command without examples."""
    examples = EXAMPLES.get(command)
    return None if examples is None else "\n".join([_VERBATIM, "Examples:", *_indented(examples)])


def _indented(examples: tuple[str, ...]) -> list[str]:
    return [f"  {example}" for example in examples]
