"""The compact tokenizer comes back equal, and hostile bytes are refused."""

from __future__ import annotations

import base64
import json
import lzma
import struct
import subprocess
import sys
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sprat.coding import columns, vocabulary
from sprat.coding import tokenizer as coder
from sprat.coding.tokenizer import pack, unpack
from sprat.errors import FormatError

TEXT = ["the cat sat on the mat, the dog 日本語 ate the 🐟 and sang in the old tree"] * 30


def trained(kind: str) -> dict:
    if kind == "unigram":
        t = Tokenizer(models.Unigram())
        t.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=80, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    elif kind == "wordlevel":
        t = Tokenizer(models.WordLevel(unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    elif kind == "wordpiece":
        t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        t.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    elif kind == "char bpe":
        t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        t.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>"], show_progress=False)
    else:
        t = Tokenizer(models.BPE())
        t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<eos>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    t.train_from_iterator(TEXT, trainer)
    return json.loads(t.to_str())


def shuffled(value: dict) -> dict:
    vocab = value["model"]["vocab"]
    value["model"]["vocab"] = {token: vocab[token] for token in sorted(vocab)}
    return value


def holed(value: dict) -> dict:
    value["model"]["vocab"] = {t: i * 3 + 7 for t, i in value["model"]["vocab"].items()}
    return value


def permuted(value: dict) -> dict:
    vocab = value["model"]["vocab"]
    value["model"]["vocab"] = dict(zip(vocab, reversed(vocab.values()), strict=True))
    return value


def spaced(value: dict) -> dict:
    value["model"]["merges"] = [" ".join(m) for m in value["model"]["merges"]]
    return value


def doubled(value: dict) -> dict:
    """As converted from sentencepiece: several merges make one token."""
    vocab = value["model"]["vocab"]
    value["model"]["merges"] = [
        [t[:i], t[i:]] for t in vocab for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab
    ]
    return value


def reversed_merges(value: dict) -> dict:
    value["model"]["merges"].reverse()
    return value


CASES = {
    kind: (lambda kind=kind: trained(kind))
    for kind in ("byte bpe", "char bpe", "unigram", "wordlevel", "wordpiece")
}
CASES |= {
    f.__name__: (lambda f=f: f(trained("byte bpe")))
    for f in (shuffled, holed, permuted, spaced, doubled, reversed_merges)
}


@pytest.mark.parametrize("case", CASES)
def test_comes_back_equal_in_order_and_behaviour(case):
    value = CASES[case]()
    files = {
        "tokenizer.json": json.dumps(value, indent=2).encode(),
        "tokenizer_config.json": b'{ "eos_token": "<eos>", "max": 1000000000000000019884624838656 }',
        "chat_template.jinja": b"{% for m in messages %}\n  {{ m }}{% endfor %}\n",
    }
    packed = pack(files)
    back = unpack(packed)
    assert list(back) == list(files) and back["chat_template.jinja"] == files["chat_template.jinja"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.dumps(json.loads(back[name])) == json.dumps(json.loads(files[name]))
    if case != "holed":
        a, b = (Tokenizer.from_str(f["tokenizer.json"].decode()) for f in (files, back))
        assert a.encode(TEXT[0]).ids == b.encode(TEXT[0]).ids
    assert len(packed) <= len(pack_plain(files))


def read_by_the_page(data: bytes) -> dict[str, bytes]:
    """A reader written from docs/format.md alone, for good files."""
    at = 1

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def blob() -> bytes:
        nonlocal at
        raw, packed = varint(), varint()
        at += packed
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 24}]
        found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(data[at - packed : at])
        assert len(found) == raw
        return found

    def numbers(folded: bool = True) -> list[int]:
        nonlocal at
        count, w, layout = varint(), data[at], data[at + 1]
        at += 2
        raw = blob()
        rows = [raw[i::count] if layout else raw[i * w : (i + 1) * w] for i in range(count)]
        values = [int.from_bytes(row, "little") for row in rows]
        return [(v >> 1) ^ -(v & 1) for v in values] if folded and w == 8 else values

    def strings() -> list[str]:
        return blob().decode("utf-8", "surrogatepass").split("\0")[:-1]

    directory, body = json.loads(blob()), blob()
    files, start = {}, 0
    for name, size, method in directory:
        files[name] = body[start : start + size]
        start += size
        if not method:
            continue
        value = json.loads(files[name])
        model = value["model"]
        if method == "scores":
            tokens, bits = strings(), numbers(folded=False)
            kinds = ("<I", "<f") if max(bits) < 1 << 32 else ("<Q", "<d")
            scores = [struct.unpack(kinds[1], struct.pack(kinds[0], b))[0] for b in bits]
            model["vocab"] = [[t, s] for t, s in zip(tokens, scores, strict=True)]
        else:
            literals = strings()
            places, ids = list(accumulate(numbers())), list(accumulate(numbers()))
            order, left, right = numbers(), numbers(), numbers()
            count = model["vocab"]
            token = dict(zip(places, literals, strict=True))
            seen = set(literals)
            for l, r in zip(left, right, strict=True):
                t = token[l] + token[r]
                if t not in seen:
                    seen.add(t)
                    token[next(i for i in range(count) if i not in token)] = t
            model["vocab"] = {token[i]: (ids or range(count))[i] for i in order or range(count)}
            if "merges" in model:
                pairs = [[token[l], token[r]] for l, r in zip(left, right, strict=True)]
                model["merges"] = [" ".join(p) for p in pairs] if model["merges"] == "spaced" else pairs
        files[name] = json.dumps(value).encode("utf-8", "surrogatepass")
    assert at == len(data)
    return files


@pytest.mark.parametrize("case", CASES)
def test_a_reader_written_from_the_page_agrees(case):
    value = CASES[case]()
    found = read_by_the_page(pack({"a.txt": b"no json", "tokenizer.json": json.dumps(value).encode()}))
    assert found["a.txt"] == b"no json"
    assert json.dumps(json.loads(found["tokenizer.json"])) == json.dumps(value)


def pack_plain(files):
    return coder._write({name: coder._compact(data) for name, data in files.items()}, {})


def test_merges_are_what_makes_it_small():
    files = {"tokenizer.json": json.dumps(trained("byte bpe")).encode()}
    value = json.loads(files["tokenizer.json"])
    taken = vocabulary.take_apart(coder._compact(files["tokenizer.json"]))
    assert taken is not None and taken[1] == "merges"
    spelled = len(value["model"]["vocab"]) - len(value["model"]["merges"])
    place = value["model"]["vocab"]
    pairs = [tuple(m) for m in value["model"]["merges"]]
    assert len(vocabulary._literals(list(place), place, pairs)) == spelled  # bytes and <eos> only


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b"no json",
        b"[1, 2]",
        b'{"model": 3}',
        b'{"model": {"vocab": {"a": "b"}}}',
        b'{"model": {"vocab": [["a\\u0000b", 1.5]]}}',
        b'{"model": {"vocab": [["a", 1]]}}',
        b'{"model": {"vocab": {"a": 0, "\\ud83d": 1}, "merges": []}}',
    ],
)
def test_what_is_no_usual_tokenizer_is_kept_whole(odd):
    back = unpack(pack({"tokenizer.json": odd}))["tokenizer.json"]
    try:
        assert json.dumps(json.loads(back)) == json.dumps(json.loads(odd))
    except ValueError:
        assert back == odd


@pytest.fixture(scope="module")
def packed() -> bytes:
    return pack({"tokenizer.json": json.dumps(trained("byte bpe")).encode()})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_nothing_but_a_format_error(packed, data):
    at = data.draw(st.integers(0, len(packed) - 1))
    bad = data.draw(
        st.sampled_from(
            [packed[:at], packed[:at] + bytes([data.draw(st.integers(0, 255))]) + packed[at + 1 :]]
        )
    )
    try:
        unpack(bad)
    except FormatError as error:
        assert "tokenizer" in str(error)


@given(st.binary(max_size=200))
def test_random_bytes(data):
    with pytest.raises(FormatError):
        unpack(b"\x01" + data)


def test_bombs_are_stopped_by_the_limit(packed):
    zeros = columns.blob(b"[]") + columns.blob(bytes(1 << 22))
    with pytest.raises(FormatError, match="more than a tokenizer may"):
        unpack(b"\x01" + zeros, limit=1 << 20)
    with pytest.raises(FormatError, match="more than a tokenizer may"):
        unpack(packed, limit=2000)
    # Each merge joins the last token with itself: 2^40 characters from 40 pairs.
    frame = columns.dump({"model": {"vocab": 41, "merges": "pairs"}})
    line = columns.column(list(range(40)))
    parts = [
        columns.text_column(["a"]),
        columns.column([0]),
        columns.column([]),
        columns.column([]),
        line,
        line,
    ]
    bomb = coder._write({"tokenizer.json": frame}, {"tokenizer.json": ("merges", parts)})
    with pytest.raises(FormatError, match="more than a tokenizer may"):
        unpack(bomb)


def test_merges_that_make_more_tokens_than_there_are():
    frame = columns.dump({"model": {"vocab": 2, "merges": "pairs"}})
    numbers = [columns.column(values) for values in ([0, 1], [], [], [0], [1])]
    parts = [columns.text_column(["a", "b"]), *numbers]
    lie = coder._write({"tokenizer.json": frame}, {"tokenizer.json": ("merges", parts)})
    with pytest.raises(FormatError, match="more tokens than it has"):
        unpack(lie)


def test_a_length_that_lies(packed):
    lie = lzma.compress(b"[]", lzma.FORMAT_RAW, filters=columns.FILTERS)
    with pytest.raises(FormatError, match="not as long as it says"):
        unpack(b"\x01" + columns.varint(7) + columns.varint(len(lie)) + lie)


def test_the_runtime_needs_no_torch():
    code = "import sprat.coding.tokenizer, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


OLD_WORDS = "the cat sat on the mat and the dog ate the big fish while a small bird sang in the old tree"
#: Packed by the first release of the format (base85): what it wrote must always be read.
OLD = {
    "merges": (
        "0U#s+03TahB6M$SWo~JDWpXZRb8l`UEHyGLB5h@IXJvCDU0nb)H~|1Ndm?RbWMyn3I(s5?d2nSSIwC?)MItOBc5h>0Vj?;=H"
        "7p`+WpZa_b0Rt-aA9e3b0U3x06IJ10673N0{|Wx6*(~9ZWrexPKKW_^cQ==jkl_GO>Nj{s{%3&5_w7Q4e_Z;Nk{C48_VCcu@"
        "6#z8UPys02>eB02%-X0{{R3nL{rV0000100031009610RSce046E{03{R~1053|4-Fy#Bm^b_C;}=5EG-u=FfkJ|G&L$WA2|"
        "sRJQO}Z044zdCM@6pB>*G?00aSLz7s>bsT@*SpLYGf#@HU~w(!$zBK$M{4jL~boIqs0<Ny"
    ),
    "scores": (
        "0U#s+03TahB6M$SWo~JDWpXZRb8l`UEHyAJB6DMJa%FQOU0nb&HUR)Jdm?RbWMyn3I(s5?d2nSSIwDnWX=id_Z6Yipb#7~4X"
        "=EZgFf1Z=Z)0I%B04rTeSHAU0gVCR0L%b|0{|Wx6*(~9ZWrexPKKW_^cQ==jkl_GO>Nj{s{%3&5_w7Q4e_Z;Nk{C48_VCcu@"
        "a?E8@ADU??s=b=h!%a>OV3tixY0BVpnkw1lhh{7p4y4Qx-O%p9q{asso8M&X|otiqE}`ot5jbYs_`Grw-b^RW4a1OUM<RZyF"
        "FBI1Rmj+?0I)K?DJW0$Jbz0{~G2003`i`kW$mxXk{(D`EDOttHD+<Np>+tasw|I)=ITSV=vqK6XFAKA}_<{1??L0eNwg#pSE"
        "~kA<ib^ko~qLYtFK7*l%_Ixq@Gpn-&&tN;K"
    ),
}


@pytest.mark.parametrize("method", OLD)
def test_what_was_packed_once_is_read_for_ever(method):
    vocabulary = {token: i for i, token in enumerate(["<eos>", *"abcdefghijklmnopqrstuvwxyz"])}
    merges = []
    for word in OLD_WORDS.split():
        for i in range(1, len(word)):
            if word[: i + 1] not in vocabulary:
                vocabulary[word[: i + 1]] = len(vocabulary)
                merges.append([word[:i], word[i]])
    model: dict = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    if method == "scores":
        model = {"type": "Unigram", "unk_id": 0, "vocab": [[t, -1.5 * i] for i, t in enumerate(vocabulary)]}
    back = unpack(base64.b85decode(OLD[method]))
    assert json.dumps(json.loads(back["tokenizer.json"])) == json.dumps({"model": model})


@pytest.mark.real
def test_the_real_tokenizer_fits_in_160_kb(real, tmp_path):
    from sprat.source.load import load

    files = load(real).tokenizer_files
    packed = pack(files)
    back = unpack(packed)
    assert len(packed) < 160_000
    assert json.dumps(json.loads(back["tokenizer.json"])) == json.dumps(json.loads(files["tokenizer.json"]))
