"""TensorFlow, which is imported from here only: without its greetings, and without the GPUs, which are JAX's."""

import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keep back what native code writes to stderr; after an error it is shown."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            with os.fdopen(os.dup(kept), "wb") as stderr:
                shutil.copyfileobj(said, stderr)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


with _muted():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


@functools.cache
def text() -> ModuleType:
    """TensorFlow's operations on texts."""
    with _muted():
        import tensorflow_text
    return tensorflow_text


__all__ = ["text", "tf"]
