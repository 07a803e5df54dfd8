from patchlib import markdown


def test_numbers_go_to_the_right_and_words_to_the_left():
    assert markdown.table(["name", "count"], [["a", 1], ["b", "1,000"]]) == (
        "| name | count |\n|---|--:|\n| a | 1 |\n| b | 1,000 |"
    )
    assert markdown.table(["", "mixed"], [["x", "3"], ["", "not reached"]]).splitlines() == [
        *("|  | mixed |", "|---|---|", "| x | 3 |", "|  | not reached |")
    ]


def test_a_cell_cannot_leave_its_place():
    table = markdown.table(["a|b", "c"], [["x\ny", "1"], ["|---|", 2], [r"\|", "<b>"]])
    assert table.splitlines() == [
        *(r"| a\|b | c |", "|---|---|", "| x y | 1 |", r"| \|---\| | 2 |"),
        r"| \\\| | &lt;b> |",
    ]
