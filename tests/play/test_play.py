"""A policy or a user plays, on a page and in a window, until it is closed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

import fastrl
from fastrl import cli
from fastrl.errors import EnvError
from fastrl.play.game import KeyboardPlayer, play
from fastrl.play.key_map import KeyMap
from fastrl.play.play_page import PlayPage
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
        (["no-such-env"], "'no-such-env'"),
        (["Blackjack-v1", "--keyboard"], "no keys are known for 'Blackjack-v1'"),
        (["CartPole-v1", "--keys", "none.yaml"], "--keys: 'none.yaml' cannot be read"),
    ],
)
def test_what_cannot_be_played_is_one_line(capsys, arguments, problem):
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
