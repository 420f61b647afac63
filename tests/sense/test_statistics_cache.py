"""The cache of statistics: what is damaged, half written or of another key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sprat.sense.cache import Cache
from sprat.sense.statistics import GroupStatistics


def test_damaged_and_missing_files_are_key_errors(tmp_path: Path) -> None:
    cache = Cache({"a": 1}, tmp_path)
    with pytest.raises(KeyError):
        cache.get("layer/0", GroupStatistics)
    record = GroupStatistics(
        torch.eye(3), torch.ones(2), torch.eye(2), torch.zeros(0, 3, dtype=torch.bfloat16), 7
    )
    cache.put("layer/0", {"some group": record})
    assert "layer/0" in cache
    back = cache.get("layer/0", GroupStatistics)["some group"]
    assert back.tokens == 7 and torch.equal(back.h, torch.eye(3)) and back.probes.dtype == torch.bfloat16
    path = next(cache.folder.iterdir())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(KeyError, match="layer/0"):
        cache.get("layer/0", GroupStatistics)
    assert not path.exists() and "layer/0" not in cache


def test_nothing_is_kept_too(tmp_path: Path) -> None:
    """As of a model whose removed experts leave nothing to refit."""
    cache = Cache({}, tmp_path)
    cache.put("weights", {})
    assert "weights" in cache and cache.get("weights", GroupStatistics) == {}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache({}, tmp_path)
    bad = GroupStatistics(None, torch.ones(2), torch.eye(2), torch.zeros(0, 3), 7)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        cache.put("layer/0", {"g": bad})
    assert not cache.folder.exists() or not list(cache.folder.iterdir())


def test_the_folder_depends_on_all_of_the_key(tmp_path: Path) -> None:
    one, same = Cache({"a": 1, "b": "x"}, tmp_path), Cache({"b": "x", "a": 1}, tmp_path)
    assert one.folder == same.folder != Cache({"a": 2, "b": "x"}, tmp_path).folder
