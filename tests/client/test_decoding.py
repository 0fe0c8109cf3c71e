"""Pixels whose decoder dies take nobody along."""

from __future__ import annotations

import os
import signal
import subprocess
import venv
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from equipoise_client.errors import UnreadableImage
from equipoise_client.images import decoding, read_image
from equipoise_client.images.decoding import Decoder, DecoderHung

LOSSLESS = "MR_small_jpeg_ls_lossless.dcm"


def content_of(name: str) -> bytes:
    return Path(pydicom.data.get_testdata_file(name, download=False)).read_bytes()


def test_pixels_that_end_gdcm_are_an_error_and_the_next_are_read(tmp_path, monkeypatch):
    """Twice the rows that are there: GDCM throws what nobody catches."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file(LOSSLESS, download=False))
    whole = dataset.pixel_array
    dataset.Rows *= 2
    monkeypatch.setattr(decoding, "_check_codestreams", lambda dataset: None)  # would notice
    dataset.save_as(tmp_path / "broken.dcm")
    (tmp_path / "whole.dcm").write_bytes(content_of(LOSSLESS))
    for _ in range(2):
        with pytest.raises(UnreadableImage, match=r"broken\.dcm.*DecoderDied"):
            read_image(tmp_path / "broken.dcm")
        np.testing.assert_array_equal(read_image(tmp_path / "whole.dcm").pixels[0], whole)


def test_packages_are_found_wherever_this_process_finds_them(tmp_path, monkeypatch):
    """As a user's own: the interpreter by itself, isolated, has none."""
    venv.create(tmp_path / "bare", symlinks=True)
    bare = tmp_path / "bare/bin/python"
    assert subprocess.run([bare, "-I", "-c", "import numpy"], capture_output=True, check=False).returncode == 1
    monkeypatch.setattr(decoding.sys, "executable", str(bare))
    decoder = Decoder()
    try:
        assert decoder.ask(content_of(LOSSLESS)).shape == (64, 64)
    finally:
        decoder.close()


def test_a_decoder_that_was_killed_is_started_again():
    decoder = Decoder()
    try:
        first = decoder.ask(content_of(LOSSLESS))
        assert decoder._process is not None
        os.kill(decoder._process.pid, signal.SIGKILL)
        decoder._process.wait(30)
        np.testing.assert_array_equal(decoder.ask(content_of(LOSSLESS)), first)
    finally:
        decoder.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_decoder_lives_on_when_all_of_a_service_are_told_to_stop(number):
    """Its gateway finishes the study that it is at."""
    decoder = Decoder()
    try:
        first = decoder.ask(content_of(LOSSLESS))
        running = decoder._process
        assert running is not None
        os.kill(running.pid, number)
        np.testing.assert_array_equal(decoder.ask(content_of(LOSSLESS)), first)
        assert decoder._process is running
    finally:
        decoder.close()
    assert running.returncode == -signal.SIGKILL


def test_pixels_that_take_too_long_are_not_tried_again(monkeypatch):
    monkeypatch.setattr(decoding, "SECONDS", 0.0)
    decoder = Decoder()
    try:
        os.kill(decoder._running().pid, signal.SIGSTOP)  # else it may be quicker than the clock
        with pytest.raises(DecoderHung, match="within 0 s"):
            decoder.ask(content_of(LOSSLESS))
    finally:
        decoder.close()


def test_what_a_decoder_raises_comes_over_by_name():
    """The message stays there: it may quote what stands in the file."""
    decoder = Decoder()
    try:
        with pytest.raises(ValueError, match=r"^InvalidDicomError$"):
            decoder.ask(b"no DICOM")
    finally:
        decoder.close()
