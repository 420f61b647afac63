"""README.md and quality.svg of a record, from its result.json and the author's remarks.md, nothing else."""

from __future__ import annotations

from typing import Any

from bench import picture
from bench.curve import at, bytes_at, curves
from bench.judge import ratio
from bench.markdown import interval, table
from bench.record import Record
from bench.texts import KINDS
from bench.work import base_name

Row = dict[str, Any]


def write(record: Record) -> None:
    """Rewrite both files beside result.json."""
    folder = record.path.parent
    good = {name: row for name, row in record.rows.items() if "failed" not in row}
    if good:
        title = f"{record.data.get('original', {}).get('name', 'model')}: quality at equal bytes on disk"
        picture.draw(good, folder / "quality.svg", title)
    parts = [
        _head(record),
        _sprat(good),
        _peers(good, record.data["settings"]["model"]),
        _ablations(good, record.data["settings"]),
        _failures(record),
        _runs(record),
    ]
    (folder / "README.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _head(record: Record) -> str:
    s, original = record.data["settings"], record.data.get("original", {})
    quick = "**A quick run: these figures say only that the benchmark works.**\n\n" if s["quick"] else ""
    name, size = original.get("name", s["model"]), original.get("bytes", 0) / 1e6
    overlaps = ", ".join(f"{k} {v:.1%}" for k, v in record.data.get("overlap", {}).items())
    return f"""# Quality at equal bytes on disk

{quick}{name} ({size:.1f} MB in bf16), every row a whole file: weights, scales, tokenizer, config. Scored
against the original in float32 on {s["contexts"]} contexts of {s["context"]} tokens of State of the Union
speeches, the second half of each; intervals are 95 % paired bootstrap intervals over contexts. No calibration
text is evaluation text (eight-word runs of it that occur there too: {overlaps or "not measured"}).

![KL against bytes](quality.svg)

Not drawn: points above a KL of {picture.WORST:g}."""


def _sprat(rows: dict[str, Row]) -> str:
    found = [r for r in rows.values() if r["section"] == "sprat"]
    if not found:
        return ""
    found.sort(key=lambda r: (list(KINDS).index(r["settings"]["calibration"]), r["bytes"]))
    lines = [
        [
            r["settings"]["budget"],
            KINDS[r["settings"]["calibration"]],
            _bytes(r["bytes"]),
            interval(r["kl"], 4),
            _share(r["same_top"]),
            interval(r["perplexity_ratio"], 3),
            f"{r['predicted_kl']:.3f}",
            f"{sum(r['fit_seconds'].values()):.0f}",
        ]
        for r in found
    ]
    columns = ["budget", "calibrated on", "MB", "KL", "same top", "perplexity ×", "KL predicted", "fit, s"]
    return "## sprat\n\n" + table(columns, lines, right=True)


def _peers(rows: dict[str, Row], model: str) -> str:
    found = sorted((r for r in rows.values() if r["section"] == "peers"), key=lambda r: r["bytes"])
    if not found:
        return ""
    points = curves(rows).get("self", [])
    lines = []
    for r in found:
        kl = r["kl"]["value"]
        packed = r.get("compressed_bytes")
        ours, size = at(points, r["bytes"]), bytes_at(points, kl)
        coded = at(points, packed) if packed else None
        lines.append(
            [
                r["label"],
                _bytes(r["bytes"]),
                interval(r["kl"], 4),
                _share(r["same_top"]),
                _kl_and_factor(ours, kl),
                f"{size / 1e6:.1f}" if size else "",
                _bytes(packed) if packed else "",
                _kl_and_factor(coded, kl),
            ]
        )
    grid = (
        "The original is a dequantized 4-bit file (blocks of 32): rows of 4 and 8 bits meet weights that lie on such "
        "a grid already. Below 4 bits the test is fair.\n\n"
        if model == "smollm2-135m"
        else ""
    )
    columns = [
        "method", "MB on disk", "KL", "same top", "sprat's KL at these bytes †", "sprat's MB at this KL †",
        "MB entropy-coded ‡", "sprat's KL at those bytes †",
    ]  # fmt: skip
    return (
        "## Peers\n\n"
        + grid
        + table(columns, lines, right=True)
        + f"\n\n{_losses(rows)}"
        + """

† Interpolated, not fitted: log KL taken as linear in bytes between the measured budgets of sprat calibrated
on its own text; empty outside of them. In brackets: the peer's KL over sprat's.
‡ What the same file would weigh with its integers under an ideal code for their own distribution (one table a
matrix, free) and scales and zero points under lzma. None of these tools writes such files; the column shows
how much of the distance is entropy coding alone.

llama.cpp's files are computed by llama.cpp itself (activations in 8 bits), all others by PyTorch in float32. Files
with the head in bf16 are checkpoints as their tools save them from a model in bf16."""
    )


def _losses(rows: dict[str, Row]) -> str:
    """Where sprat loses: the peers that no file of its own equals at their bytes or fewer."""
    ours = [r for r in rows.values() if r["section"] == "sprat" and r["settings"]["calibration"] == "self"]
    if not ours:
        return ""
    lost = []
    for r in sorted((r for r in rows.values() if r["section"] == "peers"), key=lambda r: r["bytes"]):
        best = min((o["kl"]["value"] for o in ours if o["bytes"] <= r["bytes"]), default=None)
        if best is None or r["kl"]["value"] < best:
            beside = (
                f"sprat's best at these bytes or fewer: {best:.4f}"
                if best
                else "no file of sprat is as small"
            )
            lost.append(f"- {r['label']}: {_bytes(r['bytes'])} MB, KL {r['kl']['value']:.4f} ({beside})")
    if not lost:
        return "**Where sprat loses**: nowhere here: beside each peer a file of sprat's, no larger, has a lower KL."
    return (
        "**Where sprat loses**: peers with a lower KL than any file of sprat's of no more bytes.\n\n"
        + "\n".join(lost)
    )


def _ablations(rows: dict[str, Row], settings: dict[str, Any]) -> str:
    base = rows.get(base_name(settings["ablation_budget"]))
    found = [r for r in rows.values() if r["section"] == "ablations" and r is not base]
    if not found or base is None:
        return ""
    lines = [
        [
            "all parts on, healing off",
            _bytes(base["bytes"]),
            interval(base["kl"], 4),
            _share(base["same_top"]),
            "1",
        ]
    ]
    budget = base["settings"]["budget"]
    for r in rows.values():
        s = r["settings"]
        if r["section"] == "sprat" and s["budget"] == budget:
            own = s["calibration"] == "self"
            label = "healing on (the default)" if own else f"calibrated on {KINDS[s['calibration']]}, healed"
            found.append(r | {"label": label})
    for r in found:
        factor = ratio(r["kl_by_context"], base["kl_by_context"], settings["seed"])
        lines.append(
            [r["label"], _bytes(r["bytes"]), interval(r["kl"], 4), _share(r["same_top"]), interval(factor, 2)]
        )
    return (
        f"## Parts switched off, one at a time, at {budget}\n\nCalibrated on text that the model wrote unless "
        "it says otherwise. A fit ends between 99 and 100 % of its budget.\n\n"
        + table(["", "MB", "KL", "same top", "KL over the first row's"], lines, right=True)
    )


def _failures(record: Record) -> str:
    lines = [f"- {r['label']}: {r['failed']}" for r in record.rows.values() if "failed" in r]
    for r in record.rows.values():
        lines += [f"- {r['label']}: {w}" for w in r.get("warnings", [])]
    remarks = record.path.parent / "remarks.md"
    said = remarks.read_text(encoding="utf-8").strip() if remarks.exists() else ""
    body = "\n\n".join(filter(None, ["\n".join(lines), said]))
    return "## What did not work\n\n" + (body or "No row failed and no fit gave a warning.")


def _runs(record: Record) -> str:
    said = ["## How this was made", ""]
    for run in record.data["commands"]:
        packages = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
        m = run["machine"]
        said.append(
            f"- `{run['command']}` at commit {run['commit'] or '?'}; {packages}; "
            f"{m['processor']}, {m['cores']} cores, {m['system']}"
        )
    said += ["", f"- original: SHA-256 `{record.data.get('original', {}).get('sha256', '?')}`"]
    for name, digest in record.data["settings"]["text_sha256"].items():
        said.append(f"- {name} text: SHA-256 `{digest}`")
    said += ["", "Each row's resolved recipe, level, file hash, seed and KL by context are in result.json."]
    return "\n".join(said)


def _kl_and_factor(ours: float | None, theirs: float) -> str:
    return f"{ours:.3g} ({theirs / ours:.1f} ×)" if ours else ""


def _share(value: dict[str, Any]) -> str:
    return f"{100 * value['value']:.1f} %"


def _bytes(count: float) -> str:
    return f"{count / 1e6:.{2 if count >= 1e6 else 4}f}"
