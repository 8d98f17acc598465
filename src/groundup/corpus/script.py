"""The script that a text is written in, from the names of its characters."""

import unicodedata
from collections import Counter
from functools import cache

LEAST_KANA = 0.05
"""Share of kana among kana and Han characters above which a text is Japanese, not Chinese."""


def main_script(text: str) -> str:
    """The script of most of its letters; Japanese, where kana stand among the Han characters.

    >>> main_script("Größe: 漢"), main_script("漢字 is 仮名まじり"), main_script("漢字は"), main_script("1, 2")
    ('Latin', 'Japanese', 'Japanese', 'none')
    """
    letters: Counter[str] = Counter()
    for character, number in Counter(text).items():
        if character.isalpha():
            letters[script_of(character)] += number
    kana = letters.pop("Hiragana", 0) + letters.pop("Katakana", 0)
    han = letters.pop("Cjk", 0)
    if kana or han:
        letters["Japanese" if kana > (kana + han) * LEAST_KANA else "Han"] = kana + han
    return letters.most_common(1)[0][0] if letters else "none"


@cache
def script_of(character: str) -> str:
    """The first word of the character's name, such as Latin or Hiragana: near enough for a report.

    >>> script_of("a"), script_of("ş"), script_of("か"), script_of("語")
    ('Latin', 'Latin', 'Hiragana', 'Cjk')
    """
    return unicodedata.name(character, "unnamed").split()[0].split("-")[0].capitalize()
