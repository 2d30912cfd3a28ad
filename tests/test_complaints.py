"""What libtiff and libjpeg print is heard; what anyone else prints goes where it should."""

from __future__ import annotations

import logging
import os
import threading
import warnings

import numpy as np
import pytest
from odd_files import encoded
from PIL import Image

from ibisagent.images.complaints import is_damaged_jpeg, overhearing
from ibisagent.images.picture_files import quiet

NOISE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8))


def test_lines_of_the_libraries_are_kept_and_others_passed_on(capfd: pytest.CaptureFixture) -> None:
    with overhearing() as heard:
        os.write(2, b"Fax4Decode: Bad code word at line 5 of strip 0 (x 11).\n")
        os.write(2, b"Loading weights: 50 %\n")
        os.write(2, b"Corrupt JPEG data: premature end of data segment\n")
        os.write(2, b"TIFFReadDirectory: Warning, Unknown field with tag 9.\n")
    assert [line.split(":")[0] for line in heard] == ["Fax4Decode", "Corrupt JPEG data"]
    assert capfd.readouterr().err == "Loading weights: 50 %\n"


def test_stderr_is_given_back_after_an_error(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(RuntimeError), overhearing():
        raise RuntimeError
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_cut_and_closed_are_damaged_and_padded_ones_not(progressive: bool) -> None:
    whole = encoded(NOISE, "JPEG", progressive=progressive)
    assert not is_damaged_jpeg(whole)
    assert not is_damaged_jpeg(whole + bytes(500))
    assert not is_damaged_jpeg(whole[:-2] + bytes(7) + whole[-2:])
    for share in (0.4, 0.6, 0.8, 0.95):
        assert is_damaged_jpeg(whole[: int(share * len(whole))] + b"\xff\xd9")


def test_quiet_puts_everything_back_in_every_thread() -> None:
    logger, filters = logging.getLogger("pydicom"), list(warnings.filters)
    before = logger.level
    inside = threading.Barrier(2, timeout=0.2)  # breaks: two threads are never inside together
    met = []

    def enter() -> None:
        with quiet():
            try:
                inside.wait()
                met.append(True)
            except threading.BrokenBarrierError:
                pass

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [] and logger.level == before and warnings.filters == filters
