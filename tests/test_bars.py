import sys

import pytest

from f5lab import bars


class ZMQInteractiveShell:
    pass


class FakeIPython:
    @staticmethod
    def get_ipython() -> ZMQInteractiveShell:
        return ZMQInteractiveShell()


def test_bars_are_for_live_notebooks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [1, 2, 3]
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    sys.modules.pop("IPython", None)
    assert bars.follow(items, "label", "clip") is items
    sys.modules["IPython"] = FakeIPython  # type: ignore[assignment]
    assert bars.follow(items[:1], "label", "clip") == [1]
    assert bars._is_live()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert bars.follow(items, "label", "clip") is items
