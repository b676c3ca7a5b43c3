"""In which scripts and languages texts are written: told by letters and common words, or left undetermined."""

from __future__ import annotations

import numpy as np
import polars as pl

SCRIPTS = (
    "Latin", "Arabic", "Armenian", "Bengali", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Greek", "Gujarati",
    "Gurmukhi", "Han", "Hangul", "Hebrew", "Hiragana", "Kannada", "Katakana", "Khmer", "Lao", "Malayalam", "Myanmar",
    "Sinhala", "Tamil", "Telugu", "Thai",
)  # fmt: skip
UNDETERMINED = "undetermined"
# Scripts that write one language, or nearly so; Japanese is told from Chinese by its kana.
_OWN_SCRIPT = {"Hiragana": "Japanese", "Katakana": "Japanese", "Hangul": "Korean", "Thai": "Thai", "Greek": "Greek"}
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = rf"[{_UNSPACED}]|[\w--[{_UNSPACED}]]+"
"""A word; in scripts that set no spaces between words, one sign."""


def words_of(texts: pl.Series) -> pl.DataFrame:
    """The distinct words of each text in lower case: `row` (place of the text, UInt32) and `word`."""
    frame = texts.str.to_lowercase().str.extract_all(WORD).alias("word").to_frame().with_row_index("row")
    return frame.explode("word").drop_nulls().unique()


def scripts_of(texts: pl.Series) -> dict[str, float]:
    """The share of each script among the letters, the largest first; `other` is what SCRIPTS does not name."""
    counts = _letters(texts)
    total = sum(counts.values())
    shares = {name: count / total for name, count in counts.items() if count}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _letters(texts: pl.Series) -> dict[str, int]:
    plain = int(texts.str.count_matches("[A-Za-z]").sum() or 0)
    beyond = texts.filter(texts.str.contains(r"[^\x00-\x7f]"))
    if not len(beyond):
        return {"Latin": plain}
    # What is left of a text without ASCII is short, so that a pass for each script costs little.
    beyond = beyond.str.replace_all(r"[\x00-\x7f]+", "")
    counts = {name: int(beyond.str.count_matches(rf"\p{{{name}}}").sum() or 0) for name in SCRIPTS}
    letters = int(beyond.str.count_matches(r"\p{L}").sum() or 0)
    marks = int(beyond.str.count_matches(r"\p{M}").sum() or 0)
    counts["other"] = max(0, letters + marks - sum(counts.values())) if letters > sum(counts.values()) else 0
    return counts | {"Latin": counts["Latin"] + plain}


def languages_of(texts: pl.Series, words: pl.DataFrame) -> dict[str, float]:
    """The share of rows in each language, the largest first, `undetermined` last; `words` are those of `words_of`.

    A row is in a language when it holds two or more of its commonest words, they are a tenth of its words or a dozen,
    and no other language comes as near; or when its letters are of a script that writes one language.
    """
    if not len(texts):
        return {}
    named = _named(texts, words)
    counts = named["language"].value_counts(sort=True)
    shares = {name: count / len(texts) for name, count in counts.iter_rows()}
    return shares | ({UNDETERMINED: 1 - len(named) / len(texts)} if len(named) < len(texts) else {})


def language_of_rows(texts: pl.Series, words: pl.DataFrame) -> pl.Series:
    """The language of each text, null where it is undetermined; `words` are those of `words_of`."""
    rows = pl.DataFrame({"row": np.arange(len(texts), dtype=np.uint32)})
    return rows.join(_named(texts, words), on="row", how="left", maintain_order="left")["language"]


def _named(texts: pl.Series, words: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([_by_script(texts), _by_words(words)]).unique("row", keep="first", maintain_order=True)


def _by_script(texts: pl.Series) -> pl.DataFrame:
    """Rows most of whose letters are of one language's own script: `row`, `language`."""
    frame = pl.DataFrame({"text": texts}).with_row_index("row").filter(pl.col("text").str.contains(_OF_ITS_OWN))
    letters = pl.col("text").str.count_matches(r"\p{L}")
    kana = pl.col("text").str.count_matches(r"[\p{Hiragana}\p{Katakana}]")
    han = pl.col("text").str.count_matches(r"\p{Han}")
    asked = pl.when(kana * 10 >= letters, (kana + han) * 2 > letters).then(pl.lit("Japanese"))
    asked = asked.when(kana == 0, han * 2 > letters).then(pl.lit("Chinese"))
    for script, language in _OWN_SCRIPT.items():
        if language != "Japanese":
            asked = asked.when(pl.col("text").str.count_matches(rf"\p{{{script}}}") * 2 > letters).then(
                pl.lit(language)
            )
    return frame.select("row", asked.otherwise(None).alias("language")).drop_nulls()


_OF_ITS_OWN = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Greek}]"


def _by_words(words: pl.DataFrame) -> pl.DataFrame:
    pairs = [(language, word) for language, text in _COMMON.items() for word in text.split()]
    common = pl.DataFrame(pairs, schema=["language", "word"], orient="row")
    found = words.join(common, on="word").group_by("row", "language").len("hits")
    ranked = found.sort("row", "hits", "language", descending=[False, True, False])
    best = ranked.group_by("row", maintain_order=True).agg(
        pl.col("language").first(), pl.col("hits").first(), pl.col("hits").get(1, null_on_oob=True).alias("next")
    )
    sizes = words.group_by("row").len("size")
    sure = (
        (pl.col("hits") >= 2)
        & (pl.col("hits") > pl.col("next").fill_null(0))
        & (pl.col("hits") * 10 >= pl.col("size").clip(upper_bound=120))
    )
    return best.join(sizes, on="row").filter(sure).sort("row").select("row", "language")


# The commonest words of each; a word may stand in several lists, and then it decides nothing between them.
_COMMON = {
    "Arabic": (
        "في من على إلى الى عن أن ان لا ما هذا هذه مع كل يا الله و أو بعد لم هو هي اللي كان قد التي الذي بس انا مش ده دي"
    ),
    "English": (
        "the of and to in is it you that was for are with this have not but be on my at your i'm so just what "
        "all can if when me do like about from they he she his her we our an or as will would there their "
        "been has had don how i"
    ),
    "French": (
        "le la les de des du un une et est en que qui pour pas dans sur ce je il elle nous vous au aux avec "
        "ne se plus par son sa ses mon ma mes on mais ou c qu j d l n été être fait tout comme très cette ça "
        "sont ai"
    ),
    "German": (
        "der die das und ist nicht ich du er sie es wir ihr ein eine einen dem den des mit für auf im in zu "
        "von bei aus auch wie so aber noch nur wenn oder was mir mich sich dass hat habe haben war sind wird "
        "am zum zur nach über"
    ),
    "Hindi": (
        "के की का है में और से को पर हैं यह नहीं कि ने भी हो एक था कर तो इस जो hai ka ki ke ko nahi nahin "
        "mein aur bhi kya ho hain tha thi raha rahe rahi kar karo ye yeh woh wo hum aap tum mera meri koi "
        "kuch par bhai ji ab ek kyu kyun apne apni gaya hi toh sab jo iss"
    ),
    "Italian": (
        "il lo la gli le di del della dei che e è non per un una in con sono si mi ti ci ma da al alla come "
        "più anche ho ha hai nel questo questa se perché io tu lui cosa quando tutti tutto solo su i"
    ),
    "Portuguese": (
        "o os as de do da dos das que e é não um uma em no na nos nas para pra com por se eu você ele ela "
        "mais mas como foi ser tem meu minha isso esse essa muito já quando só vai vou ao à q a estou"
    ),
    "Spanish": (
        "el la los las de del que y en un una es no por para con se lo me te mi tu su al como más pero si ya "
        "le les está todo cuando muy sin qué hay este esta yo eso porque son ha hoy nos a"
    ),
    "Dutch": (
        "de het een en van ik je dat niet is te op met voor maar er zijn wel ook naar aan nog om als dan die "
        "wat heb bij"
    ),
    "Russian": (
        "и в не на я что с он по как это но а все у за к так от же мы вы меня мне только если бы был из о ты да для"
    ),
    "Turkish": (
        "bir ve bu da de için çok ne ben mi ile ama gibi daha var o sen kadar en değil diye olarak her yok ki şey"
    ),
    "Swedish": (
        "och att det är en som på för jag med har inte av till den om ett var men de så man kan du vi nu ska när"
    ),
    "Polish": (
        "nie to się na w i z że do jest jak co o za ale ja tak po od już mi tylko dla czy był być przez mnie są ma"
    ),
    "Indonesian": (
        "yang di dan itu ini dengan untuk tidak dari dalam akan pada juga saya ke karena ada bisa aku kamu gak"
    ),
}
