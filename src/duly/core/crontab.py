"""Crontabs → jobs, as cron itself would run them. Pure: text in, entries and problems out.

    # Nightly dump                          the comment above an entry names it
    PATH=/usr/local/bin:/usr/bin:/bin       goes into the environment of the entries below
    CRON_TZ=Europe/Berlin                   their time zone (TZ, too, if CRON_TZ is not set)
    30 2 * * *  root  pg_dump shop > /backup/shop.sql       the user's name stands in system crontabs only
    0 8 * * 1   mail -s Report ops@example.org%Good morning,%all is well.     after %: its input

What cron does and a scheduler with workers cannot do the same way is told as a problem (nothing is imported for that
line) or as a note (it is, but see).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from duly.core.errors import DulyError
from duly.core.schedule import parse_schedule

DEFAULT_PATH: Final = "/usr/bin:/bin"  # what cron gives
TIMEOUT: Final = "1d"  # cron has none; a job of duly's ends some time

_SETTING: Final = re.compile(r"""\s*(["']?)([A-Za-z_][A-Za-z0-9_]*)\1\s*=\s*(.*?)\s*""", re.ASCII)
_NICKNAME: Final = re.compile(r"\s*(@[A-Za-z]+)\s+(.*)")
_ENTRY: Final = re.compile(r"\s*((?:\S+\s+){5})(.*)")
_USER: Final = re.compile(r"([A-Za-z0-9_.+:$/-]+)\s+(.*)")
_SPREAD: Final = re.compile(r"(\d+)?~(\d+)?", re.ASCII)
_NICKNAMES: Final = {
    "@yearly": "@yearly",
    "@annually": "@yearly",
    "@monthly": "@monthly",
    "@weekly": "@weekly",
    "@daily": "@daily",
    "@midnight": "@daily",
    "@hourly": "@hourly",
}
_BOUNDS: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_OWN: Final = ("MAILTO", "MAILFROM", "CRON_TZ", "RANDOM_DELAY", "SHELL")  # cron's own, not the command's
_LONGEST_NAME: Final = 200


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line that is a job. `key` stays the same as long as file and entry do: importing again makes nothing new."""

    line: int
    key: str
    name: str
    schedule: str
    timezone: str
    command: str
    argv: list[str]
    env: dict[str, str]
    stdin: str | None = None
    user: str | None = None
    mailto: str | None = None
    jitter: str = "0s"

    def job(self, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The body of `POST /v1/jobs`: like cron it neither retries nor catches up, and lets runs overlap."""
        task: dict[str, Any] = {"kind": "command", "argv": self.argv, "env": self.env}
        if self.stdin is not None:
            task["stdin"] = self.stdin
        return {
            "name": self.name,
            "labels": dict(labels or {}),
            "task": task,
            "schedule": self.schedule,
            "timezone": self.timezone,
            "jitter": self.jitter,
            "retry": {"max_attempts": 1},
            "misfire": "skip",
            "overlap": "allow",
            "timeout": TIMEOUT,
        }


class Remark(msgspec.Struct, frozen=True):
    """What to know about a line (from 1)."""

    line: int
    text: str


class Crontab(msgspec.Struct, frozen=True):
    """What a crontab holds. `problems` are lines that cannot be imported, `notes` what changes for those that are."""

    entries: list[Entry]
    problems: list[Remark]
    notes: list[Remark]


def parse_crontab(text: str, *, identity: str, system: bool = False, timezone: str = "UTC") -> Crontab:
    """Reads a crontab; `system` ones (/etc/crontab, /etc/cron.d/*) have a column with the user.

    `identity` names the file, for the keys; `timezone` holds where the file sets none. Raises nothing: what is wrong
    with a line is in `problems`.
    """
    reader = _Reader(identity, system, timezone)
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        reader.read(number, line)
    return Crontab(reader.entries, reader.problems, reader.notes)


class _Unreadable(Exception):
    """Why a line is no entry."""


class _Reader:
    """Goes through the lines; settings and comments hold for what follows them."""

    def __init__(self, identity: str, system: bool, timezone: str) -> None:
        self.entries: list[Entry] = []
        self.problems: list[Remark] = []
        self.notes: list[Remark] = []
        self._identity = identity
        self._system = system
        self._timezone = timezone
        self._settings: dict[str, str] = {}
        self._comment: str | None = None
        self._seen: dict[str, int] = {}
        self._noted: set[str] = set()

    def read(self, number: int, line: str) -> None:
        """Takes the next line."""
        text = line.strip()
        if not text:
            self._comment = None
            return
        if text.startswith("#"):
            comment = text.lstrip("#").strip()
            if _looks_like_entry(comment):
                self._comment = None  # what was said above is about this
            elif self._comment is None and comment:
                self._comment = comment
            return
        setting = _SETTING.fullmatch(line)
        if setting is not None:
            self._set(number, setting.group(2), _unquoted(setting.group(3)))
            return
        above, self._comment = self._comment, None
        try:
            self.entries.append(self._entry(number, line, above))
        except _Unreadable as problem:
            self.problems.append(Remark(number, str(problem)))

    def _set(self, number: int, name: str, value: str) -> None:
        self._settings[name] = value
        if name == "MAILTO" and value:
            self._note(number, f"output is kept with each run and not mailed to {value}")

    def _note(self, number: int, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self.notes.append(Remark(number, text))

    def _entry(self, number: int, line: str, comment: str | None) -> Entry:
        times, rest = self._times(line)
        user: str | None = None
        if self._system:
            match = _USER.fullmatch(rest.strip())
            if match is None:
                raise _Unreadable("no user before the command; is this a user's crontab (then without --system)?")
            user, rest = match.group(1), match.group(2)
            self._note(number, f"runs as the worker's user, not as {user}")
        command, stdin = _split_input(rest.strip())
        if not command:
            raise _Unreadable("no command")
        timezone = self._settings.get("CRON_TZ") or self._settings.get("TZ") or self._timezone
        schedule = " ".join(_spread(field, *bounds) for field, bounds in zip(times, _BOUNDS, strict=False))
        _check(schedule, timezone)
        shell = self._settings.get("SHELL", "/bin/sh")
        env = {name: value for name, value in self._settings.items() if name not in _OWN}
        entry = Entry(
            line=number,
            key="",
            name=(comment or command)[:_LONGEST_NAME],
            schedule=schedule,
            timezone=timezone,
            command=command,
            argv=[shell, "-c", command],
            env={"PATH": DEFAULT_PATH, "SHELL": shell, **env},
            stdin=stdin,
            user=user,
            mailto=self._settings.get("MAILTO"),
            jitter=self._jitter(),
        )
        return msgspec.structs.replace(entry, key=self._key(entry))

    def _times(self, line: str) -> tuple[list[str], str]:
        nickname = _NICKNAME.fullmatch(line)
        if nickname is not None:
            word, rest = nickname.group(1).lower(), nickname.group(2)
            if word == "@reboot":
                raise _Unreadable("@reboot is not supported: no time tells when a machine starts; use a systemd unit")
            if word not in _NICKNAMES:
                raise _Unreadable(f"{word} is not a time that cron knows; it knows {', '.join(_NICKNAMES)}")
            return [_NICKNAMES[word]], rest
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise _Unreadable("neither a setting (NAME=value) nor five time fields and a command")
        return match.group(1).split(), match.group(2)

    def _jitter(self) -> str:
        minutes = self._settings.get("RANDOM_DELAY", "")
        return f"{int(minutes)}m" if minutes.isascii() and minutes.isdigit() and len(minutes) < 5 else "0s"

    def _key(self, entry: Entry) -> str:
        content = hashlib.blake2b(msgspec.json.encode(entry.job()), digest_size=12).hexdigest()
        self._seen[content] = count = self._seen.get(content, 0) + 1
        place = hashlib.blake2b(self._identity.encode(), digest_size=6).hexdigest()
        return f"crontab:{place}:{content}" + (f":{count}" if count > 1 else "")


def _check(schedule: str, timezone: str) -> None:
    try:
        parse_schedule(schedule, timezone=timezone, anchor=0)
    except DulyError as error:
        raise _Unreadable(error.detail) from None


def _looks_like_entry(comment: str) -> bool:
    """True for a job that was commented out, a setting, or the drawing that explains the fields."""
    if _SETTING.fullmatch(comment) or comment.startswith(("@", "|", "*", "m h", ".-", "┌", "│")):
        return True
    match = _ENTRY.fullmatch(comment)
    return (
        match is not None
        and all(re.fullmatch(r"[\d*,/A-Za-z~-]+", field) for field in match.group(1).split())
        and (match.group(1)[0] in "*0123456789")
    )


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _split_input(text: str) -> tuple[str, str | None]:
    r"""Cron's `%`: what follows the first one is input, further ones are line ends; `\%` is a plain one."""
    parts = ["".join(part) for part in _parts(text)]
    if len(parts) == 1:
        return parts[0], None
    return parts[0].rstrip(), "\n".join(parts[1:]).removesuffix("\n") + "\n"


def _parts(text: str) -> Iterator[list[str]]:
    part: list[str] = []
    escaped = False
    for letter in text:
        if letter == "%" and not escaped:
            yield part
            part = []
        else:
            if letter == "%":
                part.pop()
            part.append(letter)
        escaped = letter == "\\" and not escaped
    yield part


def _spread(field: str, least: int, most: int) -> str:
    """`0~30`, a time drawn once by OpenBSD's and newer crons, is `H(0-30)` here."""

    def spread(match: re.Match[str]) -> str:
        return f"H({match.group(1) or least}-{match.group(2) or most})"

    return _SPREAD.sub(spread, field)
