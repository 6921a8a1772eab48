"""From a snippet to a file that analyzers can read: dedented, parsed, and with the imports in front that its free names need.

Analyzers resolve names through imports, and a function taken out of its module has none: Bandit only looks at `yaml.load` where `yaml` is
imported. What is put in front takes whole lines, so that positions can be counted back.
"""

import ast
import textwrap
import warnings
from dataclasses import dataclass

_MODULES = """aiohttp base64 bottle cherrypy cPickle dill django flask ftplib hashlib hmac html httpx importlib io jinja2 joblib json
jsonpickle jwt ldap ldap3 logging lxml marshal MySQLdb numpy os pandas paramiko pexpect pickle platform psycopg2 pymysql pymongo random re
redis requests secrets shelve shlex shutil smtplib socket sqlalchemy sqlite3 ssl string subprocess sys tarfile telnetlib tempfile time
torch tornado urllib urllib2 urllib3 urlparse uuid werkzeug xmlrpc yaml zipfile"""
_MEMBERS = {
    "Crypto.Cipher": "AES ARC2 ARC4 Blowfish CAST DES DES3 PKCS1_OAEP PKCS1_v1_5",
    "Crypto.Hash": "MD2 MD4 MD5 SHA SHA1",
    "Crypto.PublicKey": "DSA RSA",
    "cryptography.hazmat.primitives": "ciphers hashes serialization",
    "cryptography.hazmat.primitives.ciphers": "Cipher algorithms modes",
    "cryptography.hazmat.primitives.asymmetric": "dsa ec rsa",
    "defusedxml": "defusedxml",
    "django.http": "HttpResponse HttpResponseRedirect JsonResponse StreamingHttpResponse FileResponse",
    "django.shortcuts": "render",
    "django.utils.html": "conditional_escape format_html format_html_join",
    "django.utils.safestring": "SafeString SafeText mark_safe",
    "django.views.decorators.csrf": "csrf_exempt",
    "flask": "Blueprint Flask Markup Response current_app jsonify make_response redirect render_template render_template_string request send_file send_from_directory session",
    "hashlib": "md5 sha1 sha224 sha256",
    "jinja2": "Environment FileSystemLoader Template",
    "lxml": "etree",
    "markupsafe": "escape",
    "subprocess": "PIPE Popen call check_call check_output getoutput getstatusoutput",
    "tempfile": "NamedTemporaryFile TemporaryDirectory TemporaryFile mkdtemp mkstemp mktemp",
    "urllib.request": "Request urlopen urlretrieve",
    "urllib.parse": "quote quote_plus unquote urlencode urljoin urlsplit",
    "werkzeug.utils": "safe_join secure_filename",
    "xml.dom": "minidom pulldom",
}
_STATEMENTS = {
    **{name: f"import {name}" for name in _MODULES.split()},
    **{name: f"from {module} import {name}" for module, names in _MEMBERS.items() for name in names.split()},
    "ElementTree": "import xml.etree.ElementTree as ElementTree",
    "ET": "import xml.etree.ElementTree as ET",
    "defusedxml": "import defusedxml",
    "np": "import numpy as np",
    "pd": "import pandas as pd",
    "xml": "import xml.dom.minidom, xml.etree.ElementTree, xml.sax",
    "sax": "from xml import sax",
}


@dataclass(frozen=True)
class Prepared:
    """A file for an analyzer; its line n is line n - `shift` of the snippet."""

    text: str
    shift: int


def prepare(source: str) -> Prepared | None:
    """The file to analyze, or None where `source` is no Python, however it is indented."""
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for text, shift in ((source, 0), (textwrap.dedent(source), 0), ("if True:\n" + source, 1)):
        tree = parse(text)
        if tree is not None:
            front = "; ".join(dict.fromkeys(_STATEMENTS[name] for name in sorted(_free(tree) & _STATEMENTS.keys())))
            return Prepared(f"{front}\n{text}" if front else text, shift + bool(front))
    return None


def stumbles_at(code: str) -> int | None:
    """The line, from 1 on, that Python's parser stumbles at; None if at none, 0 if it doesn't say where."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except SyntaxError as error:
            return error.lineno or 0
        except (ValueError, RecursionError, MemoryError):
            return 0
    return None


def parse(text: str) -> ast.Module | None:
    """A program's tree, without a word about what is odd in it; None where it isn't Python (as this Python reads it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are the snippet's own affair
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes; the last two: nested too deeply
            return None


def _free(tree: ast.Module) -> set[str]:
    """Names that are read somewhere and bound nowhere."""
    read, bound = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                bound.update(alias.asname or alias.name.partition(".")[0] for alias in aliases)
    return read - bound
