"""The report of a proof: what is shown is what the JSON says, whatever the JSON holds."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import proofs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_page import Page, agree, read

from sprat.prove.proof import prove
from sprat.prove.report import verdict, write
from sprat.prove.report.figures import PERCENT, Result, Style
from sprat.prove.report.page import render
from sprat.prove.report.readme import HEADING, compose

VARIANTS = [proofs.minimal, proofs.full, proofs.nulls]


def page(result: dict[str, Any], peers: Any = ()) -> Page:
    return read(render(Result(result), peers))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_figure_is_the_jsons(variant, tmp_path):
    result = variant()
    write(result, tmp_path / "proof", proofs.PEERS)
    found = read((tmp_path / "proof" / "index.html").read_text(encoding="utf-8"))
    agree(found.figures, result)
    paths = {figure.path for figure in found.figures}
    assert {"file.bytes", "metrics.kl.value", "metrics.kl_median", "metrics.perplexity_ratio.value"} <= paths
    assert sorted(p.name for p in (tmp_path / "proof").iterdir()) == ["README.md", "index.html"]


def test_a_proof_that_was_measured(tiny, tmp_path):
    result = json.loads(
        json.dumps(prove(tiny.file, tiny.folder, tiny.text, tokens=256, context=32).to_json())
    )
    write(result, tmp_path)
    found = read((tmp_path / "index.html").read_text(encoding="utf-8"))
    agree(found.figures, result)
    assert {"Fidelity", "Cost", "Run it again"} <= set(found.headings)
    assert result["file"]["sha256"] in found.text and result["against"]["hash"] in found.text


def test_all_that_was_measured_is_shown():
    result = proofs.full()
    paths = {figure.path for figure in page(result).figures}
    estimates = [f"metrics.{name}" for name, value in result["metrics"].items() if isinstance(value, dict)]
    estimates += [f"positions.{i}.kl" for i in range(8)] + [f"frequencies.{i}.kl" for i in range(4)]
    for i in range(len(result["tasks"])):
        estimates += [
            f"tasks.{i}.{name}" for name in ("accuracy_original", "accuracy_compressed", "difference")
        ]
    expected = {f"{path}.{end}" for path in estimates for end in ("value", "low", "high")}
    expected |= {f"layers.{i}.kl" for i in range(31)} | {f"ledger.{i}.bytes" for i in range(6)}
    expected |= {
        f"tasks.{i}.{name}" for i in range(4) for name in ("items", "flips.lost", "flips.won", "mcnemar_p")
    }
    expected |= {"cost.resident_bytes", "cost.decode_tokens_per_second", "generations.divergence.value"}
    assert expected <= paths


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("metrics", "Fidelity"),
        ("generations", "Side by side"),
        ("tasks", "Tasks"),
        ("warnings", "Read with care"),
    ],
)
def test_a_part_that_is_missing_is_left_out(key, heading):
    result = proofs.full()
    assert heading in page(result).headings
    for missing in (None, [], {}):
        assert heading not in page(result | {key: missing}).headings
    del result[key]
    assert heading not in page(result).headings


def test_nothing_at_all():
    found = page({})
    assert found.headings == ["Run it again", "How to read this"]
    assert "was not compared with an original" in found.text


def test_peers_only_where_given():
    result = proofs.full()
    assert "Quality against bytes" not in page(result).headings
    assert (
        "Quality against bytes" not in page(result, [{"name": "broken", "bytes": None, "kl": "x"}]).headings
    )
    assert "none of those is closer" in page(result, proofs.PEERS).text
    better = {"name": "a better peer", "bytes": 49_000_000, "kl": 0.11}
    assert re.search(
        r"closer to the original than this file’s interval:\s+a better peer", page(result, [better]).text
    )


HOSTILE = "</style></title><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'`|\n## x"


def with_strings(value: Any, text: str) -> Any:
    """`value` with every string replaced (not those that choose what is shown)."""
    if isinstance(value, dict):
        return {key: with_strings(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [with_strings(item, text) for item in value]
    return text if isinstance(value, str) else value


def test_strings_are_never_markup():
    """The page of hostile strings has the very tags and attributes of the page of plain ones."""
    peers = [peer | {"name": HOSTILE, "record": HOSTILE, "contexts": 20} for peer in proofs.PEERS]
    plain = [peer | {"name": "calm" * 24, "record": "calm", "contexts": 20} for peer in proofs.PEERS]
    calm = page(with_strings(proofs.full(), "calm"), plain)
    found = page(with_strings(proofs.full(), HOSTILE), peers)
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.tags == calm.tags
    assert found.text.count("<script>") > 20


def test_keys_are_never_markup():
    found = page(
        proofs.full() | {"recipe": {HOSTILE: 1}, "versions": {HOSTILE: HOSTILE}, "machine": {HOSTILE: None}}
    )
    assert {"script", "img"}.isdisjoint(tag for tag, _ in found.tags)


def test_the_page_loads_nothing():
    html = render(Result(proofs.full()), proofs.PEERS)
    assert not re.search(r"https?:|//|url\(|@import|\bsrc=", html.replace("http-equiv", ""))
    assert "default-src 'none'" in html


def test_half_a_surrogate_is_written(tmp_path):
    result = proofs.full()
    result["generations"]["prompts"][0]["original"][2] = json.loads('"\\ud83d"')
    write(result, tmp_path)
    assert "appears?" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "sky?" in (tmp_path / "index.html").read_text(encoding="utf-8")


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, item in items for place in places(item, (*at, key))]


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.text(max_size=4)
    | st.floats()
    | st.integers()
    | st.sampled_from([10**400, 5e-324, -1.0, 0, 1e300, float("nan"), "layer 3"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "low", "kl", "name"]), inner)
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere(data):
    """What the contract does not allow is left out; it never stops the report."""
    result = copy.deepcopy(proofs.full())
    for place in data.draw(st.lists(st.sampled_from(places(result)), min_size=1, max_size=4)):
        inner: Any = result
        for key in place[:-1]:
            inner = inner[key] if isinstance(inner, dict) and key in inner else None
            if inner is None:
                break
        if isinstance(inner, dict | list):
            inner[place[-1]] = data.draw(JUNK)
    peers = data.draw(
        st.lists(
            st.fixed_dictionaries(dict.fromkeys(("name", "bytes", "kl", "record", "contexts"), JUNK)),
            max_size=3,
        )
    )
    page(result, peers + proofs.PEERS)
    compose(Result(result))


def said(result: dict[str, Any]) -> str:
    return verdict.plain(verdict.headline(Result(result)))


def with_ratio(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    result = proofs.minimal()
    result["metrics"]["perplexity_ratio"] = {"value": value, "low": low, "high": high, "level": 0.95}
    return result


def test_headline():
    assert said(proofs.minimal()) == (
        "This 49.9 MB file, 5.39 times smaller, keeps 80.3 % of the original’s top tokens (79.3 to 81.2); "
        "its perplexity is 13.4 % higher (12.0 to 14.8)."
    )
    assert said(with_ratio(2.348, 2.2, 2.5)).endswith(
        "its perplexity is 2.35 times the original’s (2.20 to 2.50)."
    )
    assert said(with_ratio(0.99, 0.985, 0.995)).endswith("its perplexity is 1.0 % lower (0.5 to 1.5).")
    assert said(with_ratio(1.001, 0.998, 1.004)).endswith(
        "its perplexity cannot be told from the original’s (−0.2 to 0.4 %)."
    )
    assert said(with_ratio(1.001, None, None)).endswith("its perplexity is 0.1 % higher.")
    assert said({"file": {"path": "a/b.sprat", "bytes": 1000}}) == (
        "This 1 kB file was not compared with an original."
    )


def test_two_tokenizers():
    """KL, same top and perplexity a token cannot be had; bits a byte still compare."""
    result = proofs.minimal()
    for name in ("kl", "same_top", "perplexity_ratio", "kl_median", "kl_p99", "kl_max"):
        result["metrics"][name] = None
    assert said(result).endswith("smaller, takes 0.0371 bits more for a byte of text (0.0335 to 0.0407).")
    assert verdict.plain(verdict.details(Result(result))[0]).startswith("Measured on 10,200 tokens")
    agree(page(result).figures, result)
    result["metrics"]["bits_per_byte_difference"] = proofs.estimate(-0.02, 0.01)
    assert said(result).endswith("takes 0.0200 bits fewer for a byte of text (0.0100 to 0.0300).")
    result["metrics"]["bits_per_byte_difference"] = proofs.estimate(0.001, 0.01)
    assert "as far as can be told (−0.0090 to 0.0110)" in said(result)


def test_details():
    full = " ".join(verdict.plain(s) for s in verdict.details(Result(proofs.full())))
    assert full == (
        "Its KL to SmolLM2-135M is 0.1341 nats a token (0.1276 to 0.1416), on 10,200 tokens in 40 contexts of "
        "held-out.txt; intervals are 95 %, over this text alone. Accuracy changed on 2 of 4 tasks: "
        "lambada_openai −6.1 points, arc_easy −3.3 points; no change could be shown on the others. "
        "Calibrated on text that the model wrote itself; none of it was found in this text."
    )
    nulls = " ".join(verdict.plain(s) for s in verdict.details(Result(proofs.nulls())))
    assert "no intervals: the text is too short" in nulls
    assert "does not say what it was calibrated on" in nulls
    seen = proofs.minimal() | {"calibration": {"source": "held-out.txt", "overlap": 0.31}}
    assert "31.0 % of it, or of this text, is in both" in verdict.plain(verdict.details(Result(seen))[-1])


def test_the_word_goes_by_the_upper_end():
    def word(value: float, half: float | None) -> str:
        result = Result({"metrics": {"kl": proofs.estimate(value, half)}})
        return verdict.word(result.figure("metrics.kl", Style(4)))

    assert word(0.04, 0.005) == "Close to the original"
    assert word(0.04, 0.02) == "Noticeably changed"
    assert word(0.04, None) == "Close to the original"
    assert word(0.0, 0.0) == "Practically the original"
    assert word(9.0, 1.0) == "Badly damaged"
    assert verdict.word(None) == ""


def test_tasks_are_corrected_for_their_number():
    """Holm: 0.02 among three is no change, though the next to it is; 0.04 alone would be one."""

    def changed(*p: float | None) -> list[bool]:
        tasks = [{"name": "t", "mcnemar_p": value} for value in p]
        found = verdict.changed_tasks(Result({"tasks": tasks}))
        return [found.get(f"tasks.{i}", False) for i in range(len(p))]

    assert changed(0.04) == [True]
    assert changed(0.04, 0.04) == [False, False]
    assert changed(0.01, 0.02, None) == [True, True, False]
    assert changed(0.03, 0.001, 0.03) == [False, True, False]


def test_first_differing_token_is_marked():
    def marks(original: list[str], compressed: list[str], same: int) -> list[str]:
        prompt = {
            "prompt": "p",
            "original": original,
            "compressed": compressed,
            "same_tokens": same,
            "tokens": 3,
        }
        return page({"generations": {"prompts": [prompt]}}).marks[1:]  # the first one explains the sign

    assert marks(["a", " b", " c"], ["a", " x", " c"], 1) == [" b", " x"]
    assert marks(["a", "\n", "c"], ["a", "", "c"], 1) == ["↵\n", "∅"]
    assert marks(["a", " b"], ["a"], 1) == [" b", "end"]
    assert marks(["a", " b"], ["a", " b"], 2) == []
    # Two tokens of one text: the count decides, not the text.
    assert marks(["�", "b"], ["�", "b"], 0) == ["�", "�"]


def test_guessing_is_said():
    result = proofs.full()
    assert "the original may be guessing" in page(result).text
    result["tasks"] = [result["tasks"][0] | {"accuracy_compressed": proofs.estimate(0.26, 0.02)}]
    assert "this file may be guessing" in page(result).text


def test_readme():
    text = compose(Result(proofs.full()))
    assert text.startswith(
        "# Proof of smol.sprat\n\n**Noticeably changed.** This 49.9 MB file, 5.39 times smaller,"
    )
    assert "| KL to the original | 0.1341 | 0.1276 to 0.1416 |" in text
    assert "| – median, 99th percentile, largest | 0.0878, 0.799, 8.01 |  |" in text
    assert "| lambada\\_openai | 39.2 | 33.1 | −6.1 (−9.3 to −2.9) | 49 / 18 | 0.0002 |" in text
    assert "- LAMBADA was run on 500 of its 5,153 items" in text
    assert "```sh\nsprat prove demo/smol.sprat --against smollm2-135m" in text
    assert len(text.splitlines()) < 60


def test_what_the_author_wrote_is_kept(tmp_path):
    write(proofs.minimal(), tmp_path)
    readme = tmp_path / "README.md"
    mine = "Two bits without healing: 0.514.\n\n```sh\nsprat fit\n```\n\n## Notes\n\n| a | b |"
    before, _, _ = readme.read_text(encoding="utf-8").partition(HEADING)
    readme.write_text(f"{before}{HEADING}\n\n{mine}\n", encoding="utf-8")
    write(proofs.full(), tmp_path)
    write(proofs.full(), tmp_path)
    text = readme.read_text(encoding="utf-8")
    assert text.endswith(f"\n{HEADING}\n\n{mine}\n")
    assert text.count(HEADING) == 1
    assert "Accuracy changed" in text


def test_readme_is_hostile_proof():
    result = with_strings(
        proofs.full(), "</h1><script>x</script> | [a](javascript:b) `c`\n# d\n```\n## What did not work\n"
    )
    text = compose(Result(result))
    prose, fence, rest = text.partition("````sh\n")
    outside = prose + rest.partition("\n````\n")[2]
    assert fence and not re.search("<[a-z/!?]", outside)
    # Written again, nothing of it is taken for the author's.
    assert compose(Result(result), text) == text
    assert outside.count("\n# ") == 0 and outside.count("\n## ") == 2
    assert not re.search(r"(?<!\\)\[a", outside)
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 7}


def test_a_figures_text():
    def text(value: float, style: Style) -> str:
        return Result({"x": value}).show("x", style).text  # pyright: ignore[reportOptionalMemberAccess]

    assert text(0.80314, PERCENT) == "80.3 %"
    assert text(-0.00001, Style(2)) == "0.00"
    assert text(-1234.5, Style(1)) == "−1,234.5"
    assert text(0.002996, Style()) == "0.00300"
    assert Result({"x": 999}).size("x").text == "999 B"  # pyright: ignore[reportOptionalMemberAccess]
    assert Result({"x": float("nan"), "y": True, "z": "1"}).number("x") is None
    assert Result({"y": True}).number("y") is None and Result({"z": "1"}).number("z") is None
