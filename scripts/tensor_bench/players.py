"""Ways to step n environments of classic control: fastrl's, gymnasium's and EnvPool's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from fastrl.config import ModelConfig
from fastrl.envs.batched_env import StepViews
from fastrl.envs.classic_control.batch import ClassicControlBatch, Options
from fastrl.envs.tensor import ModulePolicy, RandomPolicy, Rollouts, make_tensor
from fastrl.models import ActorCritic, PolicyOutput, build_engine
from fastrl.spec import EnvSpec

Run = Callable[[int], None]
"""Steps every environment so many times, and returns when that is done."""


_MOST_ON_CPU = 2**16
"""Environments of a tensor program, of which a step of more takes seconds on a CPU."""
_MOST_OF_ENVPOOL = 2**14
"""Environments of EnvPool, which has been slower at every larger number."""
_FEW, _RACE_S = 8, 0.1
"""Environments from which on EnvPool is tried with smaller batches, and how long each try takes."""


@dataclass(frozen=True)
class Setting:
    """What is stepped.

    Attributes:
        env: Id of the environment.
        num_envs: n.
        hidden_sizes: Of the policy that acts; without any, actions are random.
        threads: Threads that may step.
        steps_per_call: Steps that methods with whole rollouts take in a call; 0 lets them choose.
    """

    env: str
    num_envs: int
    hidden_sizes: tuple[int, ...] = ()
    threads: int = 1
    steps_per_call: int = 0

    @property
    def length(self) -> int:
        """Length of a rollout: one that fits into memory, and the same for all calls."""
        return self.steps_per_call or max(1, min(32, 2**23 // self.num_envs))

    def spec(self) -> EnvSpec:
        """Return what one environment observes and accepts."""
        return make_tensor(self.env)[0].spec


def model_of(spec: EnvSpec, hidden_sizes: tuple[int, ...]) -> ActorCritic:
    """Return the policy that acts."""
    torch.manual_seed(0)
    return ActorCritic(spec, ModelConfig(hidden_sizes=hidden_sizes, shared_body=True))


def gymnasium_single(setting: Setting) -> Run | None:
    """Step one environment of gymnasium from Python."""
    if setting.num_envs != 1:
        return None
    env = gymnasium.make(setting.env, disable_env_checker=True)
    spec = setting.spec()
    act = _single_actor(spec, setting.hidden_sizes)
    box = isinstance(spec.action_space, spaces.Box)
    observation = env.reset(seed=0)[0]

    def run(steps: int) -> None:
        nonlocal observation
        for _ in range(steps):
            action = act(observation)
            action = np.clip(action, env.action_space.low, env.action_space.high) if box else action
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()

    return run


def gymnasium_vector(setting: Setting) -> Run | None:
    """Step gymnasium's own vectorised environment, which there is of CartPole."""
    if gymnasium.spec(setting.env).vector_entry_point is None or setting.hidden_sizes:
        return None
    env = gymnasium.make_vec(
        setting.env, num_envs=setting.num_envs, vectorization_mode="vector_entry_point"
    )
    return _stepping(env, setting.num_envs)


def envpool(setting: Setting) -> Run | None:
    """Step EnvPool as it is fastest here: several numbers of threads and sizes of a batch race."""
    too_many = setting.num_envs > _MOST_OF_ENVPOOL
    if find_spec("envpool") is None or setting.hidden_sizes or too_many:
        return None
    found: list[tuple[float, Run]] = []
    for threads in sorted({1, setting.threads}):
        # All environments per call; or the first half or quarter that is ready, asynchronously.
        for share in (1, 2, 4):
            if setting.num_envs % share == 0 and (share == 1 or setting.num_envs >= _FEW):
                run = _envpool(setting, threads, setting.num_envs // share)
                found.append((_seconds(run), run))
    return min(found, key=lambda each: each[0])[1]


def _envpool(setting: Setting, threads: int, batch_size: int) -> Run:
    import envpool as package

    n = setting.num_envs
    env = package.make_gymnasium(
        setting.env, num_envs=n, batch_size=batch_size, num_threads=threads
    )
    if batch_size == n:
        return _stepping(env, n)
    draw = random_actions(EnvSpec("", env.observation_space, env.action_space), batch_size)
    env.async_reset()

    def run(steps: int) -> None:
        for _ in range(steps * (n // batch_size)):
            env.send(draw(), env.recv()[-1]["env_id"])

    return run


def _seconds(run: Run) -> float:
    """Return how long a step of all environments takes, after some to warm up."""
    run(10)
    steps, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < _RACE_S:
        run(5)
        steps += 5
    return elapsed / steps


def loops(setting: Setting) -> Run | None:
    """Step fastrl's compiled loops, as env workers do."""
    env = ClassicControlBatch(setting.env, setting.num_envs, Options(num_threads=setting.threads))
    if setting.hidden_sizes:
        return _loops_with_policy(env, setting.hidden_sizes)
    return _loops_at_random(env)


def program(setting: Setting, device: str, steps_per_graph: int) -> Run | None:
    """Make rollouts of fastrl's tensor program."""
    if device == "cpu" and setting.num_envs > _MOST_ON_CPU:
        return None
    env, params = make_tensor(setting.env, device=device)
    policy: Any = RandomPolicy(env.spec)
    weights = None
    if setting.hidden_sizes:
        model = model_of(env.spec, setting.hidden_sizes).to(device)
        policy, weights = ModulePolicy(model), dict(model.state_dict())
    rollouts = Rollouts(env, policy, params, steps_per_graph=steps_per_graph)
    generator = torch.Generator(device).manual_seed(0)
    here = rollouts.start(setting.num_envs, generator)

    def run(steps: int) -> None:
        nonlocal here
        for _ in range(math.ceil(steps / setting.length)):
            noise = rollouts.draw_noise(setting.length, setting.num_envs, generator)
            _, here = rollouts.run(weights, here, noise)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def random_actions(spec: EnvSpec, n: int) -> Callable[[], Any]:
    """Return what draws n random actions."""
    rng = np.random.Generator(np.random.SFC64(0))
    space = spec.action_space
    if isinstance(space, spaces.Discrete):
        count = int(space.n)
        return lambda: (rng.random(n, np.float32) * np.float32(count)).astype(np.int64)
    low, width = space.low, space.high - space.low
    return lambda: low + width * rng.random((n, *space.shape), np.float32)


def _single_actor(spec: EnvSpec, hidden_sizes: tuple[int, ...]) -> Callable[[Any], Any]:
    if not hidden_sizes:
        spec.action_space.seed(0)
        return lambda observation: spec.action_space.sample()
    model = model_of(spec, hidden_sizes)
    generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def act(observation: NDArray[np.float32]) -> NDArray[Any]:
        noise = model.draw_noise((1,), generator)
        leaves = {"": torch.from_numpy(observation)[None]}
        action: NDArray[Any] = model.act(leaves, noise)[0][""][0].numpy()
        return action

    return act


def _stepping(env: VectorEnv[Any, Any, Any], n: int) -> Run:
    draw = random_actions(
        EnvSpec("", env.observation_space, getattr(env, "single_action_space", env.action_space)), n
    )
    env.reset()

    def run(steps: int) -> None:
        for _ in range(steps):
            env.step(draw())

    return run


def _loops_at_random(env: ClassicControlBatch) -> Run:
    draw = random_actions(env.spec, env.num_envs)
    views = _views(env, np.zeros(0))
    env.reset(range(env.num_envs), views.observation)

    def run(steps: int) -> None:
        for _ in range(steps):
            env.step(_with_action(views, draw()))

    return run


def _loops_with_policy(env: ClassicControlBatch, hidden_sizes: tuple[int, ...]) -> Run:
    n, spec = env.num_envs, env.spec
    engine = build_engine(model_of(spec, hidden_sizes))
    out = PolicyOutput.zeros(n, spec.action)
    views = _views(env, out.action[""].numpy())
    env.reset(range(n), views.observation)
    length = 64
    generator = torch.Generator().manual_seed(0)
    noise = engine.draw_noise((length, n), generator)
    observation = {"": torch.from_numpy(views.observation[0])}
    acts = [engine.bind(observation, noise[t], out) for t in range(length)]

    def run(steps: int) -> None:
        for step in range(steps):
            if step % length == 0:
                noise.copy_(engine.draw_noise((length, n), generator))
            acts[step % length]()
            env.step(views)

    return run


def _views(env: ClassicControlBatch, action: NDArray[Any]) -> StepViews:
    n, k = env.num_envs, env.spec.observation_space.shape
    return StepViews(
        action=(action,),
        observation=(np.zeros((n, *k), np.float32),),
        reward=np.zeros(n, np.float32),
        terminated=np.zeros(n, np.bool_),
        truncated=np.zeros(n, np.bool_),
        final_observation=(np.zeros((n, *k), np.float32),),
    )


def _with_action(views: StepViews, action: NDArray[Any]) -> StepViews:
    return StepViews(
        (action,),
        views.observation,
        views.reward,
        views.terminated,
        views.truncated,
        views.final_observation,
    )
