"""What decoders in C say about damage: they print it and hand out a partly grey picture.

Pillow passes neither libtiff's nor libjpeg's complaints on, so the process's stderr is listened
to while they work. One thread at a time can do that; lines that are not theirs are passed on.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

import numpy as np

_ONE_AT_A_TIME = threading.Lock()
_LIBRARIES = re.compile(r"(_?TIFF\w*|\w*Decode\w*|\w*Setup\w*|JPEGLib\w*|tempfile\.tif|MissingRequired)\s*:")
_JPEG = re.compile(r"(Corrupt JPEG data|Premature end of JPEG file|Invalid SOS|Warning: unknown JFIF)")
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes")
_HARMLESS_BYTES = 64  # of padding that encoders leave before a marker


@contextlib.contextmanager
def overhearing() -> Iterator[list[str]]:
    """Keep libtiff's and libjpeg's lines off stderr; the list is filled at the end."""
    heard: list[str] = []
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as store:
        try:
            real = os.dup(2)
        except OSError:  # there is no stderr: nothing is heard, and nobody is disturbed
            yield heard
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(store.fileno(), 2)
        try:
            yield heard
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            store.seek(0)
            for line in store.read().splitlines(keepends=True):
                text = line.decode(errors="replace").strip()
                if not (_LIBRARIES.match(text) or _JPEG.match(text)):
                    os.write(2, line)
                elif "Warning" not in text:
                    heard.append(text)


def is_damaged_jpeg(data: bytes) -> bool:
    """Whether libjpeg has to make up pixels. Decodes at an eighth of the size, through OpenCV."""
    import cv2

    with overhearing() as heard:
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    for line in heard:
        extraneous = _EXTRANEOUS.match(line)
        if not extraneous or int(extraneous[1]) > _HARMLESS_BYTES:
            return True
    return False
