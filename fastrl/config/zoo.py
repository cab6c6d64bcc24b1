"""Converts hyperparameter files of rl-baselines3-zoo to configurations.

An entry of these files has arguments of Stable-Baselines3's algorithms and of the zoo's own
script. Missing arguments get SB3's defaults, so that rollouts are like those of SB3.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastrl.arguments import brief, file_path, nearest_or_all, one_of
from fastrl.config.loading import load_config, read_text
from fastrl.config.text import parse_foreign_yaml
from fastrl.errors import ConfigError

ALGORITHMS = ("ppo", "a2c", "ppo_lstm", "ppo_mask")
"""Algorithms of the zoo, which are also the names of its files."""

_ROLLOUTS = {"ppo": 2048, "a2c": 5, "ppo_lstm": 128, "ppo_mask": 2048}
_MINIBATCHES = {"ppo": 64, "ppo_lstm": 128, "ppo_mask": 64}
_LSTM_SIZE = 256
_ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
_ATARI_FRAMES = 4
_NO_COUNTERPART = "has no counterpart"
_MOST_DIGITS = 400
"""Most characters of an expression in a file; longer ones are no hyperparameters."""


@dataclass
class Converted:
    """A converted entry.

    Attributes:
        tree: The configuration, as a tree of its YAML.
        remarks: One line for each key without an exact counterpart.
    """

    tree: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key."""
        *sections, last = key.split(".")
        place = self.tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value

    def remark(self, key: str, value: Any, why: str = _NO_COUNTERPART) -> None:
        """Add a remark about a key of the entry."""
        self.remarks.append(f"{key}: {brief(value)} {why}")


def convert_entry(
    file: str | Path, entry: str | None = None, algorithm: str | None = None, env: str | None = None
) -> Converted:
    """Return an entry of a file of rl-baselines3-zoo as a configuration.

    Args:
        file: Path of a file, such as ``hyperparams/ppo.yml``.
        entry: Its name in the file, mostly an environment's id; None for the only one.
        algorithm: One of `ALGORITHMS`; by default the name of the file.
        env: The id of the environment; by default the entry's name.

    Raises:
        ConfigError: The file or the entry cannot be read, or does not give a valid configuration.
    """
    path = file_path("file", file)
    tree = parse_foreign_yaml(read_text(path), str(path))
    if algorithm is None and path.stem not in ALGORITHMS:
        raise ConfigError(
            f"'{path.name}' does not have the name of an algorithm; "
            f"add --algorithm with one of {', '.join(ALGORITHMS)}"
        )
    algorithm = one_of("--algorithm", path.stem if algorithm is None else algorithm, ALGORITHMS)
    name, keys = _entry(tree, entry, str(path))
    if name == "atari" and env is None:
        raise ConfigError("entry 'atari' is for all games: choose one, such as --env ALE/Pong-v5")
    env_id = name if env is None else env
    found = Converted({"total_steps": 1_000_000, "env": {"id": env_id}})
    _convert(keys, algorithm, found)
    # An error in a value names the key to which it was converted.
    try:
        load_config(None, [f"{key}={json.dumps(value)}" for key, value in found.tree.items()])
    except ConfigError as error:
        problem = str(error).removeprefix("override: ")
        raise ConfigError(f"{path}: entry '{name}': {problem}") from None
    return found


def _entry(tree: Any, entry: str | None, origin: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{origin}: has no entries")
    names = [name for name in tree if isinstance(name, str)]
    if entry is None and len(names) != 1:
        raise ConfigError(f"{origin}: name an entry: {', '.join(names)[:400]}")
    name = names[0] if entry is None else entry
    if name not in tree:
        raise ConfigError(f"{origin}: no entry '{name}'{nearest_or_all(name, names)}")
    keys = tree[name]
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise ConfigError(f"{origin}: entry '{name}' is not a mapping of hyperparameters")
    if strange := [key for key, value in keys.items() if not _is_plain(value)]:
        raise ConfigError(
            f"{origin}: entry '{name}': {strange[0]} must be a number, a text, or a list or "
            "mapping of these"
        )
    return name, dict(keys)


def _convert(keys: dict[str, Any], algorithm: str, found: Converted) -> None:
    """Convert all keys of an entry, in the order of the configuration."""
    _total_steps(keys.pop("n_timesteps", None), found)
    _environment(keys, found)
    num_envs = keys.pop("n_envs", 1)
    length = keys.pop("n_steps", _ROLLOUTS[algorithm])
    found.put("sampler.num_envs", num_envs)
    found.put("sampler.rollout_length", length)
    found.put("algorithm.name", algorithm.partition("_")[0])
    if str(keys.pop("policy", "")).startswith("Cnn"):
        found.put("model.hidden_sizes", [])
    if algorithm == "ppo_lstm":
        found.put("model.recurrent", "lstm")
        found.put("model.recurrent_size", _LSTM_SIZE)
    _policy_kwargs(_value(keys.pop("policy_kwargs", None)), found)
    _normalization(_value(keys.pop("normalize", False)), found)
    if algorithm in _MINIBATCHES:
        _minibatches(keys.pop("batch_size", _MINIBATCHES[algorithm]), num_envs, length, found)
    if keys.pop("use_sde", False):
        found.remark("use_sde", True, "has no counterpart: noise is drawn anew in each step")
    elif keys.pop("sde_sample_freq", None) is not None:
        pass  # has no effect without use_sde
    for key, value in keys.items():
        if key in _SAME:
            found.put(_SAME[key], value)
        elif key in _SCHEDULED:
            _scheduled(key, value, found)
        elif key == "use_rms_prop":
            found.put("algorithm.optimizer", "rmsprop" if value else "adam")
        else:
            found.remark(key, value)


_SAME = {
    "clip_range_vf": "algorithm.clip_value_range",
    "ent_coef": "algorithm.entropy_coef",
    "gae_lambda": "algorithm.gae_lambda",
    "gamma": "algorithm.gamma",
    "max_grad_norm": "algorithm.max_grad_norm",
    "n_epochs": "algorithm.epochs",
    "normalize_advantage": "algorithm.normalize_advantage",
    "rms_prop_eps": "algorithm.optimizer_eps",
    "seed": "seed",
    "target_kl": "algorithm.target_kl",
    "vf_coef": "algorithm.value_coef",
}
"""Keys with the same values in fastrl."""
_SCHEDULED = {
    "learning_rate": ("algorithm.learning_rate", "algorithm.learning_rate_schedule"),
    "clip_range": ("algorithm.clip_range", "algorithm.clip_schedule"),
}


def _total_steps(value: Any, found: Converted) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        found.put("total_steps", int(value))
    elif value is None:
        found.remarks.append("n_timesteps is missing: total_steps is a million")
    else:
        found.remark("n_timesteps", value, "is not a finite number: total_steps is a million")


def _environment(keys: dict[str, Any], found: Converted) -> None:
    """Convert keyword arguments, wrappers and the stack of frames of the environment."""
    kwargs = _value(keys.pop("env_kwargs", None)) or {}
    wrappers = keys.pop("env_wrapper", None) or []
    frames = keys.pop("frame_stack", None)
    wrappers = wrappers if isinstance(wrappers, list) else [wrappers]
    entries = []
    for wrapper in wrappers:
        ((path, arguments),) = (
            wrapper.items() if isinstance(wrapper, dict) and len(wrapper) == 1 else [(wrapper, {})]
        )
        if not isinstance(arguments, dict | None):
            found.remark("env_wrapper", wrapper)
        elif path == _ATARI_WRAPPER and frames == _ATARI_FRAMES and not kwargs:
            frames = None
            kwargs = {"name": found.tree["env"]["id"], "episodic_life": True}
            kwargs |= {"reward_clipping": True, **(arguments or {})}
            found.put("env.id", "fastrl.envs.atari:sb3_atari")
            whole_games = {"episodic_life": False, "reward_clipping": False}
            found.put("evaluation.env_kwargs", whole_games)
        elif isinstance(path, str) and "." in path:
            module, _, name = path.rpartition(".")
            entry: Any = f"{module}:{name}"
            entries.append({"path": entry, "kwargs": arguments} if arguments else entry)
        else:
            found.remark("env_wrapper", wrapper)
    if frames is not None:
        stack = {"path": "gymnasium.wrappers:FrameStackObservation"}
        entries.append({**stack, "kwargs": {"stack_size": frames}})
    if kwargs:
        found.put("env.kwargs", kwargs)
    if entries:
        found.put("env.wrappers", entries)


def _minibatches(size: Any, num_envs: Any, length: Any, found: Converted) -> None:
    whole = num_envs * length if isinstance(num_envs, int) and isinstance(length, int) else size
    if isinstance(size, int) and size > whole:
        found.remark("batch_size", size, f"is more than a rollout: {whole}, which is all of it")
        size = whole
    found.put("algorithm.minibatch_size", size)


def _scheduled(key: str, value: Any, found: Converted) -> None:
    """Convert a number, or ``lin_`` and the number that falls to 0."""
    target, schedule = _SCHEDULED[key]
    if not isinstance(value, str):
        found.put(target, value)
        return
    try:
        found.put(target, float(value.removeprefix("lin_")))
    except ValueError:
        found.remark(key, value)
        return
    if value.startswith("lin_"):
        found.put(schedule, "linear")


def _normalization(value: Any, found: Converted) -> None:
    """Convert ``normalize``: a boolean, or arguments of ``VecNormalize``."""
    if not isinstance(value, dict):
        value = {"norm_obs": bool(value), "norm_reward": bool(value)}
    value = {"norm_obs": True, "norm_reward": True, **value}
    found.put("model.normalize_observations", value.pop("norm_obs"))
    found.put("algorithm.normalize_rewards", value.pop("norm_reward"))
    for key, each in value.items():
        # The zoo passes the discount factor itself.
        if key != "gamma":
            found.remark(f"normalize.{key}", each)


def _policy_kwargs(value: Any, found: Converted) -> None:
    """Convert the arguments of SB3's policy."""
    if value is None:
        return
    if not isinstance(value, dict):
        found.remark("policy_kwargs", value)
        return
    for key, each in value.items():
        convert = _OF_POLICY.get(key)
        if key in _SAME_OF_POLICY:
            found.put(_SAME_OF_POLICY[key], each)
        elif convert is not None and convert(each, found):
            pass
        elif key not in _ONLY_OF_POLICY or each != _ONLY_OF_POLICY[key]:
            found.remark(f"policy_kwargs.{key}", each)


def _architecture(value: Any, found: Converted) -> bool:
    """Convert ``net_arch``: sizes of all bodies, or of policy and value separately."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]  # the form of versions before 1.8
    if isinstance(value, dict) and value.keys() <= {"pi", "vf"}:
        found.put("model.hidden_sizes", value.get("pi", []))
        if value.get("vf", []) != value.get("pi", []):
            found.put("model.critic_hidden_sizes", value.get("vf", []))
    elif isinstance(value, list) and all(type(size) is int for size in value):
        found.put("model.hidden_sizes", value)
    else:
        return False
    if "recurrent" in found.tree.get("model", {}):
        why = "are layers behind the memory there; here hidden layers are before it"
        found.remark("policy_kwargs.net_arch", value, why)
    return True


def _activation(value: Any, found: Converted) -> bool:
    name = str(value).rpartition(".")[2].lower()
    if name in ("tanh", "relu", "elu", "gelu", "silu"):
        found.put("model.activation", name)
        return True
    return False


def _optimizer(value: Any, found: Converted) -> bool:
    name = str(value).rpartition(".")[2].lower()
    if name.startswith(("adam", "rmsprop")):
        found.put("algorithm.optimizer", "adam" if name.startswith("adam") else "rmsprop")
        return True
    return False


def _optimizer_kwargs(value: Any, found: Converted) -> bool:
    here = {"eps": "optimizer_eps", "betas": "adam_betas", "weight_decay": "weight_decay"}
    if not isinstance(value, dict) or not value.keys() <= here.keys():
        return False
    for key, each in value.items():
        found.put(f"algorithm.{here[key]}", each)
    return True


_OF_POLICY: Mapping[str, Callable[[Any, Converted], bool]] = {
    "activation_fn": _activation,
    "net_arch": _architecture,
    "optimizer_class": _optimizer,
    "optimizer_kwargs": _optimizer_kwargs,
}
"""Functions that convert an argument, and return whether they could."""
_SAME_OF_POLICY = {
    "log_std_init": "model.log_std_init",
    "lstm_hidden_size": "model.recurrent_size",
    "n_lstm_layers": "model.recurrent_layers",
    "ortho_init": "model.orthogonal_init",
}
_ONLY_OF_POLICY = {"enable_critic_lstm": True, "shared_lstm": False}
"""The one value that fastrl supports."""


def _value(value: Any) -> Any:
    """Return the value of a Python expression, which the zoo evaluates; other text unchanged.

    Literals, ``dict(…)`` and dotted names are understood; no code is run.
    """
    if not isinstance(value, str) or len(value) > _MOST_DIGITS:
        return value
    try:
        found = _literal(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError):
        return value
    return found if _is_plain(found) else value


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        if node.args or any(each.arg is None for each in node.keywords):
            raise ValueError("dict(…) of more than names and values")
        return {each.arg: _literal(each.value) for each in node.keywords}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        names = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(names, map(_literal, node.values), strict=True))
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)
    return ast.literal_eval(node)


def _is_plain(value: Any) -> bool:
    """Return whether a value is valid in JSON, with text as keys of mappings."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
