import numpy as np
import torch
from gymnasium import spaces

from fastrl.models import PolicyOutput, RandomEngine
from fastrl.spec import EnvSpec

ACTIONS = spaces.Dict(
    {
        "box": spaces.Box(np.float32([-2, 0]), np.float32([5, 0.5])),
        "coins": spaces.MultiBinary((2, 2)),
        "free": spaces.Box(-np.inf, np.inf, (), np.float32),
        "keys": spaces.MultiDiscrete([2, 300]),
        "turn": spaces.Discrete(3, start=7),
    }
)
SPEC = EnvSpec("test", spaces.Box(-1, 1, (3,), np.float32), ACTIONS)


def sample(rows, seed=0):
    engine = RandomEngine(SPEC)
    noise = engine.draw_noise((rows,), torch.Generator().manual_seed(seed))
    out = PolicyOutput.zeros(rows, SPEC.action)
    for output in out.outputs.values():
        output.fill_(9.0)
    engine.bind({}, noise, out)()
    return out


def test_actions_cover_their_space_evenly():
    action = sample(20_000).action
    torch.testing.assert_close(action["box"].mean(0), torch.tensor([1.5, 0.25]), atol=0.05, rtol=0)
    assert (action["box"].amin(0) >= torch.tensor([-2.0, 0.0])).all()
    assert (action["box"].amax(0) <= torch.tensor([5.0, 0.5])).all()
    assert action["free"].abs().max() <= 1
    assert action["coins"].unique().tolist() == [0, 1]
    assert action["keys"][:, 0].unique().tolist() == [0, 1]
    assert action["keys"][:, 1].unique().tolist() == list(range(300))
    # Counted from 0: the start is added where the environment is stepped.
    assert torch.bincount(action["turn"]).float().sub(20_000 / 3).abs().max() < 400


def test_log_prob_and_value_are_zero_and_actions_follow_the_generator():
    first, again, other = sample(50), sample(50), sample(50, seed=1)
    assert (first.outputs["log_prob"] == 0).all()
    assert (first.outputs["value"] == 0).all()
    for path, leaf in first.action.items():
        assert torch.equal(leaf, again.action[path])
        assert not torch.equal(leaf, other.action[path])
    values = torch.full((4,), 9.0)
    RandomEngine(SPEC).values({}, values)
    assert (values == 0).all()


def test_bound_calls_read_noise_that_is_drawn_anew():
    engine = RandomEngine(SPEC)
    noise = engine.draw_noise((3, 8))
    out = PolicyOutput.zeros(8, SPEC.action)
    call = engine.bind({}, noise[1], out)
    noise.copy_(engine.draw_noise((3, 8)))
    call()
    torch.testing.assert_close(out.action["box"], noise[1, :, :2])
