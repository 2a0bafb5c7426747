"""Every error is a leaf of one tree, has an exit code, and survives pickling."""

import pickle

import pytest

import polar_etl
from polar_etl import errors
from polar_etl.errors import PolarEtlError, describe

CODES = {
    "PolarEtlError": 1,
    "RunFailedError": 1,
    "UsageError": 2,
    "InputError": 4,
    "StateMismatchError": 5,
    "OutputLockedError": 6,
    "MemoryLimitError": 7,
    "InterruptedRunError": 130,
    "TerminatedRunError": 143,
}


def all_errors(kind: type[PolarEtlError] = PolarEtlError) -> list[type[PolarEtlError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in all_errors(sub))]


def test_no_error_is_left_out_here():
    assert {error.__name__ for error in all_errors()} == set(CODES)


@pytest.mark.parametrize("error", all_errors())
def test_survives_pickling(error):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error("what\nto do: ü"), protocol))
        assert type(again) is error
        assert str(again) == "what\nto do: ü"


@pytest.mark.parametrize("error", all_errors())
def test_has_the_exit_code_that_is_documented(error):
    assert error("x").exit_code == CODES[error.__name__]


@pytest.mark.parametrize(
    ("name", "builtin"),
    [("UsageError", ValueError), ("InputError", ValueError), ("MemoryLimitError", MemoryError)],
)
def test_is_caught_as_the_builtin_error_that_it_is(name, builtin):
    assert issubclass(getattr(errors, name), builtin)


def test_public_errors_are_those_of_the_module():
    public = [name for name in polar_etl.__all__ if name.endswith("Error")]

    assert public
    for name in public:
        assert getattr(polar_etl, name) is getattr(errors, name)


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\r", "\x00", "\x7f", "\u202e", "\x9b"])
def test_describe_escapes_what_a_terminal_would_obey(text):
    shown = describe(text)

    assert shown.isprintable()
    assert shown[0] == shown[-1] != text[-1]


URLS = [
    "s3://key:s3cr3t@bucket/x.parquet",
    "s3://key:s3cr3t/with/slashes@bucket/x.parquet",
    "s3:/key:s3cr3t@bucket",
    "https://user:s3cr3t@@host/x?y=z",
    "https://host/x.parquet?X-Amz-Signature=s3cr3t&X-Amz-Date=1",
    "az://container/x?sig=s3cr3t",
    "postgresql://me:s3cr3t@host/base",
    f"s3://{'k' * 200}:s3cr3t@bucket",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("error", all_errors())
def test_no_error_holds_the_credentials_of_a_url(error, url):
    for text in (f"{url} is no file.", f"{describe(url)} and '{url}' are no files.", describe(url)):
        found = error(text)
        assert "s3cr3t" not in f"{found} {found!r} {found.args}"
        assert url.partition(":")[0] in str(found)
    assert "s3cr3t" not in describe(url, 30)


@pytest.mark.parametrize("text", ["a@b", "/data/x@y/z?.parquet", "12:30", "c:\\x@y", "what? no"])
def test_other_text_is_left_as_it_is(text):
    assert str(PolarEtlError(text)) == text


def test_describe_cuts_long_text():
    shown = describe("x" * 10_000, 50)

    assert len(shown) < 60
    assert "…" in shown


def test_describe_quotes_other_things():
    assert describe(7) == "'7'"
    assert describe("it's") == '"it\'s"'
