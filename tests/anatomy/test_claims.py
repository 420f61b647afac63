"""What a claim is read as, what it would need, and every sentence that is not understood."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat.anatomy.claim import Claim, parse
from sprat.anatomy.required import count, entropy, nonzero_share, required
from sprat.anatomy.shape import from_numbers
from sprat.cli.main import main
from sprat.errors import SpratError

LARGE = from_numbers(4096, 64, 16384, 50257)
WIDE = ["--width", "4096", "--layers", "64", "--ffn", "16384", "--vocab", "50257"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("17.6B to 417M", {"parameters_before": 17.6e9, "parameters": 417e6}),
        ("from 17.6 billion parameters down to 417 M weights", {"parameters_before": 17.6e9, "parameters": 417e6}),
        ("417m", {"parameters": 417e6}),
        ("1,000 parameters", {"parameters": 1000}),
        ("1.15 GB at 1.125 bpw", {"bytes": 1.15e9, "rate": 1.125}),
        ("8B in 1.15GB", {"parameters_before": 8e9, "bytes": 1.15e9}),
        ("8B model at 2 bits per weight", {"parameters_before": 8e9, "rate": 2}),
        ("16 bits -> 1.58 bits", {"rate_before": 16, "rate": 1.58}),
        ("1-bit", {"rate": 1}),
        ("16 GiB into 500 bytes", {"bytes_before": 2**34, "bytes": 500}),
        ("42x", {"smaller": 42}),
        ("42× smaller: 17.6B to 417M", {"smaller": 42, "parameters_before": 17.6e9, "parameters": 417e6}),
        ("5-fold compression", {"smaller": 5}),
        ("50% smaller", {"smaller": 2}),
        ("7B, 75 % fewer", {"smaller": 4, "parameters_before": 7e9}),
        ("50% zeros", {"zeros": 0.5}),
        ("90% pruned and 4 bits", {"zeros": 0.9, "rate": 4}),
    ],
)  # fmt: skip
def test_what_a_claim_says(text, said):
    assert parse(text) == Claim(text=text, **{name: pytest.approx(value) for name, value in said.items()})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty claim"),
        (" , ", "an empty claim"),
        ("nearly lossless", "'nearly lossless' is not understood"),
        ("17.6B to nothing", "'nothing' is not understood"),
        ("5", "'5' is not understood"),
        ("50%", "'50%' is not understood"),
        ("8B8", "is not understood"),
        ("1B to 2B to 3B", "more than one count before and after"),
        ("2x 3x", "more than one factor"),
        ("2x, 50% smaller", "says twice how much smaller"),
        ("0.5x", "is larger, not smaller"),
        ("0 GB", "'0 GB' in '0 GB' cannot be"),
        ("100% smaller", "cannot be"),
        ("120% zeros", "cannot be"),
    ],
)
def test_what_is_not_understood_is_refused_with_examples(text, message):
    with pytest.raises(SpratError) as error:
        parse(text)
    assert message in str(error.value)


@given(st.text(max_size=40) | st.text("0123456789.,%xBKMGT bpwito->", max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        claim = parse(text)
    except SpratError:
        return
    for finding in required(claim, LARGE):
        assert all(math.isfinite(value) for value in finding.figures.values())


def figures(text, shape=LARGE):
    """kind -> figures of its first finding."""
    found = {}
    for finding in required(parse(text), shape):
        found.setdefault(finding.kind, finding.figures)
    return found


def test_seventeen_billion_to_four_hundred_million():
    found = figures("17.6B to 417M")
    assert abs(found["original"]["apart"]) < 0.001
    assert found["factor"]["factor"] == pytest.approx(42.2, abs=0.05)
    left = found["left"]
    assert left["outside"] == 2 * 50257 * 4096
    assert left["left"] == 417e6 - 2 * 50257 * 4096 == pytest.approx(5.3e6, rel=0.01)
    assert left["vectors_a_layer"] == pytest.approx(left["left"] / 64 / 4096) == pytest.approx(20.2, abs=0.05)
    assert left["layer_parameters"] == 4 * 4096**2 + 3 * 4096 * 16384
    # q, k, v, o: 4096 + 4096 each; gate, up, down: 4096 + 16384 each
    assert left["rank"] == pytest.approx(left["left"] / 64 / (4 * 8192 + 3 * 20480))
    assert found["rate"]["bits_a_weight"] == pytest.approx(16 * 417 / 17600)
    assert found["kept"]["layer_bits"] == pytest.approx(
        16 * (417e6 - left["outside"]) / (64 * 268435456), rel=1e-3
    )


def test_fewer_parameters_than_the_embeddings():
    found = required(parse("100M"), LARGE)
    assert "fewer than the 412 M of embeddings and head" in found[0].statement
    assert found[0].figures["left"] < 0


def test_a_size_at_a_rate_is_a_number_of_weights():
    assert figures("1.15 GB at 1.125 bpw", None)["weights"]["weights"] == pytest.approx(8 * 1.15e9 / 1.125)
    assert figures("1.15 GB at 1.125 bpw", None)["scales"] == pytest.approx(
        {"grid_bits": 1, "scale_bits": 0.125, "group": 128}
    )
    said = {n: required(parse(f"{n}B in 1.15 GB at 1.125 bpw"))[0].statement for n in (8.19, 10, 6)}
    assert "embeddings and head among them" in said[8.19]
    assert "1.82 B fewer than the model's 10 B" in said[10]
    assert "306.2 MB are something else" in said[6]


def test_a_rate_is_a_size():
    found = figures("1.58 bits")
    assert found["size"]["bytes"] == pytest.approx(LARGE.parameters * 1.58 / 8)
    layers = (LARGE.parameters - LARGE.outside) * 1.58 / 8 + 2 * LARGE.outside
    assert found["size"]["bytes_layers_only"] == pytest.approx(layers)
    assert figures("8B at 2 bits", None)["size"]["bytes"] == 2e9


def test_smaller_is_a_rate():
    assert figures("50% smaller", None)["rate"]["bits_a_weight"] == 8
    assert figures("42x")["rate"]["bits_a_weight"] == pytest.approx(16 / 42)
    assert figures("42x, 17.6B to 417M")["factor"]["factor"] == pytest.approx(42.2, abs=0.05)
    assert "and not 50" in required(parse("50x, 17.6B to 417M"))[-1].statement


def test_an_original_counted_in_more_bits_is_seen():
    seven = from_numbers(4096, 32, 11008, 32000)
    first = required(parse("27 GB to 2 GB"), seven)[0]
    assert first.figures["bits_a_weight"] == pytest.approx(8 * 27e9 / seven.parameters)
    assert "32.1 bits a weight; models are published at 16, where it is 13.5 GB" in first.statement
    assert "published" not in required(parse("13.5 GB to 2 GB"), seven)[0].statement


def test_bits_that_are_there_are_bits_that_are_spent():
    """Embeddings at 8 bits and the layers at what is said to be left make the claimed size."""
    for finding in required(parse("8 GB"), LARGE):
        if finding.kind == "kept":
            kept, rest = finding.figures["kept_bits"], finding.figures["layer_bits"]
            total = kept * LARGE.outside + rest * (LARGE.parameters - LARGE.outside)
            assert total / 8 == pytest.approx(8e9)
            break
    else:
        pytest.fail("nothing is said of embeddings that are kept")


def test_zeros_cost_their_places():
    assert figures("50% zeros", None)["zeros"] == {"place_bits": 1, "at_16_bits": 9, "at_4_bits": 3}


@pytest.mark.parametrize("bits", [0.01, 0.38, 0.9, 1.5])
def test_no_pattern_of_more_nonzeros_fits(bits):
    """Counted exactly for 2,000 weights: C(n, k) 2^k patterns of k nonzeros and their signs."""
    n = 2000
    share = nonzero_share(bits)
    fits = [math.log2(math.comb(n, k)) + k <= bits * n for k in range(2 * n // 3)]
    largest = len(list(itertools.takewhile(bool, fits))) - 1
    assert largest / n == pytest.approx(share, abs=0.006)
    assert entropy(share) + share == pytest.approx(bits)


def test_counts_as_people_read_them():
    assert [count(x) for x in (20.2, 82700, 999_600, 417e6, 17.6e9, 1e12)] == [
        "20.2", "82.7 K", "1 M", "417 M", "17.6 B", "1 T",
    ]  # fmt: skip


def run(capsys, *argv):
    status = main(["anatomy", *map(str, argv)])
    return status, *capsys.readouterr()


def test_the_command_prints_counts_and_claims(capsys):
    status, out, _ = run(capsys, *WIDE, "--claim", "17.6B to 417M", "--claim", "42x")
    assert status == 0
    assert "17,592,102,912" in out
    assert 'For "17.6B to 417M" to be true:' in out
    assert "leave 5.29 M for 64 layers: 82.7 K a layer, 20.2 vectors of width 4,096" in out


def test_the_command_prints_json(capsys):
    status, out, _ = run(capsys, *WIDE, "--tied", "--ungated", "--claim", "1 GB", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["schema"] == "sprat.anatomy/1"
    assert found["parameters"] == 50257 * 4096 + 64 * (4 * 4096**2 + 2 * 4096 * 16384 + 2 * 4096) + 4096
    assert found["sizes"][0] == {
        "bits_a_weight": 16,
        "bytes": 2 * found["parameters"],
        "bytes_layers_only": 2 * found["parameters"],
    }
    assert found["claims"][0]["findings"][0]["kind"] == "rate"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "an anatomy needs a MODEL (config.json, its folder, a .sprat), or a shape: --width"),
        (["--width", "64", "--claim", "1M"], "--layers, --ffn, --vocab missing"),
        (["config.json", "--width", "64"], "give a MODEL or its shape, not both: --width"),
        ([*WIDE, "--claim", "much smaller"], "'much smaller' is not understood"),
        (["nowhere"], "cannot read nowhere"),
        (["--width", "wide"], "'wide' is no whole number"),
    ],
)
def test_a_wrong_command_is_refused(capsys, argv, message):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert message in err
