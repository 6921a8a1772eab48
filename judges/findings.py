"""What a judge finds, or that it failed: one schema for every tool, families of CWEs, and the rules that are noise."""

from dataclasses import dataclass

from foundation.errors import UserError


class JudgeError(UserError, RuntimeError):
    """A tool is missing here, or broke down."""


@dataclass(frozen=True)
class Finding:
    """One weakness at one place. Lines count from 1 in the source as it was given."""

    judge: str  # "bandit", "semgrep", "codeql", "codeshield"
    rule: str  # the tool's own name of the rule
    cwe: str  # "CWE-89"; "" where the rule names none
    line: int
    end_line: int
    severity: str  # "low", "medium", "high"
    message: str


_FAMILIES = (
    {20, 1284, 1286, 1287},  # input validation: said of nearly everything, so it matches nothing but itself
    {22, 23, 36, 73, 99, 434, 641},  # paths and file names
    {59, 61, 367, 377, 378, 379},  # temporary files, links and races
    {74, 77, 78, 88},  # commands
    {79, 80, 83, 87, 116},  # cross-site scripting
    {89, 564, 943},  # queries
    {90},  # LDAP
    {91, 643, 652},  # XPath, XML injection
    {93, 113, 117, 644},  # lines, headers, logs
    {94, 95, 96, 1336},  # code and templates
    {200, 209, 215, 489, 497, 532, 11},  # exposed information, debug modes
    {256, 257, 260, 261, 311, 312, 313, 315, 319, 522, 523, 538},  # unprotected secrets, at rest and in transit
    {259, 321, 547, 798},  # hard-coded secrets
    {269, 250, 266, 276, 277, 281, 284, 285, 306, 425, 639, 732, 862, 863},  # permissions and access control
    {295, 296, 297, 599},  # certificates
    {326, 327, 328, 329, 323, 325, 759, 760, 780, 916, 1240},  # cryptography
    {330, 331, 335, 337, 338, 340, 341},  # randomness
    {345, 347, 353, 354, 494, 829},  # authenticity of data and code
    {352},
    {384, 488, 613},  # sessions
    {400, 770, 776, 789, 834, 835, 1050, 1333, 1176},  # resources
    {502, 915},  # deserialisation, mass assignment
    {601},
    {605, 668, 1327},  # binding to every interface
    {611, 827},  # XML entities
    {614, 1004, 1275},  # cookies
    {203, 208},  # timing
    {248, 252, 390, 391, 703, 754, 755},  # errors
    {918, 441},
    {521, 620, 640},  # password rules
    {942, 346},  # cross-origin
)
_FAMILY_OF = {f"CWE-{number}": frozenset(f"CWE-{n}" for n in members) for members in _FAMILIES for number in members}


def family(cwe: str) -> frozenset[str]:
    """The CWEs by which tools and data sets call the same kind of weakness, `cwe` among them ("CWE-089" is "CWE-89")."""
    cwe = normal(cwe)
    return _FAMILY_OF.get(cwe, frozenset([cwe]))


def same_family(a: str, b: str) -> bool:
    """Whether two CWEs name the same kind of weakness; an empty name is of no kind."""
    return bool(a and b) and normal(a) in family(b)


def normal(cwe: str) -> str:
    """ "cwe-089", "089" and "CWE-89" as "CWE-89".

    Raises:
      ValueError: there is no number in it.
    """
    number = cwe.strip().upper().removeprefix("CWE").lstrip("-_: ")
    if not number.isascii() or not number.isdigit():
        raise ValueError(f'{cwe!r} is no CWE; write it like "CWE-89"')
    return f"CWE-{int(number)}"


NOISE = {
    "B101": "an assertion: fine in tests, and what is asserted is seldom about security",
    "B110": "try, except, pass: style",
    "B112": "try, except, continue: style",
    "B113": "a request without a timeout: availability, not security",
    "B311": "random: nearly always not for secrets; semgrep's insecure-random asks what it is for",
    "B403": "import of pickle: not yet its use",
    "B404": "import of subprocess: not yet its use",
    "B405": "import of xml.etree: not yet its use",
    "B406": "import of xml.sax: not yet its use",
    "B407": "import of xml.dom.expatbuilder: not yet its use",
    "B408": "import of xml.dom.minidom: not yet its use",
    "B409": "import of xml.dom.pulldom: not yet its use",
    "B410": "import of lxml: not yet its use",
    "B411": "import of xmlrpc: not yet its use",
    "B413": "import of Crypto: takes pycryptodome for the dead pycrypto",
    "B603": "subprocess without a shell: that is the fix of command injection",
    "B607": "a program by its name: likewise",
    "insecure-crypto-prng-random": "every use of random; Meta's detector has it switched off since it made CyberSecEval",
    "B701": "jinja2.Environment: semgrep's autoescape-off also reads options that are given as a dict",
}
"""Rules that are left out unless asked for, and why."""
