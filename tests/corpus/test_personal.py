"""Personal data is found in many shapes, what looks like it is not, and no text takes long."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus import personal as room
from groundup.corpus.document import Document, Drop
from groundup.corpus.personal import FINDERS, find, masked, passes_luhn, personal
from groundup.corpus.settings import Personal, PersonalKind

KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA7bq9Xk2m0pV4\n" * 3 + "-----END RSA PRIVATE KEY-----"
POSITIVE: list[tuple[PersonalKind, str, str]] = [  # kind, what is to be found, in what
    ("email", "ada.lovelace+home@mail.example.co.uk", "write to {}."),
    ("email", "müller@exämple.de", "<{}>"),
    ("phone", "(415) 555-2671", "call {} now"),
    ("phone", "+44 20 7946 0018", "London: {}, Paris"),
    ("phone", "4155552671", "tel: {}"),
    ("ip", "8.8.8.8", "ping {}:53"),
    ("ip", "2001:4860:4860::8888", "at {} there"),
    ("card", "4111 1111 1111 1111", "paid by {}"),
    ("card", "378282246310005", "amex {}"),
    ("iban", "GB82 WEST 1234 5698 7654 32", "IBAN {} AND MORE"),
    ("iban", "DE89370400440532013000", "to {}"),
    ("ssn", "123-45-6789", "his number is {}"),
    ("ssn", "123456789", "SSN: {}"),
    ("api_key", "AKIA" + "ABCDEFGHIJKLMNOP", "key {}"),
    ("api_key", "ghp_" + "a1B2" * 9, "{}"),
    ("api_key", "v9Qk2LmX7tRw4ZpB8sYd", "DB_PASSWORD = '{}'"),
    ("private_key", KEY, "the key is\n{}\nthere"),
]
NEGATIVE = [
    "version 1.2.3.4", "v10.0.19041.1", "2024-01-15 10:30:45", "ISBN 978-0-306-40615-7", "doi:10.1038/s41586-020-2649",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "order 112-3456789-1234567",
    "4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33", "000-12-3456", "3.14159265358979", "1,234,567,890",
    "std::string::npos", "@home and @work", "user@localhost", "192.168.1.1", "127.0.0.1", "api_key = your_api_key_here",
    "0123456789012", "1914-1918", "pages 1021-1045", "12:30:45", "see section 4.1.2.3", "6011 0009",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "secret", "where"), POSITIVE)
def test_found_and_replaced_and_nothing_around_it(kind: PersonalKind, secret: str, where: str) -> None:
    looked = personal(Document(where.format(secret), "a"), Personal())
    assert isinstance(looked, Document) and looked.text == where.format(f"<{kind}>")
    [note] = looked.notes
    assert (note.rule, note.count) == (f"personal.{kind}", 1)
    assert not any(part in note.example for part in secret.split() if any(map(str.isalnum, part)))


@given(st.permutations(POSITIVE + [(None, text, "{}") for text in NEGATIVE]))
def test_in_a_long_text_each_is_replaced_where_it_stands(cases: list[tuple[PersonalKind | None, str, str]]) -> None:
    looked = personal(Document("\n\n".join(where.format(text) for _, text, where in cases), "a"), Personal())
    wanted = [where.format(f"<{kind}>" if kind else text) for kind, text, where in cases]
    assert isinstance(looked, Document) and looked.text == "\n\n".join(wanted)


@pytest.mark.parametrize("text", NEGATIVE)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert find(text, Personal()) == []


def test_a_kind_drops_the_document_where_that_is_asked() -> None:
    settings = Personal(redact=("email",), drop=("private_key",))
    assert (
        isinstance(dropped := personal(Document(KEY, "a"), settings), Drop) and dropped.rule == "personal.private_key"
    )
    assert personal(Document("call (415) 555-2671", "a"), settings) == Document("call (415) 555-2671", "a")


def test_private_addresses_and_the_placeholder_are_settings() -> None:
    looked = personal(Document("at 10.0.0.1", "a"), Personal(private_addresses=True, placeholder="[{kind}]"))
    assert isinstance(looked, Document) and looked.text == "at [ip]"


def test_what_is_said_of_a_secret_is_only_its_shape() -> None:
    assert masked("Zoë-9٣漢") == "Xxx-00x"


@given(st.lists(st.sampled_from([w.format(s) for _, s, w in POSITIVE] + NEGATIVE + ["a", " ", "\n", "é"]), max_size=6))
def test_the_scan_leaves_out_only_what_cannot_match(parts: list[str]) -> None:
    text, asked = "".join(parts), Personal()
    with pytest.MonkeyPatch.context() as patch:
        found = find(text, asked)
        patch.setattr(room, "hints_of", lambda text: 63)
        assert find(text, asked) == found


@pytest.mark.parametrize(
    "part",
    [
        "@",
        "1",
        "a@",
        "1 ",
        "1.",
        "1-",
        "(1)",
        "::1",
        "AB12",
        "+1 ",
        "12:",
        "secret=",
        "sk-a1B",
        "call 555-1212 ",
        KEY[:31],
    ],
)
def test_time_is_linear(part: str) -> None:
    """Fault A19. Twice the text takes less than three times as long, each at its fastest of three."""

    def fastest(n: int) -> float:
        times = []
        for _ in range(3):
            began = time.process_time()
            find((part * n)[:n], Personal(private_addresses=True))
            times.append(time.process_time() - began)
        return min(times)

    assert fastest(20_000) < 3 * fastest(10_000) + 0.005


def test_luhn_finds_each_wrong_digit() -> None:
    rng = random.Random(0)
    for _ in range(200):
        body = "".join(rng.choices("0123456789", k=15))
        [right] = [digit for digit in "0123456789" if passes_luhn(body + digit)]
        assert sum(passes_luhn(body[:3] + other + body[4:] + right) for other in "0123456789") == 1


def test_each_kind_of_the_settings_has_a_finder_and_a_test() -> None:
    assert set(FINDERS) == set(Personal().redact) == {kind for kind, _, _ in POSITIVE}
