"""Personal data and secrets: found by what they are made of, checked where they can be, and taken out.

All expressions are linear in the text: what may repeat is bounded, or never tried again from within. A compiled scan
says first which of them a text can match at all; most match none.
"""

import contextlib
import ipaddress
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from itertools import islice

import numpy as np
import regex

from groundup.corpus.document import Document, Drop, Note
from groundup.corpus.loops import ACCOUNT, AT, COLONS, DIGITS, DOTS, TOKEN, hints_of
from groundup.corpus.settings import Personal, PersonalKind

# --- the kinds ---

Spans = Iterator[tuple[int, int]]

EMAIL = regex.compile(
    r"(?<![\w.+%\-])[\p{L}\p{N}_][\p{L}\p{N}_.+%'\-]{0,63}+(?<![.'])@"
    r"(?:[\p{L}\p{N}][\p{L}\p{N}\-]{0,62}\.){1,8}(?:\p{L}{2,24}|xn--[a-z0-9\-]{2,59})(?![\p{L}\p{N}\-]|\.[\p{L}\p{N}])"
)
NUMBER = regex.compile(r"(?<![\w+.,/\-#])[+(]{0,2}\d(?:(?:[ .()\-]{0,2}+|[\u00a0\u2011\u2013])\d)*+")
"""Digits and what stands between them in phone and card numbers."""
AFTER_NUMBER = regex.compile(r"\w|[./,\-]\d")
IPV4 = regex.compile(r"(?<![\w.\-])\d{1,3}+(?:\.\d{1,3}+){3}+(?![\w\-]|\.\d)")
IPV6 = regex.compile(
    r"(?<![\w:.])(?=(?:[0-9A-Fa-f]{0,4}:){3})(?=[A-Fa-f:]{0,38}\d)[0-9A-Fa-f:]{2,39}+(?:(?:\.\d{1,3}+){3})?+(?![\w:])"
)
IBAN = regex.compile(r"(?<![\w\-])[A-Z]{2}\d{2}(?:[ \u00a0]?[A-Z0-9]){11,30}+")
SSN = regex.compile(
    r"(?:(?<![\w.\-])(?=\d{3}-)|(?i:(?:\bssn|social security)[ a-z#:.]{0,20}+)(?<!\w))"
    r"(?P<it>(?!000|666|9)\d{3}([\- ]?)(?!00)\d{2}\2(?!0000)\d{4})(?![\w\-]|\.\d)"
)
"""With dashes, or behind what says what it is."""
PRIVATE_KEY = regex.compile(
    r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:\s{1,4}[A-Z][A-Za-z\-]{1,20}: [^\n]{0,200})*+(?:"
    r"(?:[A-Za-z0-9+/=\s:,.()\\]|-(?!-)){1,20000}+-----END [A-Z0-9 ]{4,40}-----|"
    r"(?:(?:\s|\\[rn]){1,4}+[A-Za-z0-9+/=]{40,76}+)++)"
)
"""A block, or the whole lines of one that is cut short."""
SECRETS = tomllib.loads((resources.files("groundup.data") / "secrets.toml").read_text("utf-8"))
"""How tokens, cards and accounts look."""
TOKEN_OR_SECRET = regex.compile(
    rf"(?<![A-Za-z0-9_\-])(?P<it>{'|'.join(SECRETS['tokens'].values())})(?![A-Za-z0-9])|"
    r"(?i:api_?-?key|secret|token|passw(?:or)?d|access_?-?key|credential|auth)(?i:[a-z_\-]{0,20}+)"
    r"""["']?[ \t]{0,4}+(?:=>|:=|=|:)[ \t]{0,4}+["']?(?P<assigned>[A-Za-z0-9_\-+/=]{16,200}+)"""
)
LEAST_ENTROPY = 3.0
"""Bits a character of what is assigned to a secret; 32 random ones of base64 have 4.5, of hex 3.6."""
CARD = regex.compile("|".join(SECRETS["cards"].values()))
CARD_GROUPS = regex.compile(r"\d{13,19}|\d{4}([ \-])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{3})?|\d{4}([ \-])\d{6}\2\d{4,5}")
BEFORE_VERSION = regex.compile(r"(?i)(?:\bv|\bver|version|release|firmware|build|section|chapter|§|\bno)[.:]?\s?$")
BEFORE_PHONE = regex.compile(r"(?i)(?:phone|mobile|\b(?:tel|cell|fax|call|text|whatsapp|ph|sms))\b[^\n\d]{0,15}$")
BEFORE_OTHER = regex.compile(r"(?i)(?:is[bs]n|invoice|tracking|serial|number|#|\b(?:doi|order|ref|id|no))\W{0,3}$")
CONTEXT = 30
"""Characters before a number that say what it is."""
PHONE_DIGITS = range(7, 16)  # E.164: at most 15
LONGEST_RUN = 32
"""Digits that stand together in one or two numbers; more are a table."""


def _secrets(text: str, settings: Personal) -> Spans:
    for match in TOKEN_OR_SECRET.finditer(text):
        value = match["assigned"]
        if value is None:
            yield match.span("it")
        elif any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and not value.startswith("/"):
            counts = np.array(list(Counter(value).values())) / len(value)
            if -(counts * np.log2(counts)).sum() >= LEAST_ENTROPY:
                yield match.span("assigned")


def _accounts(text: str, settings: Personal) -> Spans:
    for match in IBAN.finditer(text):
        ends = [i + 1 for i in range(*match.span()) if text[i].isalnum()]
        length = SECRETS["iban_lengths"].get(match[0][:2], len(ends) + 1)
        if length <= len(ends) and not text[ends[length - 1] :][:1].isalnum():
            end = ends[length - 1]
            number = "".join(filter(str.isalnum, text[match.start() : end]))
            if int("".join(str(int(sign, 36)) for sign in number[4:] + number[:4])) % 97 == 1:
                yield match.start(), end


def passes_luhn(digits: str) -> bool:
    """
    >>> passes_luhn("4111111111111111"), passes_luhn("4111111111111112")
    (True, False)
    """
    doubled = [int(digit) * (1 + i % 2) for i, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


def _cards(text: str, settings: Personal) -> Spans:
    for start, end in _runs(text):
        if CARD_GROUPS.fullmatch(text, start, end):
            digits = "".join(filter(str.isdigit, text[start:end]))
            if CARD.fullmatch(digits) and passes_luhn(digits) and len(set(digits)) > 1:
                yield start, end


def _runs(text: str) -> Spans:
    """Digits that stand together, and nothing that belongs to a word or a fraction."""
    for match in NUMBER.finditer(text):
        start, end = match.span()
        start += match[0].startswith("(") and match[0].count("(") > match[0].count(")")
        if 7 <= end - start <= 2 * LONGEST_RUN and not AFTER_NUMBER.match(text, end):
            yield start, end


def _addresses(text: str, settings: Personal) -> Spans:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(match[0])
                before = text[max(0, match.start() - CONTEXT) : match.start()]
                if (address.is_global or settings.private_addresses) and not BEFORE_VERSION.search(before):
                    yield match.span()


def _phones(text: str, settings: Personal) -> Spans:
    for start, end in _runs(text):
        before = text[max(0, start - CONTEXT) : start]
        is_named = bool(BEFORE_PHONE.search(before))
        if not is_named and BEFORE_OTHER.search(before):
            continue
        groups = [match.span() for match in regex.finditer(r"[+(]{0,2}\d+", text, pos=start, endpos=end)]
        first = 0
        while first < len(groups):
            for last in range(min(len(groups), first + 7), first, -1):
                if _is_phone(text[groups[first][0] : groups[last - 1][1]], settings.regions, is_named):
                    yield groups[first][0], groups[last - 1][1]
                    first = last - 1
                    break
            first += 1


def _is_phone(number: str, regions: tuple[str, ...], is_named: bool) -> bool:
    """Whether it is in use as a phone number: of any country if it begins with +, else of these regions, and then
    grouped as it is there, or called a phone number."""
    import phonenumbers

    groups = regex.findall(r"\d+", number)
    if sum(map(len, groups)) not in PHONE_DIGITS:
        return False
    for region in [None] if number.lstrip("(").startswith("+") else regions:
        with contextlib.suppress(phonenumbers.NumberParseException):
            parsed = phonenumbers.parse(number, region)
            if region is None or is_named:
                if phonenumbers.is_valid_number(parsed):
                    return True
                continue
            national = regex.findall(
                r"\d+", phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL)
            )
            as_there = len(groups) > 1 and groups in (national, [str(parsed.country_code), *national])
            if as_there and phonenumbers.is_valid_number_for_region(parsed, region):
                return True
    return False


FINDERS: dict[PersonalKind, tuple[int, Callable[[str, Personal], Spans]]] = {
    "private_key": (TOKEN, lambda text, settings: (match.span() for match in PRIVATE_KEY.finditer(text))),
    "api_key": (TOKEN, _secrets),
    "email": (AT, lambda text, settings: (match.span() for match in EMAIL.finditer(text))),
    "iban": (ACCOUNT, _accounts),
    "card": (DIGITS, _cards),
    "ssn": (DIGITS, lambda text, settings: (match.span("it") for match in SSN.finditer(text))),
    "ip": (DOTS | COLONS, _addresses),
    "phone": (DIGITS, _phones),
}
"""Kind → what a text must hold of `hints_of`, one of them, and what finds it; first what others could be found in."""


def find(text: str, settings: Personal) -> list[tuple[int, int, PersonalKind]]:
    """What a text holds of the kinds that are asked for: start, end, kind, in order, none within another.

    >>> [kind for _, _, kind in find("ada@example.org, 4111 1111 1111 1111, 8.8.8.8; v1.2.3.4", Personal())]
    ['email', 'card', 'ip']
    """
    hints = hints_of(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))
    found: list[tuple[int, int, PersonalKind]] = []
    for kind, (needed, finder) in FINDERS.items():
        if hints & needed and (kind in settings.redact or kind in settings.drop):
            spans = _apart(finder(text, settings))
            text = _replaced(text, [(start, end, "\0" * (end - start)) for start, end in spans])
            found += [(start, end, kind) for start, end in spans]
    return sorted(found)


def _apart(spans: Spans) -> list[tuple[int, int]]:
    """In order, without those that begin within another."""
    kept = list[tuple[int, int]]()
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _replaced(text: str, parts: list[tuple[int, int, str]]) -> str:
    pieces, done = [], 0
    for start, end, instead in parts:
        pieces += [text[done:start], instead]
        done = end
    return "".join([*pieces, text[done:]]) if parts else text


def masked(secret: str) -> str:
    """Its shape, of which nothing can be learned but that.

    >>> masked("Ada.L@example.org"), masked("+44 20 7946 0018")
    ('Xxx.X@xxxxxxx.xxx', '+00 00 0000 0000')
    """
    signs = ("X" if sign.isupper() else "x" if sign.isalpha() else "0" if sign.isnumeric() else sign for sign in secret)
    return "".join(islice(signs, 40)) + "…" * (len(secret) > 40)


def personal(document: Document, settings: Personal) -> Document | Drop:
    """The document without the personal data in it, or why it should go."""
    found = find(document.text, settings)
    if not found:
        return document
    counts = Counter(kind for _, _, kind in found)
    for kind in settings.drop:
        if counts[kind]:
            return Drop(f"personal.{kind}", f"holds personal data: {kind}", counts[kind], 0)
    examples = {kind: masked(document.text[start:end]) for start, end, kind in reversed(found)}
    notes = [Note(f"personal.{kind}", number, examples[kind]) for kind, number in counts.items()]
    parts = [(start, end, settings.placeholder.replace("{kind}", kind)) for start, end, kind in found]
    return replace(document, text=_replaced(document.text, parts), notes=(*document.notes, *notes))
