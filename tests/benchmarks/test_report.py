import json

from tests.benchmarks.measure import Goal, Result
from tests.benchmarks.report import COLUMNS, goal_text, markdown, number, store, table_lines, write_report


def result(name="r", ours=(1.0, 2.0, 3.0), theirs=(4.0, 8.0, 12.0), goals=(), **fields):
    values = {"ours": list(ours), "peer": list(theirs)}
    return Result("m", name, f"row {name}", "s", values, list(goals), "masks equal", **fields)


def test_store_replaces_a_row_where_it_stands(tmp_path):
    path = tmp_path / "results.json"
    store(path, [result("a"), result("b")])
    store(path, [result("a", ours=(5.0, 5.0, 5.0)), result("c")])
    stored = [Result.from_dict(values) for values in json.loads(path.read_text())]
    assert [row.name for row in stored] == ["a", "b", "c"]
    assert stored[0].values["ours"] == [5.0, 5.0, 5.0]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_table_lines():
    goals = [Goal("peer", at_least=5), Goal(at_most=2)]
    ours, peer = table_lines([result(goals=goals)])
    assert dict(zip(COLUMNS, ours, strict=True)) == {
        "row": "row r",
        "contender": "ours",
        "median": "2 s",
        "spread": "1 – 3",
        "ratio": "",
        "goal": "≤ 2 s",
        "met": "yes",
        "outputs": "masks equal",
    }
    assert peer[1:7] == ("peer", "8 s", "4 – 12", "4× better", "≥ 5× better", "NO")


def test_a_bound_on_our_cost_is_shown_as_our_cost():
    assert table_lines([result(goals=[Goal("peer", at_most=1.5)])])[1][4:7] == ("0.25× it", "≤ 1.5× it", "yes")
    assert table_lines([result(ours=(8.0,), theirs=(4.0,))])[1][4] == "2× it"


def test_goal_text():
    assert goal_text(Goal("peer", at_least=3), "s") == "≥ 3× better"
    assert goal_text(Goal("limit", at_most=2.5), "s") == "≤ 2.5× it"
    assert goal_text(Goal(at_most=32), "MB") == "≤ 32 MB"


def test_number():
    assert [number(value) for value in (1234.5, 12.34, 0.012345)] == ["1234", "12.3", "0.0123"]


def test_markdown():
    lines = markdown([result()]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}


def test_write_report(tmp_path):
    rows = [result(goals=[Goal("peer", at_least=5)]), result("b", theirs=(0.5, 1.0, 1.5), goals=[Goal(at_most=9)])]
    text = write_report(tmp_path, [row.to_dict() for row in rows])
    assert "row b" in text
    assert (tmp_path / "table.md").read_text() == markdown(rows)
    assert (tmp_path / "ratios.png").read_bytes()[:4] == b"\x89PNG"


def test_write_report_of_nothing(tmp_path):
    assert "row" in write_report(tmp_path, [])
