"""Pages whose numbers are computed from rows: RESULTS.md, and what READMEs mark.

A placeholder, in a study's ANSWER, stands between braces; *a* and *b* are names of variants:

    {a}                  mean accuracy, "83.4"; on held-out labels where there is no other
    {a minus b}          mean difference, paired by seed, with its 95% interval: "+3.9 ± 0.5"
    {right of a}         mean share of the pseudo-labels kept that are right, "84.4%"
    {kept of a}          mean share of the pseudo-labels kept, "62%"
    {fit of a}           mean accuracy on the noisy training images in the last epoch, "90.0%"
    {seeds of a}         number of seeds
    {labels worth a}     how many labels alone give a's accuracy: "11,700 (9,900 to 13,300)"

README.md and README.ko.md hold markers, between which the text is computed:

    <!-- =STUDY: EXPRESSION -->83.4<!-- / -->
    <!-- table STUDY: variant 1 | variant 2 = another name for it -->
    (the table)
    <!-- / -->
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from .data import check_name
from .figures import save
from .files import write_whole
from .studies import ROOT, Study, load_study, study_names
from .tables import (
    compare,
    data_title,
    difference,
    label_efficiency,
    labels_in_words,
    score_column,
    scores,
    tenths,
    with_interval,
)

READMES = ("README.md", "README.ko.md")
PREAMBLE = """# Results

<!-- Written by `make pages` from results/*.csv and studies/*.py: do not edit. -->

Each section is one study: a question, its answer, the rows that it rests on, and the command that
trains what is missing and writes them again. Numbers are means over the seeds, in percent.

- **accuracy**: on the test images, or on held-out labels where the head says so. ± is half of
  Student's 95% interval over the seeds; each seed has its own split, initial weights and noise.
- **difference**: accuracy minus that of the baseline, in points, paired by seed, with the 95%
  interval of the paired differences. Where it includes 0, the difference is within noise.
- **kept**: the share of the unlabelled images whose pseudo-label passed the filter.
  **right**: how many of the pseudo-labels kept are right.
- **seeds**: how many trainings each mean is of.
"""
MOST_ROWS = 16  # a longer table is folded
HEADS = ("variant", "accuracy", "difference", "to", "kept", "right", "seeds")
HEADS_BY_PAGE = {
    "README.ko.md": ("방법", "정확도", "차이", "비교 대상", "남긴 비율", "맞은 비율", "시드")
}
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_INLINE = re.compile(r"(<!-- =([\w-]+): (.+?) -->)[^\n]*?(<!-- / -->)")
_BLOCK = re.compile(r"(<!-- table ([\w-]+): (.+?) -->\n).*?(<!-- / -->)", re.DOTALL)


# ---------------------------------------------------------------------------- placeholders


def _labels_worth(rows: pd.DataFrame, study: Study, variant: str) -> str:
    if not study.curve:
        raise ValueError(f"study {study.name}: 'labels worth' needs CURVE, labels -> variant.")
    curve = {count: scores(rows, name).tolist() for count, name in study.curve.items()}
    return labels_in_words(label_efficiency(curve, scores(rows, variant).tolist()), curve)


def _mean(column: str, form: Callable[[float], str], rows: pd.DataFrame, _: Study, of: str) -> str:
    mean = rows[rows.variant == of][column].mean()
    return "" if math.isnan(mean) else form(mean)


def _percent(value: float) -> str:
    return f"{tenths(value)}%"


_FORMS: dict[str, Callable[..., str]] = {
    "right of (.+)": partial(_mean, "pseudo_accuracy", _percent),
    "kept of (.+)": partial(_mean, "kept", "{:.0%}".format),
    "fit of (.+)": partial(_mean, "fit", _percent),
    "seeds of (.+)": lambda rows, _, of: str((rows.variant == of).sum()),
    "labels worth (.+)": _labels_worth,
    "(.+) minus (.+)": lambda rows, _, a, b: with_interval(*difference(rows, a, b)[:2], "+"),
    "(.+)": lambda rows, _, of: with_interval(scores(rows, of).mean(), math.nan),
}


def value(expression: str, study: Study, rows: pd.DataFrame) -> str:
    """What a placeholder stands for. Raises ValueError for a form or variant that there is not,
    with the nearest, and where there are no rows for it."""
    pattern = next(p for p in _FORMS if re.fullmatch(p, expression))
    if expression in study.runs:  # a variant may be called "kept of all"
        pattern = "(.+)"
    names = re.fullmatch(pattern, expression).groups()  # type: ignore[union-attr]
    for name in names:
        check_name(f"variant of the study {study.name}", name, study.runs)
        if name not in set(rows.variant):
            raise ValueError(
                f"study {study.name}: there are no rows of {name!r} yet for "
                f"{{{expression}}}: make study NAME={study.name}."
            )
    if text := _FORMS[pattern](rows, study, *names):
        return text
    raise ValueError(f"study {study.name}: its rows have no value for {{{expression}}}.")


def answer(study: Study, rows: pd.DataFrame) -> str:
    """The study's ANSWER with its numbers. Raises ValueError as :func:`value`."""
    return _PLACEHOLDER.sub(lambda found: value(found[1], study, rows), study.answer)


# ------------------------------------------------------------------------------------ pages


def _cell(text: str) -> str:
    """Text that Markdown takes as it is, in a table too."""
    return re.sub(r"([\\`*_~\[<|])", r"\\\1", text)


def table(
    study: Study,
    rows: pd.DataFrame,
    shown: Mapping[str, str] | None = None,
    heads: tuple[str, ...] = HEADS,
) -> str:
    """A Markdown table, a row a variant that has rows; columns that would be empty are left out.

    shown: the variants and the names that they get here; all by default, under their own.
    """
    there = set(rows.variant)
    found = compare(rows, {a: b for a, b in study.baseline.items() if {a, b} <= there})
    found = found.set_index("variant").reindex(list(shown or found.variant))
    baselines = found.baseline.dropna().unique()
    variant, accuracy, gain, against, kept, right, seeds = heads
    if score_column(rows) == "validation_accuracy":
        accuracy = "accuracy on held-out labels"
    if len(baselines) == 1:
        gain += f" ({heads[3]} “{(shown or {}).get(baselines[0], baselines[0])}”)"

    def difference_cell(row: pd.Series) -> str:
        text = with_interval(row.difference, row.interval, "+")
        few = f" ({row.pairs} seeds)" if text and row.pairs < row.seeds else ""
        return text + few

    columns = {
        variant: [(shown or {}).get(name, name) for name in found.index],
        accuracy: [with_interval(a, b) for a, b in zip(found.accuracy, found.spread, strict=True)],
        gain: [difference_cell(row) for _, row in found.iterrows()],
        against: list(found.baseline.fillna("")) if len(baselines) > 1 else [],
        kept: ["" if math.isnan(share) else f"{share:.0%}" for share in found.kept],
        right: ["" if math.isnan(share) else _percent(share) for share in found.pseudo_accuracy],
        seeds: found.seeds.astype(str).tolist(),
    }
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    lines = [list(columns), rule, *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def section(study: Study, rows: pd.DataFrame) -> str:
    """The part of RESULTS.md on one study; of what is not trained yet it says so."""
    missing = [name for name in study.runs if name not in set(rows.variant)]
    parts = [f'<a id="{study.name}"></a>\n\n## {_cell(study.question)}\n']
    if not missing:
        parts.append(f"{answer(study, rows)}\n")
    elif len(rows):
        names = ", ".join(map(_cell, missing[:3])) + ", …" * (len(missing) > 3)
        parts.append(f"*Not answered yet: there are no rows of {names}.*\n")
    else:
        parts.append("*Not answered yet: there are no rows.*\n")
    if len(rows):
        text = table(study, rows)
        if (count := rows.variant.nunique()) > MOST_ROWS:
            text = f"<details><summary>{count} variants</summary>\n\n{text}\n</details>\n"
        parts.append(text)
    facts = f"`make study NAME={study.name}`\n"
    if not missing:
        parts.append(f"![{_cell(study.question)}](assets/{study.name}.png)\n")
    if len(rows):
        data = " and ".join(rows.data.map(data_title).unique())
        facts = f"{data}; {' and '.join(rows.device.unique())}; {facts}"
    return "\n".join([*parts, facts])


def fill(
    text: str, page: str, studies: Mapping[str, Study], rows: Mapping[str, pd.DataFrame]
) -> str:
    """The text with its markers filled in. Raises ValueError, with the page, for a wrong one."""

    def study(name: str) -> tuple[Study, pd.DataFrame]:
        check_name("study", name, studies)
        return studies[name], rows[name]

    def number(found: re.Match[str]) -> str:
        return found[1] + value(found[3], *study(found[2])) + found[4]

    def block(found: re.Match[str]) -> str:
        its, own = study(found[2])
        shown = dict(_shown(part.strip(), its) for part in found[3].split("|"))
        for name in shown:
            value(name, its, own)
        return found[1] + table(its, own, shown, HEADS_BY_PAGE.get(page, HEADS)) + found[4]

    try:
        text, numbers = _INLINE.subn(number, text)
        text, blocks = _BLOCK.subn(block, text)
        if numbers + blocks != (ends := text.count("<!-- / -->")) or ends != len(
            re.findall(r"<!-- (?:=|table )", text)
        ):
            raise ValueError("a marker is open, or not as in noisy_student/pages.py.")
    except ValueError as error:
        raise ValueError(f"{page}: {error}") from error
    return text


def _shown(part: str, study: Study) -> tuple[str, str]:
    """(variant, the name that it gets), of "variant" or "variant = name"."""
    name, _, other = part.rpartition(" = ")
    return (part, part) if part in study.runs or not name else (name, other)


def render(root: Path = ROOT) -> tuple[dict[Path, str], dict[str, Study]]:
    """(what RESULTS.md and the READMEs there are should say, the studies by name)."""
    readmes = {
        path: path.read_text(encoding="utf-8") for name in READMES if (path := root / name).exists()
    }
    cited = [
        found[2]
        for text in readmes.values()
        for found in (*_INLINE.finditer(text), *_BLOCK.finditer(text))
    ]
    names = study_names(root)  # those that a README cites come first
    names = list(dict.fromkeys([*(name for name in cited if name in names), *names]))
    studies = {name: load_study(name, root) for name in names}
    rows = {name: study.rows(root) for name, study in studies.items()}
    contents = "\n".join(f"- [{_cell(s.question)}](#{name})" for name, s in studies.items())
    sections = (section(study, rows[name]) for name, study in studies.items())
    found = {root / "RESULTS.md": "\n".join([PREAMBLE, contents + "\n", *sections])}
    for path, text in readmes.items():
        found[path] = fill(text, path.name, studies, rows)
    return found, studies


def check(root: Path = ROOT) -> list[Path]:
    """The pages whose text is not what the rows say, and figures that are missing."""
    pages, _ = render(root)
    linked = re.findall(r"\((assets/[\w-]+\.png)\)", "\n".join(pages.values()))
    stale = [
        path
        for path, text in pages.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    return stale + [root / name for name in dict.fromkeys(linked) if not (root / name).exists()]


def write(root: Path = ROOT) -> list[Path]:
    """Write the pages, and assets/<study>.png of each study that has all its rows; their paths."""
    pages, studies = render(root)
    for path, text in pages.items():
        write_whole(path, text.encode())
    drawn = []
    for name, study in studies.items():
        rows = study.rows(root)
        if set(rows.variant) == set(study.runs):
            drawn.append(save(study.figure(rows), root / "assets" / f"{name}.png"))
    return [*pages, *drawn]
