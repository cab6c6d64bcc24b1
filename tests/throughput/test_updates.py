"""Updates are timed alone, and their matrix products are counted as they are computed."""

from itertools import pairwise

import torch

from fastrl import build_learner, make_plan, make_sampler
from fastrl.config import load_config
from fastrl.throughput.updates import Products, UpdateProbe

ROWS, EPOCHS = 4 * 16, 3
SIZES = ["sampler={kind: serial, num_envs: 4, rollout_length: 16}"]
LEARNING = [f"algorithm={{epochs: {EPOCHS}, minibatch_size: 16}}", "model.hidden_sizes=[32, 24]"]


def updates_of(*overrides, seconds=0.01):
    """Return the times of an update, and the state of the run's learner before and after."""
    config = load_config(None, ["env.id=CartPole-v1", *SIZES, *LEARNING, *overrides])
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec)
    before = learner.state_dict()
    with make_sampler(config, plan, learner.weights()) as sampler:
        probe = UpdateProbe(config, plan.env_spec)
        found = probe.measure(sampler.collect(), learner.state_dict(), seconds)
    return found, before, learner.state_dict()


def tower_flop(inputs, outputs):
    """Return the operations of one row, forward and back, without the gradient by the inputs."""
    sizes = [inputs, 32, 24, outputs]
    layers = [2 * a * b for a, b in pairwise(sizes)]
    return 3 * sum(layers) - layers[0]


def test_operations_are_those_of_both_towers():
    found, *_ = updates_of()
    # Of each row in each epoch; all else that an update computes are no products.
    assert found.flop == EPOCHS * (tower_flop(4, 2) + tower_flop(4, 1))
    assert found.t_products_s > 0
    assert found.products_share == found.t_products_s / found.t_learn_s


def test_operations_of_a_second_evaluation_count():
    """V-trace evaluates the rollout again before it is learnt from, and values its last rows."""
    found, *_ = updates_of("algorithm.name=appo")
    both = tower_flop(4, 2) + tower_flop(4, 1)
    actor, critic = (2 * (4 * 32 + 32 * 24 + 24 * outputs) for outputs in (2, 1))
    assert found.flop == EPOCHS * both + actor + critic + critic / 16


def test_the_learner_of_the_run_is_left_alone():
    _, before, after = updates_of()
    assert before["updates"] == after["updates"] == 0
    for name, tensor in before["model"].items():
        torch.testing.assert_close(tensor, after["model"][name], rtol=0, atol=0)


def test_products_in_compiled_loops_are_unknown():
    found, *_ = updates_of("model.recurrent=gru")
    assert found.t_learn_s > 0
    assert (found.t_products_s, found.flop, found.products_share) == (None, None, None)


def test_every_product_is_repeated_with_its_sizes_and_results_stay():
    a, b, bias = torch.randn(4, 5), torch.randn(5, 6), torch.zeros(6)
    image, kernel = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    with Products() as products:
        total = torch.mm(a, b)
        total.addmm_(a, b)
        torch.addmm(bias.expand(4, 6), a, b, out=total)
        torch.nn.functional.conv2d(image, kernel).sum().backward()
    product, convolution = 2 * 4 * 5 * 6, 2 * 2 * (4 * 6 * 6) * (3 * 3 * 3)
    # The convolution forward, and the gradient by its kernel.
    assert products.flop == 3 * product + 2 * convolution
    expected = a @ b
    assert products.time(0.001) > 0
    torch.testing.assert_close(total, expected)
