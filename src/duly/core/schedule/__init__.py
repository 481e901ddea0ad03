"""Schedules: strings → values that say when a job fires. Pure; every answer is bounded.

parse        text and options → Schedule             value        Schedule, Occurrence, preview
cron         cron expressions                        recurrence   RRULE as written; recurring: as meant
local_rule   wall times → instants, by dst mode      elapsed      rates and delays, without days off
days         sets of dates, days off                 zones        offsets and their changes
describe     English
"""

from duly.core.schedule.local_rule import Dst
from duly.core.schedule.parse import parse_schedule
from duly.core.schedule.value import Kind, Occurrence, Schedule, preview

__all__ = ["Dst", "Kind", "Occurrence", "Schedule", "parse_schedule", "preview"]
