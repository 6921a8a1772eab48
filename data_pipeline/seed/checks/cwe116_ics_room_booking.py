import datetime
import re

START = datetime.datetime(2026, 3, 2, 9, 0)
END = datetime.datetime(2026, 3, 2, 10, 30)


def functional(m):
    lines = m.booking_event("42@rooms", START, END, " Budget ", "Bring the plan.").split("\r\n")
    assert lines[0] == "BEGIN:VCALENDAR" and lines[-2:] == ["END:VCALENDAR", ""]
    assert "SUMMARY:Budget" in lines and "DESCRIPTION:Bring the plan." in lines
    assert "DTSTART:20260302T090000Z" in lines and "DTEND:20260302T103000Z" in lines


def exploit(m):
    note = "Agenda\r\nATTACH:https://evil.example/agenda.exe\nEND:VEVENT\rBEGIN:VEVENT"
    lines = re.split(r"\r\n|\r|\n", m.booking_event("42@rooms", START, END, "Budget", note))
    assert lines.count("BEGIN:VEVENT") == 1
    assert not any(line.startswith("ATTACH") for line in lines)
