"""Columns of tagged text: which column is which, comments, documents, sentences, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from distil_jax.data.rows import Faults, ReadOptions, Row, RowStream, open_rows, read_table
from distil_jax.errors import UserError

TAGGED = ReadOptions(tagged=True, labelled=True)


def opened(folder: Path, text: str, name: str = "a.conll", **options: Any) -> RowStream:
    path = folder / name
    path.write_bytes(text.encode())
    return open_rows(path, ReadOptions(tagged=True, labelled=True, **options))


def sentences(stream: RowStream) -> list[tuple[list[str], list[str] | None]]:
    return [(row.values["words"], row.values.get("tags")) for row in stream]


def columns(*rows: str, mark: str = "\t") -> str:
    return "\n".join(row.replace(" ", mark) for row in rows) + "\n"


@pytest.mark.parametrize(
    ("name", "mark"),
    [("a.tsv", "\t"), *((name, mark) for name in ("a.conll", "train.txt", "x.annotated", "a.bio") for mark in "\t ")],
)
def test_words_and_tags(tmp_path: Path, mark: str, name: str) -> None:
    text = columns("-DOCSTART- O", "", "Ann B-PER", "ran O", "", "", "to O", "Rome B-LOC", mark=mark)
    stream = opened(tmp_path, "\ufeff" + text, name)
    assert sentences(stream) == [(["Ann", "ran"], ["B-PER", "O"]), (["to", "Rome"], ["O", "B-LOC"])]
    assert stream.columns_taken == {"words": "column 1", "tags": "column 2"}
    assert [note for note in stream.notes if "byte order mark" not in note] == []
    assert len(stream.notes) == 1


def test_a_file_of_one_column_has_words_alone(tmp_path: Path) -> None:
    assert sentences(opened(tmp_path, "Who\nknows\n\n?\n")) == [(["Who", "knows"], None), (["?"], None)]


def test_conll_2003_is_measured_by_its_last_column(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\n"
    stream = opened(tmp_path, text)
    assert sentences(stream) == [(["EU", "rejects", "German"], ["I-ORG", "O", "I-MISC"])]
    assert stream.columns_taken == {"words": "column 1", "tags": "column 4"}
    assert any("column 4" in note for note in stream.notes)


# Comments


def test_comments_before_a_sentence_of_as_many_fields(tmp_path: Path) -> None:
    """As in MultiCoNER."""
    text = "# id a1 domain=en\nthe _ _ O\nbig _ _ B-X\n\n# id a2 domain=en\nend _ _ O\n"
    assert sentences(opened(tmp_path, text)) == [(["the", "big"], ["O", "B-X"]), (["end"], ["O"])]


@pytest.mark.parametrize("mark", [" ", "\t"])
@pytest.mark.parametrize("comment", ["# one", "#", "# a text of many words here", "#sent_id = 5", "# newdoc id = x"])
def test_comments_of_any_number_of_fields(tmp_path: Path, mark: str, comment: str) -> None:
    rows = columns("the X O", "end Y B-X", mark=mark)
    assert (
        sentences(opened(tmp_path, f"{comment}\n{rows}\n{comment}\n{comment}\n{rows}"))
        == [(["the", "end"], ["O", "B-X"])] * 2
    )


def test_a_number_sign_with_a_tag_is_a_word(tmp_path: Path) -> None:
    text = columns("# O", "1 O", "in O", "", "say O", "# O", "so B-X", "", "#tag B-X", "x O", "", "#new B-Y", "x O")
    assert [words for words, _ in sentences(opened(tmp_path, text))] == [
        ["#", "1", "in"],
        ["say", "#", "so"],
        ["#tag", "x"],
        ["#new", "x"],
    ]
    assert sentences(opened(tmp_path, "# O\n# O\n")) == [(["#", "#"], ["O", "O"])]
    # Tags of its own for hashtags: those inside sentences show that they are words.
    text = columns("see V", "#this HT", "", "#that HT", "see V")
    assert [words for words, _ in sentences(opened(tmp_path, text))] == [["see", "#this"], ["#that", "see"]]


# Which column is which

GERMEVAL = """#\thttp://de.wikipedia.org/wiki/X [2009-10-17]
1\tAm\tO\tO
2\tHeidelberger\tB-LOCderiv\tO
3\tSportclub\tB-ORG\tB-LOC

#\thttp://de.wikipedia.org/wiki/Y [2009-10-17]
1\tEr\tO\tO
"""


def test_numbers_words_outer_and_inner_tags(tmp_path: Path) -> None:
    stream = opened(tmp_path, GERMEVAL, "NER-de-train.tsv")
    words = [["Am", "Heidelberger", "Sportclub"], ["Er"]]
    assert sentences(stream) == [(words[0], ["O", "B-LOCderiv", "B-ORG"]), (words[1], ["O"])]
    assert stream.columns_taken == {"words": "column 2", "tags": "column 3"}
    assert any("column 3" in note and "column 4" in note and "inner" in note for note in stream.notes)
    inner = opened(tmp_path, GERMEVAL, tags="4")
    assert sentences(inner)[0] == (words[0], ["O", "O", "B-LOC"])
    assert [tags for _, tags in sentences(opened(tmp_path, GERMEVAL, tags="-1"))] == [["O", "O", "B-LOC"], ["O"]]


def test_numbers_and_outer_tags_where_no_inner_one_is_there(tmp_path: Path) -> None:
    text = columns("1 In O O", "2 Rom B-LOC O", "", "1 Ja O O")
    assert opened(tmp_path, text).columns_taken["tags"] == "column 3"


CONLLU = """# newdoc id = n01
# sent_id = n01-1
# text = They don't buy.
1\tThey\tthey\tPRON\tPRP\tCase=Nom|Number=Plur\t3\tnsubj\t3:nsubj|4.1:nsubj\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
4\tbuy\tbuy\tVERB\tVBP\t_\t0\troot\t0:root\tSpaceAfter=No
4.1\tbuy\tbuy\tVERB\tVBP\t_\t_\t_\t0:root\tCopyOf=4
5\t.\t.\tPUNCT\t.\t_\t4\tpunct\t_\t_

# sent_id = n01-2
1\t10 000\t10 000\tNUM\tCD\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize("name", ["en.conllu", "en.conll", "en.txt", "en.conllu.gz"])
def test_conll_u_is_known_by_its_ending_or_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONLLU.encode()) if name.endswith("gz") else CONLLU.encode())
    stream = open_rows(path, TAGGED)
    assert sentences(stream) == [
        (["They", "do", "n't", "buy", "."], ["PRON", "AUX", "PART", "VERB", "PUNCT"]),
        (["10 000"], ["NUM"]),
    ]
    assert stream.columns_taken == {"words": "column 2 (FORM)", "tags": "column 4 (UPOS)"}
    assert any("FORM" in note and "UPOS" in note for note in stream.notes)


@pytest.mark.parametrize(("tags", "first"), [("XPOS", "PRP"), ("xpos", "PRP"), ("5", "PRP"), ("DEPREL", "nsubj")])
def test_columns_of_conll_u_by_name_or_number(tmp_path: Path, tags: str, first: str) -> None:
    assert sentences(opened(tmp_path, CONLLU, tags=tags))[0][1][0] == first  # type: ignore[index]
    assert sentences(opened(tmp_path, CONLLU, words="LEMMA", tags=tags))[0][0][0] == "they"


def test_conll_u_plus_names_its_columns(tmp_path: Path) -> None:
    text = "# global.columns = ID FORM NER\n" + columns("1 In O", "2 Rome B-LOC")
    stream = opened(tmp_path, text, tags="ner")
    assert sentences(stream) == [(["In", "Rome"], ["O", "B-LOC"])]
    assert stream.columns_taken["tags"] == "column 3 (NER)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (columns("O show", "O me", "B-GENRE horror", "I-GENRE films"), ["show", "me", "horror", "films"]),
        (columns("PRON he", "VERB sat", "PUNCT ."), ["he", "sat", "."]),
        (columns("B-PER x Ann", "O y sat"), ["Ann", "sat"]),
    ],
)
def test_tags_in_front_of_words(tmp_path: Path, text: str, words: list[str]) -> None:
    stream = opened(tmp_path, text)
    assert sentences(stream)[0][0] == words
    assert stream.columns_taken["tags"] == "column 1"
    assert any("tags from column 1" in note for note in stream.notes)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        (columns("1 In O - -", "2 Rome B-LOC - -", "3 so O - -"), ["O", "B-LOC", "O"]),  # as in Universal NER
        (columns("In IN O _", "Rome NNP B-LOC _", "so RB O _"), ["O", "B-LOC", "O"]),
        (columns("In O 0.5", "Rome B-LOC 0.75", "so O 1"), ["O", "B-LOC", "O"]),
        (columns("In B-PP O", "Rome B-NP O", "so O O"), ["O", "O", "O"]),
        (columns("In O B-PP", "Rome B-LOC B-NP", "so O O"), ["B-PP", "B-NP", "O"]),
    ],
)
def test_columns_that_hold_no_tags(tmp_path: Path, text: str, tags: list[str]) -> None:
    assert sentences(opened(tmp_path, text))[0][1] == tags


def test_two_kinds_of_tags_are_asked_about(tmp_path: Path) -> None:
    text = columns("In O IN", "Rome B-LOC NNP", "so O RB")
    with pytest.raises(UserError, match=r"a\.conll: .*column 2: B-LOC, O.*column 3: IN, NNP, RB.*task\.label"):
        opened(tmp_path, text)
    assert sentences(opened(tmp_path, text, tags="3"))[0][1] == ["IN", "NNP", "RB"]


def test_conll_u_without_universal_tags(tmp_path: Path) -> None:
    blank = CONLLU
    for tag in ("PRON", "AUX", "PART", "VERB", "PUNCT", "NUM"):
        blank = blank.replace(f"\t{tag}\t", "\t_\t")
    assert opened(tmp_path, blank).columns_taken["tags"] == "column 5 (XPOS)"
    for tag in ("PRP", "VBP", "RB", ".", "CD"):
        blank = blank.replace(f"\t_\t{tag}\t", "\t_\t_\t")
    with pytest.raises(UserError, match=r"UPOS and XPOS are blank.*task\.label"):
        opened(tmp_path, blank)


def test_known_labels_tell_tags_from_words(tmp_path: Path) -> None:
    text = columns("q1 he", "q2 sat")
    assert sentences(opened(tmp_path, text))[0] == (["q1", "q2"], ["he", "sat"])
    assert sentences(opened(tmp_path, text, tag_names=("q1", "q2")))[0] == (["he", "sat"], ["q1", "q2"])


def test_columns_that_could_be_either_are_asked_about(tmp_path: Path) -> None:
    text = "".join(f"c{i % 3}\tword{i}\n" for i in range(100))
    with pytest.raises(UserError, match=r"a\.conll: 3 different values in column 1, 100 in column 2.*task\.text"):
        opened(tmp_path, text)
    assert sentences(opened(tmp_path, text, words="2", tags="1"))[0][0][:2] == ["word0", "word1"]
    text = "".join(f"word{i}\tc{i % 3}\n" for i in range(100))
    assert sentences(opened(tmp_path, text))[0][1][:3] == ["c0", "c1", "c2"]  # type: ignore[index]


def test_a_word_to_is_no_part_of_speech(tmp_path: Path) -> None:
    assert sentences(opened(tmp_path, "TO\tO\nTO\tO\n")) == [(["TO", "TO"], ["O", "O"])]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    for name in ("3", "0", "ner"):
        with pytest.raises(UserError, match=rf"a\.conll: no column '{name}'.*1 to 2"):
            opened(tmp_path, "Ann\tO\n", tags=name)
    with pytest.raises(UserError, match=r"no column 'ner' .*FORM.*MISC"):
        opened(tmp_path, CONLLU, tags="ner")


# Tables with a word a row


def test_a_word_a_row_with_a_number_of_the_sentence(tmp_path: Path) -> None:
    text = 'Sentence #,Word,POS,Tag\nSentence: 1,Ann,NNP,B-per\n,ran,VBD,O\n,",",",",O\nSentence: 2,So,RB,O\n'
    stream = opened(tmp_path, text, "a.csv")
    rows = [*stream]
    assert [(row.place, row.number) for row in rows] == [(2, 0), (5, 1)]
    assert [row.values for row in rows] == [
        {"words": ["Ann", "ran", ","], "tags": ["B-per", "O", "O"]},
        {"words": ["So"], "tags": ["O"]},
    ]
    assert stream.columns_taken == {"words": "column 'Word'", "tags": "column 'Tag'"}
    stream = opened(tmp_path, text, "a.csv", tags="POS")
    assert next(stream).values["tags"] == ["NNP", "VBD", ","]


# What is wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tO\nb\n\nc\tO\n", "line 2: 1 columns, not 2"),
        ("a\tO\nb\tO\tO\n", "line 2: 3 columns, not 2"),
        ("a\tO\n\tO\n", "line 2: no word"),
        ("a\tO\nb\t\n", "line 2: no tag"),
        ("\n \n", "empty"),
        ("-DOCSTART- O\n\n", "no sentence"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.conll"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"a\.conll.*{message}"):
        read_table(path, TAGGED)


def test_a_bad_line_costs_its_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(b"a\tO\nb\n\nc\tO\n\nd\xff\tO\ne\tO\n\nf\tO\n")
    faults = Faults(skip=True)
    rows = [*open_rows(path, TAGGED, faults)]
    assert rows == [Row(4, 1, {"words": ["c"], "tags": ["O"]}), Row(9, 3, {"words": ["f"], "tags": ["O"]})]
    assert faults.count == 2
