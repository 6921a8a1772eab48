"""What a test needs that may not be there."""

import importlib.util

import pytest

from judges.sandbox import backends

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
needs_sandbox = pytest.mark.skipif(not backends(), reason="no sandbox works here (bubblewrap, or unshare with user namespaces)")
