"""One sample on the host: its text so far, and where that ends."""

from collections.abc import Collection
from dataclasses import dataclass

from data_pipeline.tokenizer import Tokenizer
from lpo_jax.decode.request import Completion, Request, SamplingConfig

CONTEXT = 8  # of the prompt's last tokens that are decoded with a completion: what stands in front decides a first token's space


@dataclass
class Sample:
    """One sample of a request, waiting or at work. `new`, below, are the tokens generated so far."""

    request: Request
    sampling: SamplingConfig
    number: int
    prompt: tuple[int, ...]
    tokenizer: Tokenizer
    ends: Collection[int]  # tokens that end a completion
    seen: int = 0  # generated tokens that the host has seen
    searched: int = 0  # generated tokens that hold no stop string
    told: str = ""  # text that has been told of

    def restart(self) -> None:
        """Nothing has been generated; what has been told will come again."""
        self.seen = self.searched = 0

    def finish(self, new: list[int], ended: bool) -> Completion | None:
        """The completion, without numbers; None: it goes on. `ended`: the devices append nothing more."""
        text = self._stopped(new)
        if text is not None:
            return Completion(self.request.id, self.number, text, tuple(new[: self.searched]), "stop", (), {})
        if not ended:
            return None
        stop = new[-1] in self.ends
        text = self._text(new[:-1] if stop else new)
        return Completion(self.request.id, self.number, text, tuple(new), "stop" if stop else "length", (), {})

    def settled(self, new: list[int]) -> str:
        """The text that no later token can change.

        An end that may be half a character, or the beginning of a stop string, is left out.
        """
        return unstopped(self._text(new).rstrip("\ufffd"), self.sampling.stop)

    def _stopped(self, new: list[int]) -> str | None:
        """The text in front of the first stop string, if there is one. Then `searched` counts the tokens up to the one that completed it.

        The tokens of a segment are looked at one by one, so the result doesn't depend on where segments end.
        """
        upto = len(new) - (bool(new) and new[-1] in self.ends)
        if self.sampling.stop and self._cut(new[:upto]) is not None:
            for n in range(self.searched + 1, upto + 1):
                text = self._cut(new[:n])
                if text is not None:
                    self.searched = n
                    return text
        self.searched = upto
        return None

    def _cut(self, new: list[int]) -> str | None:
        text = self._text(new)
        found = [at for at in (text.find(stop) for stop in self.sampling.stop) if at >= 0]
        return text[: min(found)] if found else None

    def _text(self, new: list[int]) -> str:
        context, backend = list(self.prompt[-CONTEXT:]), self.tokenizer.backend
        return backend.decode(context + new)[len(backend.decode(context)) :]


def unstopped(text: str, stops: Collection[str]) -> str:
    """A text without the beginning of a stop string at its end."""
    longest = max(map(len, stops), default=1)
    for n in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return text[:-n]
    return text
