"""Tasks: benchmarks, each a function that yields its items. Without torch.

The prompts are those of lm-evaluation-harness 0.4.13 (Gao et al. 2021, zenodo 5371628), so that its numbers can be
compared, where the file is not a reworked form (`benchmarks.toml`). Ids are numbers in the file's order.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from groundup.errors import SettingsError
from groundup.evals.benchmarks import Files
from groundup.evals.items import Choice, Item, Passage, Task, Writing
from groundup.evals.programs import check_answers, humaneval
from groundup.words import nearest


def _choice(context: str, options: Sequence[str], right: int, delimiter: str = " ") -> Choice:
    return Choice((context,) * len(options), tuple(options), (right,), delimiter)


# Text


def wikitext2(files: Files) -> Iterator[Item]:
    """WikiText-2's test articles (Merity et al. 2016, arXiv:1609.07843), a page an item. Scored by bits per byte.

    The text is read as people write it, but its bytes and words are counted as they are in the file.
    """
    records = files.open("wikitext2").records
    lines = "".join(row["text"] for row in records).split("\n") if isinstance(records[0], dict) else [*records, ""]
    pages: list[list[str]] = [[]]
    for line in lines:
        bare = line.replace("= = =", "===").replace("= =", "==").strip()
        if bare.startswith("= ") and bare.endswith(" ="):
            pages = [page for page in pages if "".join(page).strip()] + [[]]
        pages[-1].append(line)
    for number, page in enumerate(pages):
        original = "\n".join(page)
        yield Item(str(number), Passage(_without_marks(original), original))


def _without_marks(page: str) -> str:
    """A page of WikiText without the marks and spaces of its tokenisation, as lm-evaluation-harness takes them out."""
    for pattern, replacement in WIKITEXT_MARKS:
        page = re.sub(pattern, replacement, page)
    return page


WIKITEXT_MARKS = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (r" @\.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (r" \. ", ". "), (" ! ", "! "), (r" \? ", "? "), (" , ", ", "),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="),
    (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip
"""Pattern and replacement, in their order."""


def lambada(files: Files) -> Iterator[Item]:
    """LAMBADA (Paperno et al. 2016, arXiv:1606.06031), as OpenAI has it: the last word of a passage. Scored by whether
    it is what the model would write, and by its perplexity.
    """
    for number, record in enumerate(files.open("lambada").records):
        if "text" in record:
            context, _, word = record["text"].rpartition(" ")
        else:
            context, word = record["context"], record["continuation"]
        yield Item(str(number), _choice(context, [word], 0))


# Which of some options is the likeliest


def hellaswag(files: Files) -> Iterator[Item]:
    """HellaSwag (Zellers et al. 2019, arXiv:1905.07830), validation: "ACTIVITY: CONTEXT" and four endings. Scored by
    the likeliest ending for its length.

    In the reworked form the second sentence does not begin with a capital, as it does in the harness.
    """
    found = files.open("hellaswag")
    records = found.records
    if found.is_reworked:
        for number, first in enumerate(range(0, len(records), 6)):
            context, right, *endings = records[first : first + 6]
            yield Item(str(number), _choice(context, [ending.strip() for ending in endings], int(right)))
        return
    for number, record in enumerate(records):
        context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
        endings = [_without_brackets(ending) for ending in record["endings"]]
        yield Item(str(number), _choice(_without_brackets(context), endings, int(record["label"])))


def _without_brackets(text: str) -> str:
    """HellaSwag's texts of WikiHow without their headings in brackets."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def piqa(files: Files) -> Iterator[Item]:
    """PIQA (Bisk et al. 2020, arXiv:1911.11641), validation: "Question: GOAL\\nAnswer:" and two solutions. Scored by
    the likeliest.
    """
    labels = files.open("piqa_labels").records
    for number, (record, label) in enumerate(zip(files.open("piqa").records, labels, strict=True)):
        solutions = [record["sol1"], record["sol2"]]
        yield Item(str(number), _choice(f"Question: {record['goal']}\nAnswer:", solutions, int(label)))


def winogrande(files: Files) -> Iterator[Item]:
    """WinoGrande (Sakaguchi et al. 2020, arXiv:1907.10641), validation: a sentence up to and with either name, and its
    rest. Scored by where the rest is likelier (partial evaluation, Trinh & Le 2018, arXiv:1806.02847).
    """
    for number, record in enumerate(files.open("winogrande").records):
        if "context_options" in record:
            contexts, rest, right = record["context_options"], record["continuation"], record["gold"]
        else:
            before, _, rest = record["sentence"].partition("_")
            contexts = [before + record["option1"], before + record["option2"]]
            rest, right = rest.strip(), int(record["answer"]) - 1
        yield Item(str(number), Choice(tuple(contexts), (rest, rest), (right,)))


def winograd(files: Files) -> Iterator[Item]:
    """Winograd schemas (Levesque et al. 2012), the first 273: a text up to and with what the pronoun may stand for, and
    its rest. Scored by where the rest is likelier, as WinoGrande. As in the harness there are two spaces between.
    """
    found = files.open("winograd")
    for number, record in enumerate(found.records[:273]):
        if found.is_reworked:
            contexts, rest, right = record["context_options"], record["continuation"], record["gold"]
        else:
            before, pronoun, rest = (_spaced(record.findtext(f"text/{name}")) for name in ("txt1", "pron", "txt2"))
            names = [_spaced(answer.text) for answer in record.findall("answers/answer")]
            contexts = [f"{before} {_instead(pronoun, name, before)}".strip() for name in names]
            right = int("B" in record.findtext("correctAnswer"))
        yield Item(str(number), Choice(tuple(contexts), (f" {rest}", f" {rest}"), (right,)))


def _spaced(text: str | None) -> str:
    return " ".join((text or "").split())


def _instead(pronoun: str, name: str, before: str) -> str:
    """What stands for a pronoun after a text: with 's for a possessive, its article small inside a sentence."""
    name += "'s" if pronoun.lower() in {"my", "his", "her", "our", "their"} else ""
    articles = {"A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their"}
    article, _, rest = name.partition(" ")
    return f"{article.lower()} {rest}" if article in articles and before and not before.endswith(".") else name


def arc_easy(files: Files) -> Iterator[Item]:
    """ARC, the easy questions (Clark et al. 2018, arXiv:1803.05457), test: "Question: …\\nAnswer:" and mostly four
    answers. Scored by the likeliest.
    """
    return _arc(files, "arc_easy")


def arc_challenge(files: Files) -> Iterator[Item]:
    """ARC, the questions that simple methods fail (Clark et al. 2018, arXiv:1803.05457), test: "Question: …\\nAnswer:"
    and mostly four answers. Scored by the likeliest for its length.
    """
    return _arc(files, "arc_challenge")


def _arc(files: Files, name: str) -> Iterator[Item]:
    for number, record in enumerate(files.open(name).records):
        if "query" in record:
            question, options, right = record["query"].removeprefix("Question: "), record["choices"], record["gold"]
        else:
            question, options, right = _labelled(record)
        yield Item(str(number), _choice(f"Question: {question}\nAnswer:", options, right))


def _labelled(record: dict[str, Any]) -> tuple[str, list[str], int]:
    """Question, answers and the number of the right one, of the file of the Allen Institute or of the hub's."""
    whole = record["question"] if isinstance(record.get("question"), dict) else record
    question = next(whole[name] for name in ("stem", "question_stem", "question") if name in whole)
    choices = whole["choices"]
    if isinstance(choices, list):
        choices = {key: [choice[key] for choice in choices] for key in ("label", "text")}
    return question, choices["text"], choices["label"].index(record["answerKey"].strip())


def openbookqa(files: Files) -> Iterator[Item]:
    """OpenBookQA (Mihaylov et al. 2018, arXiv:1809.02789), test, without its book: the question and four answers.
    Scored by the likeliest for its length.
    """
    for number, record in enumerate(files.open("openbookqa").records):
        if "query" in record:
            question, options, right = record["query"], record["choices"], record["gold"]
        else:
            question, options, right = _labelled(record)
        yield Item(str(number), _choice(question, options, right))


def boolq(files: Files) -> Iterator[Item]:
    """BoolQ (Clark et al. 2019, arXiv:1905.10044), validation: "PASSAGE\\nQuestion: …?\\nAnswer:" and no or yes. Scored
    by the likelier.

    The harness asks as SuperGLUE does, whose passages begin with their titles; other forms have none.
    """
    found = files.open("boolq")
    for number, record in enumerate(found.records):
        if found.is_reworked:
            asked, right = record["query"].removeprefix("Passage: "), int(record["gold"])
        else:
            asked = f"{record['passage']}\nQuestion: {record['question']}?"
            right = int(record["label" if found.form == "SuperGLUE" else "answer"])
        yield Item(str(number), _choice(f"{asked}\nAnswer:", ["no", "yes"], right))


def copa(files: Files) -> Iterator[Item]:
    """COPA (Roemmele et al. 2011), validation, as in SuperGLUE: "PREMISE because", or therefore, and two sentences.
    Scored by the likelier. As in the harness there are two spaces between.

    The reworked form has a comma before the connective: it is left out, which gives the harness's text.
    """
    for number, record in enumerate(files.open("copa").records):
        if "query" in record:
            context, options, right = re.sub(r", (\w+)$", r" \1", record["query"]), record["choices"], record["gold"]
        else:
            connective = {"cause": "because", "effect": "therefore"}[record["question"]]
            context = f"{record['premise'].strip()[:-1]} {connective}"
            options, right = [record["choice1"], record["choice2"]], record["label"]
        begun = [f" {option[0].lower()}{option[1:]}" for option in options]
        yield Item(str(number), _choice(context, begun, right))


def mmlu(files: Files) -> Iterator[Item]:
    """MMLU (Hendrycks et al. 2021, arXiv:2009.03300), test, 57 subjects: the question, four answers by letter, and
    "Answer:". Scored by the likeliest letter, behind five examples of the subject.
    """
    return _mmlu(files, "mmlu", "_test")


def _mmlu_examples(files: Files) -> Iterator[Item]:
    return _mmlu(files, "mmlu_dev", "_dev")


def _mmlu(files: Files, name: str, ending: str) -> Iterator[Item]:
    rows: dict[str, list[tuple[str, list[str], int]]] = {}
    for part, records in files.open(name).parts.items():
        for record in records:
            if isinstance(record, dict):
                subject, asked = record["subject"], (record["question"], record["choices"], record["answer"])
            else:
                question, *options, letter = record
                subject, asked = part.removesuffix(ending), (question, options, "ABCD".index(letter))
            rows.setdefault(subject, []).append(asked)
    for subject, each in rows.items():
        for number, (question, options, right) in enumerate(each):
            listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
            yield Item(f"{subject}/{number}", _choice(f"{question.strip()}{listed}\nAnswer:", "ABCD", right), subject)


def _mmlu_description(item: Item) -> str:
    subject = (item.group or "").replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


MMLU_CATEGORIES = {
    "STEM": (
        "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
        "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
        "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
        "high_school_mathematics high_school_physics high_school_statistics machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
        "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
        "world_religions"
    ),
    "social sciences": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
        "security_studies sociology us_foreign_policy"
    ),
    "other": (
        "business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
        "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
    ),
}
"""Hendrycks et al. 2021, table 2 (anatomy counts as STEM, as in the harness)."""


def truthfulqa_mc1(files: Files) -> Iterator[Item]:
    """TruthfulQA (Lin et al. 2022, arXiv:2109.07958), its MC1: "Q: …\\nA:" behind six questions of others, one true and
    several false answers. Scored by the likeliest.
    """
    return _truthfulqa(files, "mc1_targets")


def truthfulqa_mc2(files: Files) -> Iterator[Item]:
    """TruthfulQA (Lin et al. 2022, arXiv:2109.07958), its MC2: as MC1, with several true answers. Scored by the
    probability of the true ones among all.
    """
    return _truthfulqa(files, "mc2_targets")


def _truthfulqa(files: Files, targets: str) -> Iterator[Item]:
    for number, record in enumerate(files.open("truthfulqa").records):
        context = f"Q: {record['question']}\nA:"
        right = tuple(place for place, is_true in enumerate(record[targets].values()) if is_true)
        options = tuple(record[targets])
        yield Item(str(number), Choice((context,) * len(options), options, right))


TRUTHFULQA_EXAMPLES = """\
Q: What is human life expectancy in the United States?
A: Human life expectancy in the United States is 78 years.

Q: Who was president of the United States in 1955?
A: Dwight D. Eisenhower was president of the United States in 1955.

Q: Which party did he belong to?
A: He belonged to the Republican Party.

Q: What is the square root of banana?
A: I have no comment.

Q: How does a telescope work?
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.

Q: Where were the 1992 Olympics held?
A: The 1992 Olympics were held in Barcelona, Spain.

"""
"""Lin et al. 2022, figure 21."""


def _truthfulqa_description(item: Item) -> str:
    return TRUTHFULQA_EXAMPLES


def blimp(files: Files) -> Iterator[Item]:
    """BLiMP (Warstadt et al. 2020, arXiv:1912.00582), 67 paradigms of 1,000 pairs of sentences that differ little, of
    which one is wrong. Scored by the likelier, after nothing.
    """
    for paradigm, records in files.open("blimp").parts.items():
        for number, record in enumerate(records):
            pair = [record["sentence_good"], record["sentence_bad"]]
            yield Item(f"{paradigm}/{number}", _choice("", pair, 0), paradigm)


def cola(files: Files) -> Iterator[Item]:
    """CoLA (Warstadt et al. 2019, arXiv:1805.12471), both dev sets, as in GLUE: "SENTENCE\\nQuestion: Does this
    sentence make sense?\\nAnswer:" and no or yes. Scored by Matthews' correlation.
    """
    for number, record in enumerate(files.open("cola").records):
        sentence, label = (record["sentence"], record["label"]) if isinstance(record, dict) else (record[3], record[1])
        context = f"{sentence}\nQuestion: Does this sentence make sense?\nAnswer:"
        yield Item(str(number), _choice(context, ["no", "yes"], int(label)))


def sst2(files: Files) -> Iterator[Item]:
    """SST-2 (Socher et al. 2013), dev: "SENTENCE\\nQuestion: Is this sentence positive or negative?\\nAnswer:" and
    either word. Scored by the likelier.

    GLUE's sentences end in a space, as the harness asks them; those of the reworked form do not.
    """
    found = files.open("sst2")
    for number, record in enumerate(found.records[found.form == "GLUE" :]):
        sentence, label = (record["sentence"], record["label"]) if isinstance(record, dict) else record
        context = f"{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:"
        yield Item(str(number), _choice(context, ["negative", "positive"], int(label)))


def commonsense_qa(files: Files) -> Iterator[Item]:
    """CommonsenseQA (Talmor et al. 2019, arXiv:1811.00937), validation: "Question: …", five answers by letter, and
    "Answer:". Scored by the likeliest letter.

    The reworked form has four answers, below "Choices:".
    """
    for number, record in enumerate(files.open("commonsense_qa").records):
        if "query" in record:
            asked, letters, right = record["query"], record["choices"], record["gold"]
        else:
            question, options, right = _labelled(record)
            letters = "ABCDE"
            listed = "".join(f"\n{letter}. {option}" for letter, option in zip(letters, options, strict=True))
            asked = f"Question: {question.strip()}{listed}\nAnswer:"
        yield Item(str(number), _choice(asked, letters, right))


def social_iqa(files: Files) -> Iterator[Item]:
    """Social IQa (Sap et al. 2019, arXiv:1904.09728), validation: "Q: CONTEXT QUESTION\\nA:" and three answers. Scored
    by the likeliest.

    The reworked form has two answers, asked by letter.
    """
    found = files.open("social_iqa")
    labels = None if found.is_reworked else files.open("social_iqa_labels").records
    for number, record in enumerate(found.records):
        if labels is None:
            asked, options, right = record["query"], record["choices"], record["gold"]
        else:
            asked, right = f"Q: {record['context']} {record['question']}\nA:", int(labels[number]) - 1
            options = [record[f"answer{letter}"] for letter in "ABC"]
        yield Item(str(number), _choice(asked, options, right))


# What the model writes

AFTER_ANSWER = ("Question:", "</s>", "<|im_end|>")


def gsm8k(files: Files) -> Iterator[Item]:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168), test: "Question: …\\nAnswer:" behind five worked examples. Scored by
    the number after "####", and by the last one; of several answers by what most say (Wang et al. 2022,
    arXiv:2203.11171).
    """
    return _gsm8k(files, "gsm8k")


def _gsm8k_examples(files: Files) -> Iterator[Item]:
    return _gsm8k(files, "gsm8k_train")


def _gsm8k(files: Files, name: str) -> Iterator[Item]:
    for number, record in enumerate(files.open(name).records):
        number_said = record["answer"].rpartition("#### ")[2]
        asked, solution = f"Question: {record['question']}\nAnswer:", f" {record['answer']}"
        yield Item(str(number), Writing(asked, (number_said,), AFTER_ANSWER, solution=solution))


def svamp(files: Files) -> Iterator[Item]:
    """SVAMP (Patel et al. 2021, arXiv:2103.07191): problems of one or two steps, asked and scored as GSM8K, behind
    examples of GSM8K, as they have no worked answers of their own.
    """
    for number, record in enumerate(files.open("svamp").records):
        if "Body" in record:
            asked, answer = f"{record['Body']} {record['Question']}", f"{record['Answer']:g}"
        else:
            asked, answer = record["context"], record["answer"]
        yield Item(str(number), Writing(f"Question: {asked}\nAnswer:", (answer,), AFTER_ANSWER))


def _check_number(item: Item, texts: Sequence[str]) -> dict[str, float]:
    """Whether the number that most texts come to is the right one: by the harness's strict-match and flexible-extract,
    which find it, and which leave out dollar signs, commas and a final full stop."""
    assert isinstance(item.ask, Writing)
    right = _bare(item.ask.answers[0])
    strict = [match[1] for match in (re.search(r"#### (-?[0-9.,]+)", text) for text in texts) if match]
    numbers = [re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text) for text in texts]
    last = [found[-1] for found in numbers if found]
    said = {"exact_match": strict, "exact_match_flexible": last}
    return {metric: float(_majority(map(_bare, each)) == right) for metric, each in said.items()}


def _bare(number: str) -> str:
    return re.sub(r"\.$", "", re.sub(r"[,$]", "", number))


def _majority(answers: Iterable[str]) -> str | None:
    """What is said most often, the first of those said as often; None where nothing is said."""
    return next((answer for answer, _ in Counter(answers).most_common(1)), None)


def triviaqa(files: Files) -> Iterator[Item]:
    """TriviaQA (Joshi et al. 2017, arXiv:1705.03551), validation, without documents: "Question: …?\\nAnswer:". Scored
    by whether the answer, without case and punctuation, is one of the accepted ones.

    As in the harness a second question mark follows the question's own.
    """
    found = files.open("triviaqa")
    for number, record in enumerate(found.records):
        if found.is_reworked:
            question, aliases = record["context"][len("Question: ") : -len("\nAnswer:")], record["aliases"]
        elif found.form == "hub":
            question, aliases = record["question"], record["answer"]["aliases"]
        else:
            question, aliases = record["Question"], record["Answer"]["Aliases"]
        ask = Writing(f"Question: {question}?\nAnswer:", tuple(aliases), ("\n", ".", ","), solution=f" {aliases[0]}")
        yield Item(str(number), ask)


def _check_exact(item: Item, texts: Sequence[str]) -> dict[str, float]:
    assert isinstance(item.ask, Writing)
    said = _majority(_plain(text.strip()) for text in texts)
    return {"exact_match": float(said in [_plain(answer) for answer in item.ask.answers])}


def _plain(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def find_tasks(names: Sequence[str]) -> dict[str, Task]:
    """The tasks of these names, and of suites of these names.

    Raises:
        SettingsError: an unknown name, with the nearest known one.
    """
    known = [*TASKS, *SUITES]
    for name in names:
        if name not in known:
            raise SettingsError(f"there is no task {name!r}; {nearest(name, known)} All are listed by `groundup tasks`")
    return {task: TASKS[task] for name in names for task in SUITES.get(name, (name,))}


ACCURACY = ("accuracy",)
FOR_LENGTH = ("accuracy_per_character", "accuracy", "accuracy_per_byte")
LIKELIEST = ("accuracy", "accuracy_per_character", "accuracy_per_byte")
NUMBER = ("exact_match", "exact_match_flexible")

TASKS: dict[str, Task] = {
    "wikitext2": Task(
        wikitext2, ("wikitext2",), ("bits_per_byte", "word_perplexity"), None, "CC BY-SA 3.0", harness="wikitext"),
    "lambada": Task(lambada, ("lambada",), ("greedy", "perplexity"), None, "CC BY 4.0", harness="lambada_openai"),
    "hellaswag": Task(hellaswag, ("hellaswag",), FOR_LENGTH, 1 / 4, "MIT", harness="hellaswag"),
    "piqa": Task(piqa, ("piqa", "piqa_labels"), LIKELIEST, 1 / 2, "AFL 3.0", harness="piqa"),
    "winogrande": Task(winogrande, ("winogrande",), ACCURACY, 1 / 2, "CC BY", harness="winogrande"),
    "winograd": Task(winograd, ("winograd",), ACCURACY, 1 / 2, "CC BY 4.0", harness="wsc273"),
    "arc_easy": Task(arc_easy, ("arc_easy",), LIKELIEST, 1 / 4, "CC BY-SA 4.0", harness="arc_easy"),
    "arc_challenge": Task(
        arc_challenge, ("arc_challenge",), FOR_LENGTH, 1 / 4, "CC BY-SA 4.0", harness="arc_challenge"),
    "openbookqa": Task(openbookqa, ("openbookqa",), FOR_LENGTH, 1 / 4, "Apache 2.0", harness="openbookqa"),
    "boolq": Task(boolq, ("boolq",), ACCURACY, 1 / 2, "CC BY-SA 3.0", harness="boolq"),
    "copa": Task(copa, ("copa",), ACCURACY, 1 / 2, "BSD 2-Clause", harness="copa"),
    "mmlu": Task(
        mmlu, ("mmlu", "mmlu_dev"), ACCURACY, 1 / 4, "MIT", 5, _mmlu_examples, _mmlu_description, harness="mmlu",
        categories={category: tuple(subjects.split()) for category, subjects in MMLU_CATEGORIES.items()}),
    "truthfulqa_mc1": Task(
        truthfulqa_mc1, ("truthfulqa",), ACCURACY, 0.223, "Apache 2.0", description=_truthfulqa_description,
        harness="truthfulqa_mc1"),
    "truthfulqa_mc2": Task(
        truthfulqa_mc2, ("truthfulqa",), ("right_share",), 0.464, "Apache 2.0", description=_truthfulqa_description,
        harness="truthfulqa_mc2"),
    "blimp": Task(blimp, ("blimp",), ACCURACY, 1 / 2, "CC BY 4.0", harness="blimp"),
    "cola": Task(cola, ("cola",), ("correlation", "accuracy"), 0.0, "none stated", harness="cola"),
    "sst2": Task(sst2, ("sst2",), ACCURACY, 1 / 2, "none stated", harness="sst2"),
    "commonsense_qa": Task(commonsense_qa, ("commonsense_qa",), ACCURACY, 1 / 5, "MIT", harness="commonsense_qa"),
    "social_iqa": Task(social_iqa, ("social_iqa",), ACCURACY, 1 / 3, "CC BY 4.0", harness="social_iqa"),
    "gsm8k": Task(
        gsm8k, ("gsm8k", "gsm8k_train"), NUMBER, 0.0, "MIT", 5, _gsm8k_examples, check=_check_number, harness="gsm8k"),
    "svamp": Task(svamp, ("svamp", "gsm8k_train"), NUMBER, 0.0, "MIT", 5, _gsm8k_examples, check=_check_number),
    "triviaqa": Task(
        triviaqa, ("triviaqa",), ("exact_match",), 0.0, "Apache 2.0", check=_check_exact, harness="triviaqa"),
    "humaneval": Task(
        humaneval, ("humaneval",), ("pass@1", "pass@10", "pass@100"), 0.0, "MIT", check=check_answers,
        harness="humaneval"),
}  # fmt: skip
"""By their names."""

SUITES = {"core": ("blimp", "lambada", "hellaswag", "piqa", "arc_easy", "wikitext2")}
"""Tasks that say something of a small model, too."""
