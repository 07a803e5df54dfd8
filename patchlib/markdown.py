"""Tables in Markdown, for notebooks, README and logs."""


def table(columns: list[str], rows: list[list]) -> str:
    """The rows under their columns' names; a column without a letter in it goes to the right."""
    words = [any(letter.isalpha() for row in rows for letter in str(row[i])) for i in range(len(columns))]
    rule = "|".join("---" if column else "--:" for column in words)
    header, *lines = (f"| {' | '.join(map(str, cells))} |" for cells in [columns, *rows])
    return "\n".join([header, f"|{rule}|", *lines])
