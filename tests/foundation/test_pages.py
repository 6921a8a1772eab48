"""What strangers write is seen, not obeyed."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.pages import environment, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;mine\x07\x1b[2J", "\u241b]0;mine\u2407\u241b[2J"),
        ("a\rb\x00\x7f", "a\u240db\u2400\u2421"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("if x:\u202e # \u2066end", "if x:\\u202e # \\u2066end"),
        ("a\u2028b\u2029c\ufeff", "a\\u2028b\\u2029c\\ufeff"),
        ("def f():\n\treturn 'é 日本 🦙'\n", "def f():\n\treturn 'é 日本 🦙'\n"),
    ],
)
def test_controls_are_made_visible(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_steers_a_terminal_or_turns_its_direction(text):
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\t\n"]
    assert not [c for c in shown if unicodedata.bidirectional(c) in ("RLE", "LRE", "RLO", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI")]
    assert visible(shown) == shown


def test_pages_escape_what_is_put_into_them():
    page = environment().from_string("<p>{{ text }}</p>")
    assert page.render(text="<script>&\"'") == "<p>&lt;script&gt;&amp;&#34;&#39;</p>"


def test_pages_show_what_is_put_into_them():
    page = environment().from_string("<p>{{ text }}{{ number }}{% for x in [text] %}{{ x | upper }}{% endfor %}</p>")
    assert page.render(text="a\u202e\x1b<", number=1) == "<p>a\\u202e\u241b&lt;1A\\u202e\u241b&lt;</p>"
