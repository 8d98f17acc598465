"""How much of the personal data in a text is found, how much of what is found is some, and how fast?

    python bench/corpus_safety.py [c4.jsonl.xz classics.jsonl.xz …]

Plants made-up data of many shapes in sentences, beside what only looks like it (versions, dates, ISBNs, hashes, DOIs,
order numbers, sums), each as often. A case is found when a span of its kind lies in it; every other span is wrong. The
files that are named are searched as well, and what is found is shown, to be judged by eye; then all documents of them
go through the filters, one by one.
"""

import random
import statistics
import string
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from groundup.corpus.document import Document, Drop
from groundup.corpus.filters import looks
from groundup.corpus.personal import find
from groundup.corpus.settings import CorpusSettings, Personal, PersonalKind, Toxicity, Words
from groundup.corpus.sources import find as find_files
from groundup.corpus.sources import read

CASES = 400  # of each kind, and of each look-alike
rng = random.Random(18)
DIGITS, UPPER, BASE62 = string.digits, string.ascii_uppercase, string.ascii_letters + string.digits
HEX, URL_SAFE = "0123456789abcdef", BASE62 + "-_"


def some(signs: str, n: int) -> str:
    return "".join(rng.choices(signs, k=n))


def filled(pattern: str) -> str:
    """Each N a digit from 2 to 9, each # any digit."""
    return "".join(
        rng.choice("23456789") if sign == "N" else rng.choice(DIGITS) if sign == "#" else sign for sign in pattern
    )


def email() -> str:
    name = rng.choice(
        ["ada", "j.doe", "mary_ann", "info", "x", "first.last+tag", "o'neil", "müller", "1984", "sales-team"]
    )
    host = rng.choice(
        ["example.org", "mail.example.co.uk", "a-b.io", "example.museum", "uni-köln.de", "EXAMPLE.COM", "x.ai"]
    )
    return f"{name}@{host}"


def phone() -> str:
    """Of places whose area codes are in use; with + also of other countries than the filter's."""
    area, last = rng.choice(["212", "415", "617", "310", "206", "312"]), filled("N##-####")
    a, b = last.split("-")
    return rng.choice(
        [
            f"({area}) {a}-{b}",
            f"{area}-{a}-{b}",
            f"{area}.{a}.{b}",
            f"+1 {area} {a} {b}",
            f"+1-{area}-{a}-{b}",
            f"1-{area}-{a}-{b}",
            f"tel: {area}{a}{b}",
            f"{area} {a} {b}",
            f"+44 20 7{filled('###')} {filled('####')}",
            f"+49 30 {filled('N#######')}",
            f"+33 1 4{filled('#')} {filled('## ## ##')}",
            f"+81 3-{filled('3###-####')}",
            f"+91 98{filled('#########')[:8]}",
            f"+44 (0)20 7{filled('###')} {filled('####')}",
            f"+1{area}{a}{b}",
        ]
    )


def ip() -> str:
    four = ".".join(
        str(rng.choice([8, 52, 93, 104, 151, 185, 203, 216]) if i == 0 else rng.randrange(1, 255)) for i in range(4)
    )
    four = four.replace("203.0.113", "203.9.113")
    six = "2a0" + rng.choice("0123") + ":" + ":".join(some(HEX, 4) for _ in range(7))
    return rng.choice([four, four, six, f"2606:{some(HEX, 4)}::{some(HEX, 3)}", f"2a00:1450:4001:{some(HEX, 3)}::200e"])


def luhn(body: str) -> str:
    total = sum(sum(divmod(int(digit) * 2, 10)) if i % 2 == 0 else int(digit) for i, digit in enumerate(reversed(body)))
    return body + str(-total % 10)


def card() -> str:
    first, length = rng.choice(
        [("4", 16), ("51", 16), ("2221", 16), ("6011", 16), ("3528", 16), ("62", 16), ("37", 15), ("36", 14)]
    )
    number = luhn(first + some(DIGITS, length - 1 - len(first)))
    between = rng.choice(["", " ", "-"])
    if length == 16:
        return between.join(number[i : i + 4] for i in range(0, 16, 4))
    return between.join([number[:4], number[4:10], number[10:]])


def iban() -> str:
    country, body = rng.choice(
        [
            ("DE", some(DIGITS, 18)),
            ("GB", some(UPPER, 4) + some(DIGITS, 14)),
            ("FR", some(DIGITS, 23)),
            ("NO", some(DIGITS, 11)),
            ("NL", some(UPPER, 4) + some(DIGITS, 10)),
            ("MT", some(UPPER, 4) + some(DIGITS, 5) + some(UPPER + DIGITS, 18)),
        ]
    )
    number = "".join(str(int(sign, 36)) for sign in f"{body}{country}00")
    whole = f"{country}{98 - int(number) % 97:02}{body}"
    return rng.choice([whole, " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))])


def ssn() -> str:
    a, b, c = rng.randrange(1, 899), rng.randrange(1, 100), rng.randrange(1, 10_000)
    a += a == 666
    return rng.choice(
        [f"{a:03}-{b:02}-{c:04}", f"{a:03} {b:02} {c:04}", f"SSN: {a:03}{b:02}{c:04}", f"SSN {a:03}-{b:02}-{c:04}"]
    )


def api_key() -> str:
    return rng.choice(
        [
            "AKIA" + some(UPPER + "234567", 16),
            "ghp_" + some(BASE62, 36),
            "github_pat_" + some(BASE62, 22) + "_" + some(BASE62, 59),
            "glpat-" + some(URL_SAFE, 20),
            "sk-proj-" + some(URL_SAFE, 48),
            "sk-" + some(BASE62, 48),
            "sk_live_" + some(BASE62, 24),
            "AIza" + some(URL_SAFE, 35),
            f"xoxb-{some(DIGITS, 12)}-{some(DIGITS, 12)}-{some(BASE62, 24)}",
            "hf_" + some(BASE62, 34),
            "npm_" + some(BASE62, 36),
            f"SG.{some(URL_SAFE, 22)}.{some(URL_SAFE, 43)}",
            "AC" + some(HEX, 32),
            f"{some(DIGITS, 10)}:AA{some(URL_SAFE, 33)}",
            f"eyJ{some(URL_SAFE, 33)}.eyJ{some(URL_SAFE, 80)}.{some(URL_SAFE, 43)}",
            f"API_KEY = '{some(BASE62, 32)}'",
            f'"secret": "{some(HEX, 40)}"',
            f"password={some(BASE62, 20)}",
            f"aws_secret_access_key = {some(BASE62 + '+/', 40)}",
            f"export AUTH_TOKEN={some(HEX, 32)}",
        ]
    )


def private_key() -> str:
    kind = rng.choice(
        ["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"]
    )
    lines = "\n".join(some(BASE62 + "+/", 64) for _ in range(rng.randrange(3, 25)))
    head = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B\n\n" if rng.random() < 0.2 else ""
    return f"-----BEGIN {kind}-----\n{head}{lines}" + (f"\n-----END {kind}-----" if rng.random() < 0.9 else "")


PLANTED: dict[PersonalKind, Callable[[], str]] = {
    "email": email,
    "phone": phone,
    "ip": ip,
    "card": card,
    "iban": iban,
    "ssn": ssn,
    "api_key": api_key,
    "private_key": private_key,
}
LIKE_IT: dict[str, Callable[[], str]] = {
    "version": lambda: rng.choice(["version ", "v", "Version: ", "release "]) + filled("#.##.#.###"),
    "dotted number": lambda: filled("section N.#.N.#"),
    "date and time": lambda: filled("20##-0N-1# 1#:3#:4#"),
    "years": lambda: filled("18##-19##, 17## - 18##"),
    "ISBN": lambda: rng.choice(["ISBN ", "ISBN-13: ", ""]) + filled("978-0-###-#####-#"),
    "DOI": lambda: filled("doi:10.####/s#####-0##-####-#"),
    "SHA-1": lambda: "commit " + some(HEX, 40),
    "MD5": lambda: "md5: " + some(HEX, 32),
    "UUID": lambda: "-".join(some(HEX, n) for n in (8, 4, 4, 4, 12)),
    "order number": lambda: (
        rng.choice(["order ", "Order #", "invoice no. ", "tracking "])
        + filled(rng.choice(["###-#######-#######", "##########", "1Z##########"]))
    ),
    "16 digits": lambda: filled("N###############"),
    "9 digits": lambda: filled("#########"),
    "10 digits": lambda: filled("##########"),
    "zip": lambda: filled("New York, NY 100##-####"),
    "sum": lambda: filled("$N,###,###,###.##"),
    "decimal": lambda: filled("3.##############"),
    "coordinates": lambda: filled("4#.######, -7#.######"),
    "statistics": lambda: filled("N## ### ## #### # ###"),
    "scores": lambda: filled("21-1#, 2#-18, 1#-21"),
    "MAC address": lambda: ":".join(some(HEX, 2) for _ in range(6)),
    "C++": lambda: rng.choice(["std::vector<int>::iterator", "a::b::c", "dead::beef", "abc::def"]),
    "mention": lambda: rng.choice(["@ada_lovelace", "me @ home", "3 apples @ 1.50", "user@localhost"]),
    "private address": lambda: filled(rng.choice(["192.168.#.1#", "10.#.#.1#", "127.0.0.1", "fe80::1"])),
    "identifier": lambda: rng.choice(
        ["get_user_token_from_request", "task-management-system-v2", "MAX_TOKEN_LENGTH_16384"]
    ),
    "placeholder": lambda: rng.choice(
        ["api_key = your_api_key_here", "password: ************", "token=<your-token-goes-here>"]
    ),
    "part of a URL": lambda: "https://example.org/a/" + some(BASE62, 22),
    "equation": lambda: filled("###-##=##, ###+###=####"),
    "ratio": lambda: filled("(## / ###) (1#-2#) 0.0##"),
}
OTHERS: dict[PersonalKind, Callable[[], str]] = {
    "email": lambda: rng.choice(
        ["mailto:" + email(), f"<{email()}>", email() + ";" + email(), email().replace("example", "e-x1")]
    ),
    "phone": lambda: filled(
        rng.choice(
            [
                "415/NN#-####",
                "Tel.(415)NN#-####",
                "+1.415.NN#.####",
                "+1 (415) NN#-####",
                "415\u2011NN#\u2011####",
                "ph 415 NN#####",
                "0044 20 7946 ####",
                "+61 2 9#N# ####",
                "+55 11 9####-####",
                "+86 138 #### ####",
                "415-NN#-#### x12",
                "415-NN#-####/##",
            ]
        )
    ),
    "ip": lambda: rng.choice(["http://{}/a", "{}:8080", "[{}]", "from={};", "{}/24", "ip-{}"]).format(ip()),
    "card": lambda: rng.choice(["card no. {}", "{} exp 09/27", "PAN={}", "{}, CVV 123", "VISA:{}"]).format(card()),
    "iban": lambda: rng.choice(
        [iban().lower(), iban().replace(" ", "-"), "IBAN:" + iban(), iban() + ".", iban() + " BIC ABCDEFGH"]
    ),
    "ssn": lambda: filled(
        rng.choice(["ssn=1##-4#-1###", "Social Security number: 2##3#4###", "SSN#:5##-2#-3###", "SS# 4##-1#-5###"])
    ),
    "api_key": lambda: rng.choice(
        [
            "?api_key={}&a=b",
            "Authorization: Bearer {}",
            "x-api-key: {}",
            "client_secret: {}",
            'token="{}",',
            "{}@github.com",
            "PASSWD {}",
        ]
    ).format(rng.choice([some(BASE62, 32), "ghp_" + some(BASE62, 36), some(HEX, 32)])),
    "private_key": lambda: rng.choice(
        [private_key().replace("\n", "\\n"), private_key().replace("\n", "\r\n"), private_key().replace("\n", "\n  ")]
    ),
}
"""Shapes that were written down when the filter was done, and changed nothing in it."""
AROUND = [
    "Please note {} today.",
    "({})",
    "see {}, or not",
    "It was:\n{}\nand then",
    "{}",
    '"{}" is what it says.',
    "one {}; two",
]


def recall_of_others() -> None:
    print("| kind | recall, other shapes |\n|---|---|")
    for kind, make in OTHERS.items():
        lost, cases = Counter[str](), [make() for _ in range(CASES)]
        lost.update(
            case[:24]
            for case in cases
            if kind not in {what for _, _, what in find(f"It says {case} there", Personal())}
        )
        print(f"| {kind} | {1 - lost.total() / CASES:.4f} |")
        print(" ", list(lost)[:6])


def planted() -> None:
    asked, found, right, wrong = Personal(), Counter[str](), Counter[str](), Counter[str]()
    lost: dict[str, str] = {}
    for kind, make in PLANTED.items():
        for _ in range(CASES):
            secret, around = make(), rng.choice(AROUND)
            text = around.format(secret)
            begin = around.index("{}")
            hit = False
            for start, end, what in find(text, asked):
                found[what] += 1
                within = begin <= start and end <= begin + len(secret)
                if what == kind and within:
                    hit = True
                else:
                    wrong[f"{what} in {kind}"] += 1
                right[what] += what == kind and within
            found[f"recall {kind}"] += hit
            if not hit:
                lost.setdefault(kind, secret[:60])
    for name, make in LIKE_IT.items():
        for _ in range(CASES):
            text = rng.choice(AROUND).format(make())
            for start, end, what in find(text, asked):
                found[what] += 1
                wrong[
                    f"{what} in {name}: {text[start:end]}" if wrong[f"{what} in {name}"] < 1 else f"{what} in {name}"
                ] += 1
    print(
        f"{CASES} cases of each kind, {CASES} of each of {len(LIKE_IT)} look-alikes\n\n"
        "| kind | precision | recall |\n|---|---|---|"
    )
    for kind in PLANTED:
        print(f"| {kind} | {right[kind] / max(1, found[kind]):.4f} | {found[f'recall {kind}'] / CASES:.4f} |")
    print("\nwrong:", *(f"\n  {number} x {what!r}" for what, number in wrong.most_common(25)))
    print("lost:", lost)


def searched(path: str) -> None:
    settings = CorpusSettings(sources=(path,), max_document_bytes=20_000)
    texts = [each.text for name, file in find_files(settings, Path()).files for each in read(name, file, settings)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    found = [(kind, text[max(0, a - 30) : b + 15]) for text in texts for a, b, kind in find(text, Personal())]
    print(f"\n{path}: {len(texts):,} documents, {size:.1f} MB; found {dict(Counter(kind for kind, _ in found))}")
    for kind, shown in rng.sample(found, min(25, len(found))):
        print(f"  {kind}: {shown!r}")
    filters = {
        "words": Words(),
        "words, 4 and 0.5 %": Words(count=3, share=0.005),
        "toxicity": Toxicity(),
        "personal": Personal(),
    }
    for name, each in filters.items():
        [look] = looks([each], Path())
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            looked = [look(Document(text, "")) for text in texts]
            rates.append(size / (time.perf_counter() - began))
        dropped = Counter(judged.reason for judged in looked if isinstance(judged, Drop))
        print(f"{name}: {statistics.median(rates):.0f} MB/s; drops {dropped.total()}: {dropped.most_common(12)}")


if __name__ == "__main__":
    planted()
    recall_of_others()
    for each in sys.argv[1:]:
        searched(each)
