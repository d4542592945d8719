from __future__ import annotations

import json
import math
from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass
from datetime import date
from enum import Enum, IntEnum
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone.payload import REDACTED, PayloadEncoder, Redactor, is_plain, payload_text, redact_text
from dramatiq_chaperone.service import internal_errors

ENCODER = PayloadEncoder(Redactor())


class StrangeInt(int):
    pass


@pytest.fixture(autouse=True)
def no_internal_errors():
    internal_errors.clear()
    yield
    assert not internal_errors


def encoded(*args, parameters=(), options=None, encoder=ENCODER, **kwargs):
    text, complete = encoder.encode(args, kwargs, options or {}, tuple(parameters))
    assert len(text.encode()) <= encoder.max_bytes
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")), complete


def argument(value, **more):
    """What is kept of *value*, and whether it is all of it."""
    payload, complete = encoded(value, **more)
    return payload["args"][0], complete


# --- arguments that are recorded as they are


@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(), st.lists(st.integers())), max_size=10))
def test_plain_arguments_become_the_same_text_as_encoded_ones(args):
    if is_plain(args):
        assert (payload_text(tuple(args)), True) == ENCODER.encode(args, {}, {})
    else:
        assert len(args) > 8 or any(
            isinstance(each, (float, list))
            or (isinstance(each, str) and not each.isprintable())
            or (isinstance(each, int) and abs(each) >= 2**63)
            for each in args
        )


@pytest.mark.parametrize("args", [["x" * 201], [2**63], ["a\0b"], ["\ud800"], [1.5], [b"x"], [{}], list(range(9)), [StrangeInt(1)]])
def test_what_needs_care_is_not_plain(args):
    assert not is_plain(args)


def test_the_largest_plain_arguments_fit_wherever_they_are_taken():
    args = ["\U0001f600" * 200] * 8
    assert is_plain(args)
    size = len(payload_text(tuple(args)).encode())
    assert not PayloadEncoder(Redactor(), max_bytes=size - 1).takes_plain(())
    assert ENCODER.takes_plain(("number", "name"))
    assert not ENCODER.takes_plain(("number", "password"))
    assert not PayloadEncoder(Redactor(replace=lambda key, value: value)).takes_plain(())


# --- plain values

texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts
keys = texts.filter(lambda key: not ENCODER.redactor.hides(key))
jsons = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20)


@given(args=st.lists(jsons, max_size=3), kwargs=st.dictionaries(keys, jsons, max_size=3))
def test_whatever_json_holds_round_trips_when_nothing_is_hidden(args, kwargs):
    encoder = PayloadEncoder(Redactor(), max_bytes=1_000_000)
    assert encoded(*args, encoder=encoder, parameters=("a",)) == ({"args": args, "kwargs": {}, "options": {}}, True)
    text, complete = encoder.encode((), kwargs, {}, ())
    assert (json.loads(text)["kwargs"], complete) == (kwargs, True)


@given(args=st.lists(jsons, max_size=3))
def test_the_careful_way_keeps_the_same_as_the_short_one(args):
    encoder = PayloadEncoder(Redactor((), lambda key, value: value), max_bytes=1_000_000)
    assert encoded(*args, encoder=encoder) == ({"args": args, "kwargs": {}, "options": {}}, True)


def test_the_traceback_of_an_earlier_run_is_no_part_of_the_payload():
    payload, complete = encoded(1, options={"retries": 1, "traceback": "x" * 20_000})
    assert (payload["options"], complete) == ({"retries": 1}, True)


class Point(NamedTuple):
    x: int
    y: int


def test_tuples_and_subclasses_are_kept_as_json_keeps_them():
    colour = Enum("colour", {"RED": "red"}, type=str)
    number = IntEnum("number", {"ONE": 1})
    assert argument((1, (2, 3))) == ([1, [2, 3]], True)
    assert argument(Point(1, 2)) == ([1, 2], True)
    assert argument(OrderedDict(a=1)) == ({"a": 1}, True)
    assert argument(colour.RED) == ("red", True)
    assert argument(number.ONE) == (1, True)


# --- values that JSON has not


class Broken:
    def __repr__(self):
        raise ValueError("no")


class Sized(list):
    def __repr__(self):
        pytest.fail("10 MB must not be described")


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __repr__(self):
        return f"Holder({self.__dict__})"


@dataclass
class Login:
    user: str
    password: str


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (2**64, str(2**64)),
        ("a\0b", "a␀b"),
        ("a\ud800b", "a\\ud800b"),
        (b"ab\xff", "b'ab\\xff'"),
        ({1: "a"}, {"1": "a"}),
        ({None: {(1, 2): 3}}, {"None": {"[1, 2]": 3}}),
        ({7}, [7]),
        (date(2026, 1, 2), "datetime.date(2026, 1, 2)"),
        (Login("ada", "x"), {"user": "ada", "password": REDACTED}),
        (Holder(a=1), "Holder({'a': 1})"),
    ],
)
def test_what_json_cannot_hold_is_described_and_not_complete(value, kept):
    assert argument(value) == (kept, False)


@pytest.mark.parametrize(
    "value", [Holder(password="hunter2"), Holder(a={"password": "hunter2"}), Holder(a="x" * 1000), UserDict(password="hunter2")]
)
def test_an_object_that_may_hold_a_secret_or_much_is_only_named(value):
    kept, complete = argument(value)
    assert kept.startswith("<")
    assert "hunter2" not in kept
    assert not complete


def test_odd_objects_are_named():
    assert argument(10**6000) == ("[a number of 19932 bits]", False)
    assert "lambda" in argument(lambda: 1)[0]
    assert "Broken" in argument(Broken())[0]
    assert "deque" in argument(deque([1]))[0]
    assert "object at" in argument(object())[0]


def test_circles_and_depth_end():
    circle = {"a": []}
    circle["a"].append(circle)
    assert argument(circle) == ({"a": ["[circular]"]}, False)
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert "[too deep]" in json.dumps(argument(deep)[0])
    twice = [1]
    assert argument([twice, twice, {1}]) == ([[1], [1], [1]], False), "the same thing twice is no circle"


@given(
    st.recursive(
        scalars
        | st.binary()
        | st.floats()
        | st.text(st.characters())
        | st.integers()
        | st.complex_numbers()
        | st.datetimes()
        | st.decimals()
        | st.uuids()
        | st.builds(object)
        | st.functions(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text(st.characters()) | st.integers() | st.floats() | st.binary(), inner)
            | st.tuples(inner, inner)
            | st.frozensets(st.integers())
        ),
        max_leaves=10,
    ),
    st.integers(100, 5000),
)
def test_no_object_ever_raises_and_every_text_is_small_and_fit_for_a_database(value, max_bytes):
    encoder = PayloadEncoder(Redactor(), max_bytes=max_bytes)
    for text in (encoder.encode((value,), {"k": value}, {"o": value}, ("p",))[0], encoder.encode_metadata({"k": value})):
        json.loads(text, parse_constant=pytest.fail)
        assert len(text.encode()) <= max_bytes
        assert "\\u0000" not in text.replace("\\\\", "")


# --- size


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "😀" * 2_000_000,
        "\x01" * 1_000_000,
        b"x" * 10_000_000,
        memoryview(b"x" * 10_000_000),
        list(range(1_000_000)),
        Sized(range(1_000_000)),
        [[0] * 100] * 10_000,
        {str(i): i for i in range(100_000)},
        {"x" * 10_000_000: 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_too_large_is_cut_and_not_complete(value):
    kept, complete = argument(value)
    assert not complete
    assert len(json.dumps(kept)) > 20


def test_what_just_fits_is_whole_and_what_just_does_not_is_cut():
    room = ENCODER.max_bytes - len('{"args":[""],"kwargs":{},"options":{}}')
    assert argument("x" * room) == ("x" * room, True)
    kept, complete = argument("x" * (room + 1))
    assert kept.endswith(f"… [{room + 1} characters]")
    assert len(kept) > room * 0.9
    assert not complete


def test_a_cut_list_says_how_many_are_missing():
    kept, _ = argument(list(range(100_000)))
    assert kept[-1] == f"[{100_000 - len(kept) + 1} more]"


# --- redaction


@pytest.mark.parametrize(
    "key",
    [
        *(
            "password",
            "PASSWORD",
            "userPassword",
            "user_password",
            "passwordHash",
            "dbpassword",
            "DB_PASSWORD",
            "passwd",
            "secret",
            "client_secret",
        ),
        *(
            "clientSecret",
            "token",
            "access_token",
            "accessToken",
            "refreshTokens",
            "Authorization",
            "proxy-authorization",
            "auth",
            "apiKey",
            "APIKey",
        ),
        *(
            "X-Api-Key",
            "api_key",
            "apikey",
            "card",
            "credit_card",
            "cardNumber",
            "cvv",
            "credentials",
            "Cookie",
            "set-cookie",
            "private_key",
            "pin",
        ),
    ],
)
def test_keys_of_secrets_hide_their_values_at_any_depth(key):
    assert argument({key: "x"}) == ({key: REDACTED}, False)
    assert argument([{"a": ({key: {"b": "x"}},)}]) == ([{"a": [{key: REDACTED}]}], False)
    assert encoded(**{key: "x"})[0]["kwargs"] == {key: REDACTED}
    assert json.loads(ENCODER.encode_metadata({key: "x"})) == {key: REDACTED}


@pytest.mark.parametrize(
    "key",
    [
        *("discard", "cardinality", "tokenizer", "tokenize", "author", "authority", "max_tokens", "spin", "pinned", "opinion", "secretary"),
        *("dashboard", "keyboard", "monkey", "shipping", "scorecard", "cookie_banner_text", "cookiecutter", "user_id", "", "é"),
    ],
)
def test_words_that_only_look_like_secrets_are_kept(key):
    assert argument({key: "x"}) == ({key: "x"}, True)


def test_positional_arguments_go_by_the_names_of_the_parameters():
    payload, complete = encoded("ada", "hunter2", "rest", parameters=("user", "password"))
    assert (payload["args"], complete) == (["ada", REDACTED, "rest"], False)
    assert encoded("ada", parameters=("user", "password"))[0]["args"] == ["ada"]


def test_the_last_pattern_that_matches_decides():
    encoder = PayloadEncoder(Redactor(["iban", "!pin", "!*", "BIC*"]))
    assert argument({"iban": 1, "pin": 2, "password": 3, "bicCode": 4}, encoder=encoder)[0] == {
        "iban": 1,
        "pin": 2,
        "password": 3,
        "bicCode": REDACTED,
    }
    assert argument({"iban": 1}, encoder=PayloadEncoder(Redactor(["iban"]))) == ({"iban": REDACTED}, False)
    assert argument({"pin": 1}, encoder=PayloadEncoder(Redactor(["!pin"]))) == ({"pin": 1}, True)


def test_a_redactor_may_replace_named_values_but_sees_no_hidden_one():
    seen = []

    def redactor(key, value):
        seen.append(key)
        return value[:1] + "…" if key == "name" else value

    encoder = PayloadEncoder(Redactor((), redactor))
    payload, complete = encoded("Ada", {"name": "Ada", "password": "x"}, parameters=("name",), encoder=encoder)
    assert (payload["args"], complete) == (["A…", {"name": "A…", "password": REDACTED}], False)
    assert "password" not in seen
    assert argument({"a": 1}, encoder=encoder) == ({"a": 1}, True)


def test_a_redactor_that_fails_hides_everything_it_was_asked_about():
    encoder = PayloadEncoder(Redactor((), lambda key, value: 1 / 0))
    assert argument({"a": 1}, encoder=encoder) == ({"a": REDACTED}, False)
    assert internal_errors.pop("redactor") == 1


def test_hidden_values_are_taken_out_of_messages_too():
    secrets = ENCODER.secrets(
        ("ada", "hunter2"), {"card": {"no": 41111111, "cvv": "1"}, "ok": "fine", "token": "it's\nsecret"}, ("user", "password")
    )
    message = f"ada: hunter2hunter2 41111111 fine 1 {'it is'} " + repr("it's\nsecret") + "\0"
    assert redact_text(message, secrets) == f'ada: {REDACTED}{REDACTED} {REDACTED} fine 1 it is "{REDACTED}"␀'


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("401 for token=abc123&page=2", f"401 for token={REDACTED}&page=2"),
        ('{"user": "ada", "password": "it is, open"}', f'{{"user": "ada", "password": {REDACTED}}}'),
        ("{'api_key': 'k', 'n': 1}", f"{{'api_key': {REDACTED}, 'n': 1}}"),
        ("Authorization: Bearer eyJ.x.y refused", f"Authorization: {REDACTED} refused"),
        ("cannot reach postgres://app:hunter2@db:5432/jobs", f"cannot reach postgres://app:{REDACTED}@db:5432/jobs"),
        ("--token=abc, 1token=abc, étoken=abc", f"--token={REDACTED}, 1token={REDACTED}, étoken={REDACTED}"),
        ("KeyError: 'password'", "KeyError: 'password'"),
        ("max_tokens=100 at https://example.org:443/a@b", "max_tokens=100 at https://example.org:443/a@b"),
    ],
)
def test_named_secrets_are_taken_out_of_messages(text, safe):
    assert Redactor().in_text(text) == safe


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["a" * 20_000_000, "a1" * 10_000_000, "://" * 6_000_000, 'k="' + "v" * 20_000_000])
def test_a_message_of_many_megabytes_is_gone_through_once(text):
    assert Redactor().in_text(text) == text


def test_the_longest_secret_goes_first():
    assert redact_text("secret-and-more", ENCODER.secrets((), {"token": "secret", "password": "secret-and-more"})) == REDACTED


def test_a_mapping_that_fails_is_counted_and_costs_the_payload_only():
    class Failing(dict):
        def __iter__(self):
            raise RuntimeError

    assert ENCODER.encode((), {}, Failing(retries=1), ()) == (None, False)
    assert internal_errors.pop("payload") == 1
