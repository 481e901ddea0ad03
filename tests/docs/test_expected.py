"""A page that is wrong is noticed: what differs by itself is let pass, and nothing else."""

from __future__ import annotations

import pytest

from docs.expected import Known

JOB = "01a20e02-72be-84c3-91b7-a32ea0ad4c3f"
OTHER = "01a20e05-131e-8a9b-8092-aab4b12a88f0"


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("1 job", "1 job\n"),
        ("a  b", "a\tb"),
        ("NAME   STATE", "NAME            STATE   "),
        ("50.9 ms", "1,200 ms"),
        ('"lateness_ms":48.475,', '"lateness_ms":0.4,'),
        ("2026-11-24T14:42:53.541083Z", "2027-01-01T00:00:00.000001Z"),
        ("11:42:16, late", "23:59:59, late"),
        ("{…}", '{"any": "thing"}'),
        ("a\n…\nz", "a\nb\nc\nz"),
        ("a\n…\nz", "a\nz"),
    ],
)
def test_what_varies_is_let_pass(written: str, printed: str) -> None:
    """Measured values, widths, and what a page leaves open."""
    assert Known().matches(written, printed)


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("1 job", "2 jobs"),
        ("1 job", "1 job\nand more"),
        ("1 job\nand more", "1 job"),
        ("2027-03-28T01:00:00.000000Z", "2027-03-28T02:00:00.000000Z"),
        ("2027-03-28T03:00:00+02:00", "2027-03-28T02:00:00+02:00"),
        ("{…,}", "{}"),
        ("a …", "a\nb"),
        ("3.5", "3.6"),
    ],
)
def test_what_is_wrong_is_told(written: str, printed: str) -> None:
    """Times of a schedule, counts, and lines too many or too few."""
    assert not Known().matches(written, printed)


def test_an_id_means_one_thing_on_a_page() -> None:
    """The page's id stands for the first that was printed in its place, in commands as well."""
    known = Known()
    assert known.matches(f"{JOB}\n{JOB}  active", f"{OTHER}\n{OTHER}  active")
    assert known.actual(f"duly job show {JOB}") == f"duly job show {OTHER}"
    assert known.matches(JOB, OTHER)
    assert not known.matches(JOB, JOB)
    assert not Known().matches(f"{JOB} {JOB}", f"{JOB} {OTHER}")


def test_a_token_is_known_by_its_middle_too() -> None:
    """As `duly token revoke` wants it."""
    known = Known()
    assert known.matches(f"duly_1f9a3c5b7d20_{'a' * 64}", f"duly_0123456789ab_{'b' * 64}")
    assert known.actual("revoke 1f9a3c5b7d20") == "revoke 0123456789ab"


def test_the_address_is_that_of_the_server() -> None:
    """Pages say the default port; the tests take a free one."""
    known = Known()
    known.address = "127.0.0.1:40000"
    assert known.matches("http://127.0.0.1:7350/docs", "http://127.0.0.1:40000/docs")
    assert known.actual("curl http://127.0.0.1:7350/") == "curl http://127.0.0.1:40000/"
