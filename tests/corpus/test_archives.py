"""Archives: exactly what they hold comes out; what is damaged, cut short, too large or refused is told."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from groundup.corpus import archives
from groundup.corpus.archives import read_warc
from groundup.corpus.document import Document
from groundup.corpus.formats import http_body, http_parts
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find, read
from groundup.errors import DataError
from groundup.files import reading, zstd

WARCS = Path(__file__).parents[2] / "../shared/data/messy/warc"
needs_warcs = pytest.mark.skipif(not WARCS.is_dir(), reason="the crawls of ../shared are not here")
TALE = "The old fox went over the hill to the mill, and did not come back before the winter was over. "


def from_file(file: Path, **more: object) -> list[Document]:
    chosen = CorpusSettings.from_table({"sources": [file.name], **more})
    [(name, path)] = find(chosen, file.parent).files
    return list(read(name, path, chosen))


def some_files() -> dict[str, bytes]:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep.txt", "deep")
        archive.writestr("deeper.zip", zipped({"no.zip": zipped({"x.txt": b"x"})}))
    return {
        "a.txt": b"one",
        "b/c.jsonl": b'{"text": "two"}\n{"text": "three"}',
        "b/d.md.gz": gzip.compress(b"four"),
        "e.png": b"\x89PNG",
        "f.zip": inner.getvalue(),
        ".g.txt": b"hidden",
    }


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return stream.getvalue()


PACK = {
    "a.zip": zipped,
    "a.tar": tarred,
    "a.tar.gz": lambda files: gzip.compress(tarred(files)),
    "a.TAR.ZST": lambda files: zstd.compress(tarred(files)),
    "a.tar.xz": lambda files: lzma.compress(tarred(files)),
    "a.tar.bz2": lambda files: bz2.compress(tarred(files)),
}


@pytest.mark.parametrize("name", PACK)
def test_the_files_of_an_archive_are_read_by_their_own_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PACK[name](some_files()))
    assert [(each.source.removeprefix(name), each.reason or each.text) for each in from_file(tmp_path / name)] == [
        ("!a.txt", "one"),
        ("!b/c.jsonl:1", "two"),
        ("!b/c.jsonl:2", "three"),
        ("!b/d.md.gz", "four"),
        ("!e.png", "not read: .png"),
        ("!f.zip!deep.txt", "deep"),
        ("!f.zip!deeper.zip", "refused: an archive in more than 1 other"),
        ("!.g.txt", "not read: hidden, its name begins with a dot"),
    ]


def test_members_that_lead_out_of_an_archive_are_refused(tmp_path: Path) -> None:
    files = {"../../etc/x.txt": b"x", "/etc/y.txt": b"y", "C:\\z.txt": b"z", "good.txt": b"good"}
    for name, content in (("a.zip", zipped(files)), ("a.tar", tarred(files, links=("link.txt",)))):
        (tmp_path / name).write_bytes(content)
        found = Counter(each.reason or each.text for each in from_file(tmp_path / name))
        assert found["refused: its path leads out of the archive"] == 3
        assert found["good"] == 1
    assert found["refused: a link"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip"]  # nothing was unpacked


@pytest.mark.parametrize("cut", [100, 600, 3000])
def test_an_archive_cut_short_says_so(tmp_path: Path, cut: int) -> None:
    files = {f"{number}.txt": TALE.encode() * 30 for number in range(3)}
    whole = tarred(files).rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(whole[:-cut])
    assert (from_file(tmp_path / "a.tar")[-1].reason or "").startswith("incomplete: ")
    (tmp_path / "a.zip").write_bytes(zipped(files)[:-cut])
    assert [each.reason for each in from_file(tmp_path / "a.zip")] == ["incomplete: File is not a zip file"]
    (tmp_path / "b.tar").write_bytes(tarred({"a.txt": b"a", "b.txt": b"b"})[:1024])  # between two members
    assert [each.reason for each in from_file(tmp_path / "b.tar")] == [
        None,
        "incomplete: it ends without the mark of its end",
    ]


def test_a_damaged_member_is_dropped_alone(tmp_path: Path) -> None:
    files = {"a.txt": TALE.encode() * 50, "b.txt": b"good", "c.txt.gz": gzip.compress(TALE.encode() * 50)[:-9]}
    raw = bytearray(zipped(files))
    raw[60] ^= 255
    (tmp_path / "a.zip").write_bytes(raw)
    bad, good, cut = from_file(tmp_path / "a.zip")
    assert (bad.reason or "").startswith("incomplete: ") and good.text == "good"
    assert (cut.reason or "").startswith("incomplete: Compressed file ended")


@pytest.mark.parametrize(
    "name", ["a.txt.gz", "a.txt.zst", "a.txt.bz2", "a.txt.xz", "a.jsonl.gz", "a.zip", "a.tar.gz", "b.zip"]
)
def test_a_bomb_is_refused_after_a_bounded_number_of_bytes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "HARMLESS_BYTES", 100_000)
    same = b"a" * 12_000_000
    pack = {"gz": gzip.compress, "zst": zstd.compress, "bz2": bz2.compress, "xz": lzma.compress}
    if (name.startswith("a.t") and "tar" not in name) or name == "a.jsonl.gz":
        content = pack[name.rsplit(".", 1)[1]](same)
    elif name == "b.zip":
        content = zipped({"x.txt.xz": lzma.compress(same)})
    else:
        content = PACK[name]({"x.txt": same})
    (tmp_path / name).write_bytes(content)
    [bad] = from_file(tmp_path / name)
    assert (bad.reason or "").startswith("refused: more than ")
    assert "as of a bomb" in (bad.reason or "")


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz", "bz2"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_compressed_file_cut_short_is_an_error_not_a_short_file(tmp_path: Path, suffix: str, kept: float) -> None:
    pack = {"gz": gzip.compress, "zst": zstd.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    raw = pack("".join(f"{number} {TALE}\n" for number in range(5000)).encode())
    (tmp_path / f"a.txt.{suffix}").write_bytes(raw[: int(len(raw) * kept)])
    with pytest.raises(DataError, match="damaged or cut short"):
        from_file(tmp_path / f"a.txt.{suffix}")


# Crawls


def warc_of(*bodies: bytes, lie: dict[int, int] | None = None) -> bytes:
    """Records as the standard writes them; `lie`: number of one → the length that it claims."""
    raw = b""
    for number, body in enumerate(bodies):
        length = (lie or {}).get(number, len(body))
        head = f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/{number}\r\n"
        raw += (
            head.encode()
            + f"Content-Type: application/http\r\nContent-Length: {length}\r\n\r\n".encode()
            + body
            + b"\r\n\r\n"
        )
    return raw


def answer(text: str, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/plain", *headers]
    return "\r\n".join([*lines, "", text]).encode()


@needs_warcs
@pytest.mark.parametrize(
    "name",
    [
        "resiliparse-warcfile.warc.gz",
        "resiliparse-clueweb-quirk.warc.gz",
        "warcio-example.warc.gz",
        "warcio-post-test.warc.gz",
        "warcio-example-iana.org-chunked.warc",
        "warcio-example.arc.gz",
    ],
)
def test_the_records_of_a_crawl_are_those_that_warcio_finds(name: str) -> None:
    """Their types and addresses, and the bytes of every answer's body, chunks and compression taken away."""
    warcio = pytest.importorskip("warcio.archiveiterator")
    expected = []
    with open(WARCS / name, "rb") as stream:
        for record in warcio.ArchiveIterator(stream, arc2warc=True):
            body = record.content_stream().read()
            address = record.rec_headers.get_header("WARC-Target-URI")
            expected.append(
                (record.rec_type, address and address.strip("<>"), body if record.rec_type == "response" else None)
            )
    found = []
    with reading(WARCS / name) as stream:
        for member in read_warc(stream):
            assert member.content is not None, member.reason
            _, headers, raw = http_parts(member.content.read())
            body, why = http_body(headers, raw)
            kind = member.headers["warc-type"]
            assert kind != "response" or why is None
            address = member.headers.get("warc-target-uri")
            found.append((kind, address and address.strip("<>"), body if kind == "response" else None))
    if name.endswith(".arc.gz"):
        expected[0] = (expected[0][0], found[0][1], None)  # whose address warcio replaces
    assert found == expected


@needs_warcs
def test_a_crawl_in_one_stream_of_gzip_is_read_and_one_cut_short_is_told() -> None:
    [page] = from_file(WARCS / "warcio-example-bad-non-chunked.warc.gz")
    assert page.text.startswith("Example Domain")
    assert json.loads(page.metadata)["url"] == "http://example.com/"
    [cut] = from_file(WARCS / "resiliparse-clipped.warc.gz")
    assert (cut.reason or "").startswith("incomplete: Compressed file ended before")
    [wrong] = from_file(WARCS / "warcio-example-trunc.warc")
    assert (wrong.reason or "").startswith("incomplete: no record ends after the 973 bytes that its header says")


def test_a_crawl_cut_anywhere_gives_its_whole_records_and_says_that_it_is_cut(tmp_path: Path) -> None:
    whole = warc_of(*(answer(f"{number} {TALE}") for number in range(20)))
    one = len(warc_of(answer(f"1 {TALE}")))
    for cut in (len(whole) // 2, len(whole) - 1, len(whole) - 5, one * 3 + 20):
        (tmp_path / "a.warc").write_bytes(whole[:cut])
        *pages, last = from_file(tmp_path / "a.warc")
        assert [page.text for page in pages] == [f"{number} {TALE}" for number in range(len(pages))]
        assert len(pages) >= cut // one - 2
        assert (last.reason or "").startswith("incomplete: ")


@pytest.mark.parametrize("claimed", [3, 10**6, 999_999_999_999, -5])
def test_a_record_with_a_wrong_length_is_dropped_alone(tmp_path: Path, claimed: int) -> None:
    raw = warc_of(*(answer(f"{number} {TALE}") for number in range(5)), lie={2: claimed})
    (tmp_path / "a.warc").write_bytes(raw)
    found = from_file(tmp_path / "a.warc")
    assert [each.text[:1] for each in found if each.reason is None] == ["0", "1", "3", "4"]
    [bad] = [each for each in found if each.reason]
    assert (bad.reason or "").startswith("incomplete: ")
    assert bad.source == f"a.warc@{len(warc_of(answer(f'0 {TALE}'), answer(f'1 {TALE}')))}"


def test_answers_that_are_not_whole_or_no_text_say_so(tmp_path: Path) -> None:
    packed = gzip.compress(b"packed")
    bodies = {
        "incomplete: its server said 500 bytes, and there are 3": answer("cut", "Content-Length: 500"),
        "incomplete: its last chunk is missing": answer("3\r\none\r\n", "Transfer-Encoding: chunked"),
        "incomplete: its compression ends early": answer("", "Content-Encoding: gzip") + packed[:-9],
        "not read: HTTP status 404": answer("gone").replace(b"200 OK", b"404 No"),
        "not read: its type is image/png": answer("x").replace(b"text/plain", b"image/png"),
        "onetwo": answer("3\r\none\r\n3;a=b\r\ntwo\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        "packed": answer("", "Content-Encoding: gzip") + packed,
        "unpacked before": answer("unpacked before", "Content-Encoding: gzip", "Content-Length: 7"),
        "chunked before": answer("chunked before", "Transfer-Encoding: chunked"),
    }
    (tmp_path / "a.warc.gz").write_bytes(b"".join(gzip.compress(warc_of(body)) for body in bodies.values()))
    assert [each.reason or each.text for each in from_file(tmp_path / "a.warc.gz")] == list(bodies)
    cut = warc_of(answer("x")).replace(b"Content-Type", b"WARC-Truncated: length\r\nContent-Type", 1)
    (tmp_path / "b.warc").write_bytes(cut)
    assert from_file(tmp_path / "b.warc")[0].reason == "incomplete: cut off by its crawler (WARC-Truncated: length)"
