"""A policy or a user plays, on a page and in a window, until it is closed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from itertools import islice
from urllib.error import HTTPError

import minari
import numpy as np
import pytest
from PIL import Image

import fastrl
from fastrl import cli
from fastrl.closing import Terminated
from fastrl.datasets import load_demonstrations
from fastrl.datasets.episodes import EpisodeBuilder
from fastrl.errors import ConfigError, EnvError
from fastrl.play.game import KeyboardPlayer, play, record_episodes
from fastrl.play.key_map import KeyMap
from fastrl.play.play_page import PlayPage
from fastrl.spec import EnvSpec
from tests.training.clockwork import Breaking, Clockwork, small_run


class Recorded:
    """A display that keeps what it shows, presses keys, and is closed after some steps."""

    def __init__(self, steps=1000, keys=()):
        self.frames, self.texts, self._left, self._keys = [], [], steps, frozenset(keys)

    def show(self, frame, text):
        self.frames.append(frame)
        self.texts.append(text)

    def pressed(self):
        return self._keys

    def wait(self, seconds):
        self._left -= 1
        return self._left > 0


def keyboard(**actions):
    return KeyboardPlayer(KeyMap(actions, Clockwork.action_space, "x"))


def drawable(env_type=Clockwork):
    env = env_type()
    env.render_mode = "rgb_array"
    return env


def get(page, path, **headers):
    request = urllib.request.Request(f"{page.url.rstrip('/')}{path}", headers=headers)
    return urllib.request.urlopen(request, timeout=20)


def test_keys_choose_actions_and_episodes_follow_each_other():
    # A reward is given where the action is the number of the step modulo 3.
    display = Recorded(steps=12, keys={"right"})
    played = list(play(drawable(), "x", keyboard(left=0, right=1), display, fps=1000))
    assert [(each.number, each.steps, each.total) for each in played] == [(1, 4, 2.0), (2, 4, 2.0)]
    assert str(played[0]) == "episode 1: return 2, 4 steps"
    assert {frame.shape for frame in display.frames} == {(240, 320, 3)}
    assert "episode 2   return 0" in display.texts


def test_an_episode_begins_with_the_first_key():
    display = Recorded(steps=30)
    assert list(play(drawable(), "x", keyboard(left=0), display, fps=1000)) == []
    assert set(display.texts) == {"episode 1: press a key to begin"}


def test_an_environment_that_raises_is_one_line():
    display = Recorded(keys={"left"})
    with pytest.raises(EnvError, match="'x' failed: RuntimeError: the simulator exploded"):
        list(play(drawable(Breaking), "x", keyboard(left=0), display, fps=1000))


def test_a_page_shows_pictures_and_takes_keys():
    with PlayPage("a game", ["left"]) as page:
        page.show(np.full((8, 8, 3), 200, np.uint8), "one")
        with get(page, "/api/picture?after=-1") as answer:
            assert json.loads(answer.headers["X-Text"]) == "one"
            picture = np.asarray(Image.open(io.BytesIO(answer.read())))
        assert picture.shape == (8, 8, 3)
        assert abs(int(picture.mean()) - 200) < 3
        with get(page, "/api/game") as answer:
            assert json.load(answer) == {"title": "a game", "keys": ["left"]}
        request = urllib.request.Request(
            f"{page.url}api/keys", b'["left"]', {"X-Fastrl": "keys"}, method="POST"
        )
        urllib.request.urlopen(request, timeout=20).close()
        assert page.pressed() == {"left"}
        for path in ("/", "/play.js", "/play.css", "/icon.svg"):
            with get(page, path) as answer:
                assert answer.status == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'["left"]', {}, 404),
        (b'["left"]', {"X-Fastrl": "keys", "Host": "evil.example"}, 421),
        (b"[1]", {"X-Fastrl": "keys"}, 400),
        (b"{}", {"X-Fastrl": "keys"}, 400),
        (b"[" * 900, {"X-Fastrl": "keys"}, 400),
        (b"x" * 5000, {"X-Fastrl": "keys"}, 400),
    ],
)
def test_keys_of_other_pages_and_nonsense_are_refused(body, headers, status):
    with PlayPage("a game", ["left"]) as page:
        page.show(np.zeros((8, 8, 3), np.uint8), "one")
        get(page, "/api/picture").close()
        request = urllib.request.Request(f"{page.url}api/keys", body, headers, method="POST")
        with pytest.raises(HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code == status
        caught.value.close()
        assert page.pressed() == frozenset()


def test_a_game_waits_while_no_browser_shows_it():
    with PlayPage("a game", []) as page:
        waited = threading.Event()
        thread = threading.Thread(target=lambda: (page.wait(0.0), waited.set()), daemon=True)
        thread.start()
        assert not waited.wait(0.5)
        get(page, "/api/picture").close()
        assert waited.wait(10)
        thread.join()


@pytest.fixture
def trained(tmp_path):
    return fastrl.train(small_run(tmp_path / "mine")).path


def test_a_game_that_waits_for_a_browser_ends_at_sigterm():
    pytest.importorskip("pygame")
    command = [sys.executable, "-m", "fastrl", "play", "CartPole-v1", "--page", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline().startswith(b"http")
        process.terminate()
        try:
            assert process.wait(60) == -signal.SIGTERM
        finally:
            process.kill()


def test_command_plays_a_run_on_a_page(trained):
    command = [sys.executable, "-m", "fastrl", "play", str(trained), "--page", "--port", "0"]
    options = ["--episodes", "2", "--fps", "500", "--seed", "1"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
            urllib.request.urlopen(f"{url}api/picture", timeout=20).close()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert re.fullmatch(r"(episode \d: return \d, 4 steps\n){2}", out)


def test_a_run_from_elsewhere_is_not_played_without_trust(trained, capsys):
    (trained / "signature").write_text("forged")
    assert cli.main(["play", str(trained), "--page"]) == 2
    assert "was not trained by this user" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no-such-env"], "is not the directory of a run; unknown environment 'no-such-env'; "),
        (["Blackjack-v1", "--keyboard"], "no keys are known for 'Blackjack-v1'"),
        (["CartPole-v1", "--keys", "none.yaml"], "--keys: none.yaml: no such file"),
    ],
)
def test_what_cannot_be_played_is_one_line(capsys, monkeypatch, tmp_path, arguments, problem):
    monkeypatch.chdir(tmp_path)  # the error names the latest run where there is one
    assert cli.main(["play", *arguments, "--page"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fastrl: error: ")
    assert problem in last


def test_escape_closes_the_window(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from fastrl.play.play_window import PlayWindow

    with closing(PlayWindow("a game")) as window:
        window.show(np.zeros((100, 60, 3), np.uint8), "one")
        assert pygame.display.get_window_size() == (300, 500)
        assert pygame.display.get_caption()[0] == "a game: one"
        assert window.pressed() == frozenset()
        assert window.wait(0.01)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
        assert not window.wait(0.01)


def recorded(path, display, env_type=Clockwork, **options):
    """Play with the key 'right', action 1, and write a dataset; return the reported episodes."""
    env = drawable(env_type)
    spec = EnvSpec("Clockwork", env.observation_space, env.action_space)
    game = play(
        env, "x", keyboard(left=0, right=1), display, fps=1000, builder=EpisodeBuilder(spec)
    )
    reported = []
    record_episodes(
        islice(game, options.get("episodes")), path, spec, "clip", "me", reported.append
    )
    return reported


def test_recorded_episodes_are_a_dataset_of_what_was_played(tmp_path):
    reported = recorded(tmp_path / "set", Recorded(keys={"right"}), episodes=2)
    assert [each.steps for each in reported] == [4, 4]
    found = list(minari.MinariDataset(tmp_path / "set" / "data"))
    assert len(found) == 2
    for episode in found:
        # Number of the step, sum of actions, 1.
        np.testing.assert_array_equal(episode.observations[:, 0], range(5))
        np.testing.assert_array_equal(episode.observations[:, 1], range(5))
        np.testing.assert_array_equal(episode.actions, [1, 1, 1, 1])
        np.testing.assert_array_equal(episode.rewards, [1, 0, 0, 1])
        # Clockwork truncates where the sum of actions is even.
        assert episode.truncations.tolist() == [False, False, False, True]
        assert not episode.terminations.any()
    assert load_demonstrations(tmp_path / "set").returns.tolist() == [2, 2]


class Interrupting(Recorded):
    """Sends this process a signal after some steps, as a user or a closing terminal does."""

    def __init__(self, number, **options):
        super().__init__(**options)
        self._number = number

    def wait(self, seconds):
        if not super().wait(seconds):
            signal.raise_signal(self._number)
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_recording_and_keep_finished_episodes(tmp_path, number, monkeypatch):
    is_interrupt, ended_by = number == signal.SIGINT, []
    handler = signal.default_int_handler if is_interrupt else signal.SIG_DFL
    found = signal.signal(number, handler)  # it may be ignored, as under nohup
    monkeypatch.setattr(os, "kill", lambda _, number: ended_by.append(number))
    with pytest.raises(KeyboardInterrupt if is_interrupt else Terminated):
        recorded(tmp_path / "set", Interrupting(number, steps=8, keys={"right"}))
    assert len(minari.MinariDataset(tmp_path / "set" / "data")) == 1
    assert ended_by == ([] if is_interrupt else [number])
    assert signal.signal(number, found) == handler


class BreaksLater(Clockwork):
    """Raises in its second episode."""

    resets = 0

    def reset(self, **kwargs):
        self.resets += 1
        return super().reset(**kwargs)

    def step(self, action):
        if self.resets == 2:
            raise RuntimeError("the simulator exploded")
        return super().step(action)


def test_a_failing_environment_keeps_finished_episodes(tmp_path):
    with pytest.raises(EnvError, match="the simulator exploded"):
        recorded(tmp_path / "set", Recorded(keys={"right"}), BreaksLater)
    assert len(minari.MinariDataset(tmp_path / "set" / "data")) == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_without_a_finished_episode_nothing_is_written(tmp_path, steps):
    with pytest.raises(ConfigError, match=r"no episode was finished, so '.*set' was not written"):
        recorded(tmp_path / "set", Recorded(steps=steps, keys={"right"}))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_one_line_before_anything_is_shown(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    assert cli.main(["play", "CartPole-v1", "--page", "--record", str(tmp_path / "set")]) == 2
    captured = capsys.readouterr()
    assert "exists already; name a new directory" in captured.err
    assert captured.out == ""
