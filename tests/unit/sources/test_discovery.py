"""From what people type to files, in an order that does not depend on the machine."""

import pytest

from polar_etl.errors import InputError, UsageError
from polar_etl.sources.discovery import find_files


@pytest.fixture
def folder(tmp_path):
    for name in (
        *("b.parquet", "a.parquet", "c.PQ", "d.parq", "notes.txt", ".hidden.parquet", "_x.parquet"),
        *(
            "sub/z.parquet",
            "sub/deep/y.parquet",
            ".git/x.parquet",
            "_temporary/x.parquet",
            "n[1].pq",
        ),
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def names(folder, *inputs, apart=()) -> list[str]:
    found = find_files([str(item) for item in inputs], apart)
    return [path.removeprefix(f"{folder}/") for path in found]


def test_a_directory_gives_its_parquet_files_sorted_by_path(folder):
    assert names(folder, folder) == [
        *("a.parquet", "b.parquet", "c.PQ", "d.parq", "n[1].pq"),
        *("sub/deep/y.parquet", "sub/z.parquet"),
    ]


def test_files_keep_the_order_in_which_they_are_given(folder):
    given = [folder / "b.parquet", folder / "a.parquet", folder / "notes.txt"]

    assert names(folder, *given) == ["b.parquet", "a.parquet", "notes.txt"]


def test_globs_are_sorted(folder):
    assert names(folder, folder / "*.parquet") == ["_x.parquet", "a.parquet", "b.parquet"]
    assert names(folder, folder / "**" / "[yz].parquet") == ["sub/deep/y.parquet", "sub/z.parquet"]


def test_a_file_whose_name_looks_like_a_glob(folder):
    assert names(folder, folder / "n[1].pq") == ["n[1].pq"]


def test_several_inputs_are_joined(folder):
    found = names(folder, folder / "sub", folder / "a.parquet")

    assert found == ["sub/deep/y.parquet", "sub/z.parquet", "a.parquet"]


def test_paths_may_be_path_objects(folder):
    assert find_files([folder / "a.parquet"], ()) == [str(folder / "a.parquet")]


@pytest.mark.parametrize("name", ["absent.parquet", "sub/absent"])
def test_what_is_not_there_is_an_input_error(folder, name):
    with pytest.raises(InputError, match="does not exist"):
        find_files([str(folder / name)], ())


def test_a_directory_or_glob_without_parquet_is_an_input_error(folder):
    (folder / "empty").mkdir()
    for item in (folder / "empty", folder / "*.nothing"):
        with pytest.raises(InputError, match="no Parquet file"):
            find_files([str(item)], ())


def test_no_input_is_a_usage_error():
    with pytest.raises(UsageError, match="no input"):
        find_files([], ())


def test_a_path_with_a_null_byte_is_a_usage_error():
    with pytest.raises(UsageError, match="can't be a path"):
        find_files(["a\0b"], ())


def test_inputs_must_not_lie_in_the_output(folder):
    for apart in (folder, folder / "sub"):
        with pytest.raises(UsageError, match="lies in the output"):
            find_files([str(folder / "sub" / "z.parquet")], [apart])
    for pattern in (folder / "sub" / "*.parquet", folder / "sub" / "deep"):
        with pytest.raises(UsageError, match="lies in the output"):
            find_files([str(pattern)], [folder / "sub"])
    assert names(folder, folder / "a.parquet", apart=[folder / "sub"]) == ["a.parquet"]


@pytest.mark.parametrize(
    "url", ["s3://bucket/x.parquet", "https://host/x.parquet?a=b", "file:///x"]
)
def test_a_url_is_an_input_error(url):
    with pytest.raises(InputError, match="is a URL: only local files"):
        find_files([url], ())
