"""Gymnasium's classic control, in compiled loops."""

from typing import ClassVar

from gymnasium.vector import AutoresetMode

from fastrl.envs.native import NativeFamily

_FEWEST_SHARED = 4096
_ROOM = "fastrl.envs.classic_control"


class ClassicControl(NativeFamily):
    """``fastrl/CartPole-v1`` and others."""

    module = f"{_ROOM}.catalogue"
    tensors: ClassVar = {
        "Acrobot-v1": f"{_ROOM}.acrobot:Acrobot",
        "CartPole-v1": f"{_ROOM}.cartpole:CartPole",
        "MountainCar-v0": f"{_ROOM}.mountain_car:MountainCar",
        "MountainCarContinuous-v0": f"{_ROOM}.mountain_car_continuous:MountainCarContinuous",
        "Pendulum-v1": f"{_ROOM}.pendulum:Pendulum",
    }
    ids = tuple(tensors)
    compiled = f"{_ROOM}.compiled:CompiledEnv"
    autoreset_modes = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
    shares_threads = True

    def pays_to_share(self, num_envs: int, *, as_single: bool) -> bool:
        """Return whether a step takes long enough: threads cost more than they save below that."""
        return num_envs >= _FEWEST_SHARED


FAMILY = ClassicControl()
