"""Rules of webhooks: what is refused, with the field; ids, signatures and sizes of events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from duly.core.errors import InvalidInput
from duly.core.model import CommandTask, Failure, Job, JobId, Output, Run, RunState, WorkerId
from duly.core.webhook import (
    MAX_BODY,
    WebhookRule,
    check_rules,
    cloud_event,
    event_id,
    key_of,
    origin_of,
    secret_text,
    signed_headers,
)

GOOD = {"url": "https://example.com/hook", "secret": secret_text(b"k" * 32)}


@pytest.mark.parametrize(
    ("field", "value", "pointer", "said"),
    [
        ("url", "ftp://example.com", "/webhook/0/url", "is not like https://"),
        ("url", "example.com/hook", "/webhook/0/url", "is not like https://"),
        ("url", "https://me:pw@example.com/", "/webhook/0/url", "user or password"),
        ("url", "https://example.com:99999/", "/webhook/0/url", "not an address"),
        ("url", "https://example.com/a b", "/webhook/0/url", "white space"),
        ("url", "https://example.com/#x", "/webhook/0/url", "fragment"),
        ("name", "two words", "/webhook/0/name", "letters, digits"),
        ("events", [], "/webhook/0/events", "names no event"),
        ("secret", "", "/webhook/0/secret", "duly webhook secret"),
        ("secret", "hunter2", "/webhook/0/secret", "is not whsec_"),
        ("secret", "whsec_!!", "/webhook/0/secret", "is not whsec_"),
        ("secret", ["whsec_aGVsbG8="], "/webhook/0/secret", "5 bytes, not 24 to 64"),
        ("secret_file", "keys", "/webhook/0/secret_file", "not both"),
    ],
)
def test_a_bad_rule_names_its_field(field: str, value: Any, pointer: str, said: str) -> None:
    """With what would be right; a secret is not told."""
    with pytest.raises(InvalidInput) as caught:
        check_rules([WebhookRule(**GOOD | {field: value})])
    assert caught.value.errors[0].pointer == pointer
    assert said in caught.value.errors[0].detail
    assert "hunter2" not in str(caught.value)


def test_names_are_unique_and_rules_bounded() -> None:
    """Metrics and `duly doctor` go by the name."""
    with pytest.raises(InvalidInput, match="two webhooks"):
        check_rules([WebhookRule(**GOOD, name="webhook-1"), WebhookRule(**GOOD)])
    with pytest.raises(InvalidInput, match="more than 50"):
        check_rules([WebhookRule(**GOOD)] * 51)
    check_rules([WebhookRule(**GOOD), WebhookRule(**GOOD)])


def test_the_signature_of_a_known_message() -> None:
    """The example of the Standard Webhooks specification."""
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "")
    body = b'{"test": 2432232314}'
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330_000_000, body, [key])
    assert headers["webhook-timestamp"] == "1614265330"
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_origin_hides_the_path() -> None:
    """It is often a secret."""
    assert origin_of("https://[::1]:8443/T0/s3cret?x=1") == "https://[::1]:8443"
    assert origin_of("https://hooks.example.com/T0/s3cret") == "https://hooks.example.com"


def test_ids_tell_events_apart() -> None:
    """The same for a repeat; another for another event, run, or retry."""
    run = Run(job_id=JobId("j"), scheduled_at=1, due_at=1, attempt=1)
    again = msgspec.structs.replace(run, attempt=2)
    assert event_id("failed", run) == event_id("failed", again)
    ids = [event_id("failed", run), event_id("late", run), event_id("retrying", run), event_id("retrying", again)]
    assert len(set(ids)) == 4
    assert all("." not in each for each in ids)


def test_no_event_is_larger_than_the_bound() -> None:
    """However large what a run has left is, and however it is escaped."""
    job = Job(
        id=JobId("0197aaaa-0000-7000-8000-000000000000"),
        task=CommandTask(argv=("x",)),
        schedule="now",
        created_at=0,
        updated_at=0,
        anchored_at=0,
        name="\x01" * 200,
        labels={f"{number:063}": "\x01" * 255 for number in range(64)},
    )
    run = Run(
        job_id=job.id,
        scheduled_at=1,
        due_at=1,
        state=RunState.FAILED,
        worker=WorkerId("w" * 255),
        result=msgspec.Raw(msgspec.json.encode("x" * MAX_BODY)),
        error=Failure(kind="exit", message="\x01" * 16_384, detail="\x01" * 16_384),
        outputs=tuple(Output(path=f"{n}" + "p" * 1_000, size=1, digest="sha256:" + "0" * 64) for n in range(1_000)),
    )
    body = cloud_event("failed", run, job, 1)
    assert len(body) <= MAX_BODY
    left_out = msgspec.json.decode(body)["data"]["left_out"]
    assert left_out == ["run/result", "run/attempts", "run/outputs", "run/error", "job/labels"]
