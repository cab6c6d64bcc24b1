"""A curriculum: the corridor grows when its end is reached."""

from fastrl import Callback


class LongerCorridor(Callback):
    """Begins with short corridors, and makes them longer up to a limit."""

    def __init__(self, longest):
        self.length, self.longest = 4, longest

    def on_update(self, context, update):
        returns = update.episodes.returns
        if len(returns) and returns.mean() > 0.9 and self.length < self.longest:
            self.length += 1
            context.set_env_attribute("length", self.length)
        context.log("length", self.length)

    def state_dict(self):
        return {"length": self.length}

    def load_state_dict(self, state):
        self.length = state["length"]
