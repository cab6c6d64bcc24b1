from __future__ import annotations

import importlib.util
import os

import imageio.v2 as imageio
import pytest
import torch
from PIL import Image, ImageSequence

from fastrl import formats
from fastrl.config import ModelConfig
from fastrl.envs.animation import GifWriter
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import ConfigError, EnvError
from fastrl.models import build_model
from fastrl.training.evaluation import EvaluationProtocol, evaluate
from fastrl.training.recording import Recorder
from tests.training.clockwork import EPISODE, Clockwork

CLOCKWORK = EnvFactory("tests.training.clockwork:Clockwork")


def recorder(factory=CLOCKWORK, **settings):
    protocol = EvaluationProtocol(**({"episodes": 2, "seed": 0} | settings))
    return Recorder(factory, factory.probe(), protocol)


def model(factory=CLOCKWORK):
    torch.manual_seed(0)
    return build_model(factory.probe(), ModelConfig(hidden_sizes=(8,)))


@pytest.fixture
def frames(monkeypatch):
    """Return the frames that were written; GIFs leave out those that do not change."""
    seen = []
    real = GifWriter.append_data
    monkeypatch.setattr(
        GifWriter, "append_data", lambda gif, frame: (seen.append(frame), real(gif, frame))
    )
    return seen


def test_video_shows_every_step_of_every_episode(tmp_path, frames):
    path = tmp_path / "videos" / "x.gif"
    recorder()(model(), path)
    brightness = [int(frame[0, 0, 0]) for frame in frames]
    assert brightness == [60 * step for step in range(EPISODE + 1)] * 2
    assert imageio.mimread(path)[0].shape[:2] == (240, 320)


@pytest.mark.parametrize("fps", [125, 30, 8])
def test_gif_runs_at_the_speed_of_the_environment(tmp_path, monkeypatch, fps):
    monkeypatch.setitem(Clockwork.metadata, "render_fps", fps)
    path = tmp_path / "x.gif"

    recorder(episodes=8)(model(), path)

    with Image.open(path) as image:
        shown = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert min(shown) >= 20
    assert sum(shown) == pytest.approx(8 * (EPISODE + 1) * 1000 / fps, abs=5.001)


def test_returns_are_those_of_the_evaluation(tmp_path):
    policy, settings = model(), EvaluationProtocol(3, 0)
    expected = evaluate(policy, CLOCKWORK.probe(), CLOCKWORK.batched, settings)
    assert tuple(recorder(episodes=3)(policy, tmp_path / "x.gif")) == expected.returns


def test_length_of_a_video_is_bounded(tmp_path, frames):
    endless = Recorder(CLOCKWORK, CLOCKWORK.probe(), EvaluationProtocol(100, 0), max_steps=6)
    endless(model(), tmp_path / "x.gif")
    assert len(frames) == 6 + 2


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.mp4 or \.gif"):
        recorder()(model(), tmp_path / "x.avi")


def test_missing_encoder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"imageio-ffmpeg.*pip install "):
        recorder()(model(), tmp_path / "x.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs the extra 'video'"
)
def test_mp4_can_be_read_back(tmp_path):
    path = tmp_path / "x.mp4"
    recorder()(model(), path)
    with imageio.get_reader(path) as reader:
        assert reader.get_meta_data()["size"] == (320, 240)
        assert reader.count_frames() == 2 * (EPISODE + 1)


def test_video_without_a_name_has_a_format_that_can_be_written(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert formats.default_ending() == ".gif"
    monkeypatch.setattr(formats, "find_spec", lambda name: "there")
    assert formats.default_ending() == ".mp4"


def test_place_that_is_no_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"x\.gif' cannot be written: Not a directory$"):
        recorder()(model(), tmp_path / "file" / "x.gif")
    (tmp_path / "y.gif").mkdir()
    with pytest.raises(ConfigError, match=r"y\.gif' is a directory; name a file$"):
        recorder()(model(), tmp_path / "y.gif")


def test_environment_that_cannot_be_drawn_is_one_line(tmp_path):
    factory = EnvFactory("tests.training.clockwork:Uneven")
    for attempt in (
        lambda: recorder(factory)(model(factory), tmp_path / "x.gif"),
        recorder(factory).check,
    ):
        with pytest.raises(EnvError, match=r"cannot be built.*; videos need render_mode='rgb_arr"):
            attempt()
    recorder().check()


def test_renderer_that_fails_is_one_line(tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("no display\nat all")

    monkeypatch.setattr("tests.training.clockwork.Clockwork.render", broken)
    with pytest.raises(EnvError, match="cannot be drawn here: no display at all"):
        recorder()(model(), tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())


def test_video_appears_when_it_is_complete_and_not_after_an_error(tmp_path, monkeypatch):
    real, seen = Clockwork.render, []

    def failing(self):
        seen.append([path.name for path in tmp_path.iterdir()])
        if len(seen) > 3:
            raise RuntimeError("lost")
        return real(self)

    monkeypatch.setattr(Clockwork, "render", failing)
    with pytest.raises(EnvError, match="lost"):
        recorder()(model(), tmp_path / "x.gif")
    assert [f".x.{os.getpid()}.gif"] in seen
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_environment_that_raises_is_one_line(tmp_path, monkeypatch, method):
    def broken(self, *args, **kwargs):
        raise RuntimeError("the simulator exploded")

    monkeypatch.setattr(Clockwork, method, broken)
    with pytest.raises(EnvError, match=r"Clockwork' .*RuntimeError: the simulator exploded"):
        recorder()(model(), tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())
