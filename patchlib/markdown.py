"""Tables in Markdown, for notebooks, README and logs."""

import re


def table(columns: list[str], rows: list[list]) -> str:
    """The rows under their columns' names; a column without a letter in it goes to the right.

    What would end a cell or a row, or begin HTML, is escaped.
    """
    columns, *rows = [[escaped(value) for value in row] for row in [columns, *rows]]
    words = [any(letter.isalpha() for row in rows for letter in row[i]) for i in range(len(columns))]
    rule = "|".join("---" if column else "--:" for column in words)
    header, *lines = (f"| {' | '.join(cells)} |" for cells in [columns, *rows])
    return "\n".join([header, f"|{rule}|", *lines])


def escaped(value) -> str:
    """A value's text in one line that ends no table's cell and has no HTML in it."""
    return " ".join(re.sub(r"([\\|])", r"\\\1", str(value)).replace("<", "&lt;").splitlines())
