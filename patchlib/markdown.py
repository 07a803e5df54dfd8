"""Tables in Markdown, for notebooks, README and logs."""


def table(columns: list[str], rows: list[list]) -> str:
    """The rows under their columns' names; a column without a letter in it goes to the right.

    What would end a cell or a row is escaped.
    """
    columns, *rows = [[_cell(value) for value in row] for row in [columns, *rows]]
    words = [any(letter.isalpha() for row in rows for letter in row[i]) for i in range(len(columns))]
    rule = "|".join("---" if column else "--:" for column in words)
    header, *lines = (f"| {' | '.join(cells)} |" for cells in [columns, *rows])
    return "\n".join([header, f"|{rule}|", *lines])


def _cell(value):
    return " ".join(str(value).replace("|", "\\|").splitlines())
