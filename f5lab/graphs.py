"""Replaying a DiT's forward pass on a GPU as one CUDA graph, instead of launching its kernels anew for each step.

A forward pass of one or a few clips leaves a large GPU waiting for its thousand launches. Within a clip every step has the same
shapes, so the pass is recorded once and replayed. The same kernels run in the same order: a test holds the mel equal, bit by bit,
to the one that is launched step by step. For one thread at a time: a recorded pass has one set of buffers.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MOST = 6
"""Recorded passes that are kept for one model; they share their memory."""
WARM_UPS = 1


class _Recorded:
    """One recorded pass with the tensors that it reads and writes."""

    def __init__(self, transformer: Any, stock: Callable[..., Tensor], pool: Any, given: dict[str, Any]) -> None:
        self.inputs = {name: value.clone() for name, value in given.items() if isinstance(value, Tensor)}
        self.texts = {name: getattr(transformer, name) for name in ("text_cond", "text_uncond")}
        self.kept_texts = {name: text.clone() for name, text in self.texts.items() if text is not None}
        self.seen: dict[str, Tensor] = {}
        told = {**given, **self.inputs}
        for name, text in self.kept_texts.items():
            setattr(transformer, name, text)
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    stock(**told)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                self.output = stock(**told)
        finally:
            for name, text in self.texts.items():
                setattr(transformer, name, text)

    def replay(self, transformer: Any, given: dict[str, Any]) -> Tensor:
        """Run the pass on other values of the same shapes."""
        for name, text in self.kept_texts.items():
            self._take(text, name, getattr(transformer, name))
        for name, own in self.inputs.items():
            self._take(own, name, given[name])
        self.graph.replay()
        return self.output.clone()

    def _take(self, own: Tensor, name: str, other: Tensor) -> None:
        if self.seen.get(name) is not other:  # what stays the same from step to step is copied once
            own.copy_(other)
            self.seen[name] = other

    def release(self) -> None:
        """Let go of the last clip's tensors."""
        self.seen.clear()
        self.texts.clear()


class Replayer:
    """Recorded passes of one model's transformer.

    Parameters
    ----------
    model : torch.nn.Module
        Upstream's CFM with a DiT on a CUDA device; the passes of any other are launched as ever.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.transformer: Any = model.transformer
        self.replays = 0
        self._recorded: OrderedDict[Any, _Recorded] = OrderedDict()
        self._pool: Any = None

    @contextmanager
    def active(self) -> Iterator["Replayer"]:
        """Replay passes within; outside, the model is as it was."""
        stock = self.transformer.forward

        def forward(**given: Any) -> Tensor:
            return self._forward(stock, given)

        self.transformer.forward = forward
        try:
            yield self
        finally:
            del self.transformer.forward
            for recorded in self._recorded.values():
                recorded.release()

    def _forward(self, stock: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        if not self._fits(given):  # a clip's first pass also makes the text embedding that the others reuse
            return stock(**given)
        key = tuple(
            (name, (tuple(value.shape), value.dtype, value.device) if isinstance(value, Tensor) else value)
            for name, value in sorted(given.items())
        )
        if key not in self._recorded:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            while len(self._recorded) >= MOST:
                self._recorded.popitem(last=False)
            self._recorded[key] = _Recorded(self.transformer, stock, self._pool, given)
        self._recorded.move_to_end(key)
        self.replays += 1
        return self._recorded[key].replay(self.transformer, given)

    def _fits(self, given: dict[str, Any]) -> bool:
        ready = type(self.transformer).__name__ == "DiT" and given["x"].is_cuda and given.get("cache", False)
        if not ready or self.transformer.text_cond is None:
            return False
        return not given.get("cfg_infer", False) or self.transformer.text_uncond is not None
