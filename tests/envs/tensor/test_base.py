from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fastrl.envs.tensor import TENSOR_ENVS, Randomized, RandomPolicy, make_tensor
from fastrl.errors import ConfigError, EnvError

NAMES = sorted(TENSOR_ENVS)
ALL = pytest.mark.parametrize("name", NAMES)


def some_actions(env, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(env.spec.action_space, spaces.Discrete):
        return torch.randint(0, int(env.spec.action_space.n), (n,), generator=generator)
    return torch.empty(n, 1).uniform_(-2, 2, generator=generator)


def started(name, n, seed=0, **kwargs):
    env, params = make_tensor(name, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    observation, state = env.reset(env.draw_noise((n,), generator), params)
    return env, params, observation, state, env.draw_noise((n,), generator)


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in leaves(part)]


def assert_equal(ours, theirs):
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def near_the_end(env, params, state):
    """Return the state with the last step before the time limit in every other environment."""
    time = torch.where(torch.arange(len(state.time)) % 2 == 0, params.max_episode_steps - 1, 0)
    return state._replace(time=time.to(torch.int32))


@ALL
def test_shapes_and_dtypes(name):
    env, params, observation, state, noise = started(name, 6)
    k = env.spec.observation_space.shape
    assert observation.shape == (6, *k)
    after, state, reward, terminated, truncated, info = env.step(
        state, some_actions(env, 6), noise, params
    )
    assert after.shape == info["final_observation"].shape == (6, *k)
    assert (after.dtype, reward.dtype) == (torch.float32, torch.float32)
    assert (terminated.dtype, truncated.dtype) == (torch.bool, torch.bool)
    assert reward.shape == terminated.shape == truncated.shape == (6,)
    assert state.time.tolist() == [1] * 6
    assert all(quantity.shape == (6,) for quantity in state)


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("Pendulum-v1", torch.zeros(4)),  # would be one torque for all
        ("Pendulum-v1", torch.zeros(3, 1)),
        ("Pendulum-v1", torch.zeros(4, 2)),
        ("CartPole-v1", torch.zeros(4, 1, dtype=torch.int64)),  # would make 4 × 4 environments
        ("CartPole-v1", torch.zeros(3, dtype=torch.int64)),
        ("CartPole-v1", np.zeros(4, np.int64)),
        ("CartPole-v1", [0, 1, 0, 1]),
    ],
)
def test_action_of_another_shape_is_refused(name, action):
    env, params, _, state, noise = started(name, 4)
    with pytest.raises(EnvError, match=r"^action must be a tensor of shape \(4,.*\), got "):
        env.step(state, action, noise, params)


@pytest.mark.parametrize("name", ["Acrobot-v1", "CartPole-v1", "MountainCar-v0"])
@pytest.mark.parametrize("action", [3, -1, 1000])
def test_discrete_action_that_is_none_is_refused(name, action):
    env, params, _, state, noise = started(name, 3)
    with pytest.raises(EnvError, match=f"'{name}': action {action} is not one of 0 to"):
        env.step(state, torch.tensor([0, action, 1]), noise, params)
    with pytest.raises(EnvError, match=r"whole numbers, got torch\.float32"):
        env.step(state, torch.tensor([0.0, 0.5, 1.0]), noise, params)


def test_spaces_follow_the_parameters():
    env, params = make_tensor("Pendulum-v1")
    fitted = env.fitted(
        params._replace(max_torque=torch.tensor([1.0, 5.0]), max_speed=torch.tensor(20.0))
    )
    assert fitted.spec.action_space == spaces.Box(-5, 5, (1,))
    assert fitted.spec.observation_space.high.tolist() == [1, 1, 20]
    assert env.spec.action_space == spaces.Box(-2, 2, (1,))
    drawn = Randomized(env, {"max_torque": {"choice": [3.0, 4.0]}}).fitted(params)
    assert drawn.spec.action_space == spaces.Box(-4, 4, (1,))
    compiled = make_tensor("Pendulum-v1", compiled=True)[0].fitted(params)
    assert compiled.spec == env.spec
    with pytest.raises(EnvError, match="'Pendulum-v1': mass must be above 0, got -1"):
        env.fitted(params._replace(mass=torch.tensor(-1.0)))


def test_noise_of_another_shape_is_refused():
    env, params, _, state, noise = started("CartPole-v1", 4)
    with pytest.raises(EnvError, match=r"^noise must be a tensor of shape \(…, 4\), got \(4, 5\)"):
        env.reset(torch.zeros(4, 5), params)
    with pytest.raises(EnvError, match=r"^noise must be a tensor of shape \(4, 4\), got shape"):
        env.step(state, some_actions(env, 4), noise[:2], params)


def test_one_action_may_be_that_of_all_environments():
    env, params, _, state, noise = started("Pendulum-v1", 4)
    shared = env.step(state, torch.ones(1), noise, params)
    assert_equal(shared, env.step(state, torch.ones(4, 1), noise, params))


def test_parameters_may_differ_where_the_state_is_single():
    env, params = make_tensor("Pendulum-v1")
    _, state = env.reset(env.draw_noise(()), params)
    lengths = params._replace(length=torch.linspace(0.5, 2.0, 3))
    _, after, *_ = env.step(state, torch.ones(3, 1), env.draw_noise((3,)), lengths)
    assert len(set(after.theta.tolist())) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "Pendlum-v1"}, EnvError, "did you mean 'Pendulum-v1'"),
        ({"name": None}, EnvError, "None is not a tensor environment"),
        ({"device": "gpu"}, ConfigError, "no device 'gpu': write 'cpu', 'cuda' or 'cuda:0'"),
        ({"device": "cuda:99"}, ConfigError, "no device 'cuda:99': torch finds"),
        ({"dtype": torch.int32}, ConfigError, "dtype must be a floating-point type"),
        ({"dtype": "float32"}, ConfigError, "dtype must be a floating-point type"),
    ],
)
def test_environment_that_cannot_be_made_is_one_line(arguments, error, message):
    with pytest.raises(error, match=message):
        make_tensor(**{"name": "CartPole-v1", **arguments})


@ALL
def test_step_is_pure(name):
    env, params, _, state, noise = started(name, 4)
    actions = some_actions(env, 4)
    kept = [leaf.clone() for leaf in leaves((state, actions, noise, params))]
    first = env.step(state, actions, noise, params)
    assert_equal(env.step(state, actions, noise, params), first)
    for before, after in zip(kept, leaves((state, actions, noise, params)), strict=True):
        assert torch.equal(before, after)


@ALL
def test_time_limit_truncates_and_the_next_episode_begins_from_the_noise(name):
    env, params, _, state, noise = started(name, 4)
    state = near_the_end(env, params, state)
    actions = some_actions(env, 4)
    observation, after, _, terminated, truncated, info = env.step(state, actions, noise, params)
    first, fresh = env.reset(noise, params)
    late = torch.tensor([True, False, True, False])
    assert not terminated.any()
    assert torch.equal(truncated, late)
    assert torch.equal(observation[late], first[late])
    assert torch.equal(observation[~late], info["final_observation"][~late])
    assert after.time.tolist() == [0, 1, 0, 1]
    for ours, theirs in zip(after, fresh, strict=True):
        assert torch.equal(ours[late], theirs[late])
    reached, _, _ = env.transition(state, actions, params)
    assert torch.equal(info["final_observation"], env.observe(reached))


def test_termination_wins_over_truncation():
    env, params, _, state, noise = started("CartPole-v1", 2)
    state = near_the_end(env, params, state)._replace(x=torch.tensor([3.0, 3.0]))
    *_, terminated, truncated, _ = env.step(state, some_actions(env, 2), noise, params)
    assert terminated.all()
    assert not truncated.any()


@ALL
def test_a_single_environment_needs_no_batch_axis(name):
    env, params, _, state, noise = started(name, 3)
    actions = some_actions(env, 3)
    batched = env.step(state, actions, noise, params)
    single = env.step(type(state)(*(q[1] for q in state)), actions[1], noise[1], params)
    for ours, theirs in zip(leaves(single), leaves(batched), strict=True):
        torch.testing.assert_close(ours, theirs[1], rtol=1e-5, atol=1e-6)


@ALL
def test_vmap_over_noise_over_params_and_over_both(name):
    env, params, _, state, noise = started(name, 3)
    actions, state = some_actions(env, 3), near_the_end(env, params, state)
    batched = env.step(state, actions, noise, params)
    assert_equal(vmap(env.step, in_dims=(0, 0, 0, None))(state, actions, noise, params), batched)

    each = type(params)(*(p.repeat(3) for p in params))
    assert_equal(vmap(env.step)(state, actions, noise, each), batched)
    assert_equal(env.step(state, actions, noise, each), batched)

    one = type(state)(*(q[0] for q in state))
    over_params = vmap(env.step, in_dims=(None, None, None, 0))(one, actions[0], noise[0], each)
    assert_equal(leaves(over_params), [leaf[:1].expand_as(leaf) for leaf in leaves(over_params)])
    resets = vmap(env.reset, in_dims=(0, None))(noise, params)
    assert_equal(resets, env.reset(noise, params))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("CartPole-v1", "Pendulum-v1") else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_step_is_one_graph(name):
    env, params, _, state, noise = started(name, 3)
    actions = some_actions(env, 3)
    # The backend that needs no C++ compiler; the graph is what is tested.
    torch._dynamo.reset()  # it compiles a method for eight kinds of environments at most
    step = torch.compile(env.step, fullgraph=True, backend="aot_eager")
    assert_equal(step(state, actions, noise, params), env.step(state, actions, noise, params))


class Operations(TorchDispatchMode):
    """Notes every operation, by name."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def elsewhere(tree):
    """Return tensors without values."""
    if isinstance(tree, torch.Tensor):
        return tree.to("meta")
    parts = [elsewhere(part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


@ALL
@pytest.mark.parametrize("randomized", [False, True])
def test_no_operation_of_a_step_waits_for_the_device(name, randomized):
    env, params = make_tensor(name)
    if randomized:
        env = Randomized(env, {"gravity": {"choice": [0.9, 1, 1.1]}}, expose=True)
    policy = RandomPolicy(env.spec)
    _, state = env.reset(env.draw_noise((4,)), params)
    noise = env.draw_noise((4,)), policy.draw_noise((4,))
    with Operations() as operations:
        action = policy.act(None, {}, noise[1]).action
        # Not on the CPU, where the values of discrete actions are checked.
        env.step(*(elsewhere(each) for each in (state, action[""], noise[0], params)))
    # What a CUDA graph cannot record: shapes or branches that depend on values, and copies.
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "copy_", "lift_fresh"}
    assert "where" in operations.names
    assert not operations.names & waiting


def test_parameters_change_the_dynamics_of_their_environment_only():
    env, params, _, state, noise = started("Pendulum-v1", 3)
    heavy = params._replace(gravity=torch.tensor([10.0, 20.0, 10.0]))
    actions = torch.zeros(3, 1)
    usual, changed = (env.step(state, actions, noise, p)[0] for p in (params, heavy))
    assert (usual != changed).any(dim=-1).tolist() == [False, True, False]


def test_noise_comes_from_the_generator_alone():
    env, _ = make_tensor("Acrobot-v1")
    first, second = (env.draw_noise((5, 2), torch.Generator().manual_seed(9)) for _ in range(2))
    assert first.shape == (5, 2, env.noise_size)
    assert torch.equal(first, second)
    assert 0 <= first.min() <= first.max() < 1
    assert env.draw_noise((), device="cpu").shape == (env.noise_size,)


@pytest.mark.parametrize("name", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_gradients_equal_finite_differences(name):
    env, params = make_tensor(name, differentiable=True, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    _, state = env.reset(env.draw_noise((3,), generator), params)
    noise = env.draw_noise((3,), generator)
    quantities = [q.clone().requires_grad_() for q in state[:-1]]
    actions = torch.tensor([[0.3], [-0.4], [0.5]], dtype=torch.float64, requires_grad=True)

    def outcome(actions, *quantities):
        observation, _, reward, *_ = env.step(
            type(state)(*quantities, state.time), actions, noise, params
        )
        return observation, reward

    assert torch.autograd.gradcheck(outcome, (actions, *quantities))


def test_gradients_stop_where_an_episode_ends():
    env, params, _, state, noise = started("Pendulum-v1", 2, differentiable=True)
    state = near_the_end(env, params, state)
    actions = torch.full((2, 1), 0.5, requires_grad=True)
    observation, *_ = env.step(state, actions, noise, params)
    observation.sum().backward()
    assert actions.grad[0] == 0
    assert actions.grad[1] != 0


def test_gradients_flow_only_where_asked_for():
    env, params, _, state, noise = started("Pendulum-v1", 2)
    actions = torch.ones(2, 1, requires_grad=True)
    assert not any(leaf.requires_grad for leaf in leaves(env.step(state, actions, noise, params)))
    with pytest.raises(EnvError, match="'CartPole-v1' has discrete actions"):
        make_tensor("CartPole-v1", differentiable=True)


def test_unknown_id_names_the_nearest():
    with pytest.raises(EnvError, match="did you mean 'Pendulum-v1'"):
        make_tensor("Pendulm-v1")


@ALL
def test_double_precision_stays_double(name):
    env, params, observation, state, noise = started(name, 2, dtype=torch.float64)
    assert observation.dtype == torch.float64
    after, state, reward, *_ = env.step(state, some_actions(env, 2), noise, params)
    assert {x.dtype for x in (after, reward, *state[:-1])} == {torch.float64}


@pytest.mark.gpu
@ALL
def test_same_noise_gives_the_same_steps_on_gpu(name):
    env, params, _, state, noise = started(name, 64)
    actions = some_actions(env, 64)
    there = [type(x)(*(q.cuda() for q in x)) for x in (state, params)]
    ours = env.step(there[0], actions.cuda(), noise.cuda(), there[1])
    assert_equal([leaf.cpu() for leaf in leaves(ours)], env.step(state, actions, noise, params))
