"""What tuspy does, against the real `ferry up`: a file whole, in chunks, and resumed.

Run by scripts/test; FERRY_BIN names the binary.
"""

import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

KIB = 1024
MIB = 1024 * KIB
# Generous, so that a busy machine does not fail a test; nothing waits this long when all is well.
DEADLINE_SECONDS = 30
TEST_SECONDS = 90
POLL_SECONDS = 0.05
TARGETS = ["dex", "edav"]

# One upload of the same file by a process that is killed after the first chunk was acknowledged.
KILLED_SENDER = """
import os, signal, sys
from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage
url, path, storage, chunk_bytes = sys.argv[1:]
uploader = TusClient(url).uploader(
    path, chunk_size=int(chunk_bytes), store_url=True, url_storage=FileStorage(storage),
    metadata={"filename": "from a killed process.bin"})
uploader.upload_chunk()
os.kill(os.getpid(), signal.SIGKILL)
"""


class Ferry:
    """One `ferry up` on a free port, in a folder of its own."""

    def __init__(self):
        binary = os.environ.get("FERRY_BIN")
        if not binary:
            raise AssertionError("FERRY_BIN must name the ferry binary; scripts/test sets it")
        self.folder = Path(tempfile.mkdtemp(prefix="ferry-tuspy-")).resolve()
        self.data = self.folder / "data"
        self.process = None
        try:
            with open(self.folder / "log", "wb") as log:
                self.process = subprocess.Popen(
                    [binary, "up", "--data", self.data, "--listen", "127.0.0.1:0"],
                    # Nothing of the caller's environment, which might hold settings of Ferry.
                    env={"PATH": os.environ["PATH"], "RUST_LOG": "info", "AWS_EC2_METADATA_DISABLED": "true"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            self.files = self._ready()
        except BaseException:
            if self.process:
                self.process.kill()
                self.process.wait()
                self.process.stdout.close()
            print((self.folder / "log").read_text(errors="replace"), file=sys.stderr)
            shutil.rmtree(self.folder)
            raise

    def _ready(self):
        """The URL of the line `ready: URL`."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        output = b""
        while True:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise AssertionError(f"ferry up was not ready after {DEADLINE_SECONDS} s")
            piece = os.read(self.process.stdout.fileno(), 4096)
            if not piece:
                raise AssertionError(f"ferry up ended before it was ready: {self.process.wait()}")
            output += piece
            ready = re.search(rb"^ready: (http://127\.0\.0\.1:[1-9]\d*/files/)\n", output, re.MULTILINE)
            if ready:
                return ready[1].decode()

    def stop(self):
        """Ends it as an operator would, and sees that it ends well."""
        self.process.terminate()
        try:
            status = self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"ferry up was still running {DEADLINE_SECONDS} s after SIGTERM") from None
        finally:
            self.process.stdout.close()
        log = (self.folder / "log").read_text(errors="replace")
        shutil.rmtree(self.folder)
        if status != 0:
            raise AssertionError(f"exit status {status} of ferry up after SIGTERM; its log:\n{log}")

    def info(self, upload_url):
        """`/info` of an upload."""
        upload_id = urllib.parse.urlsplit(upload_url).path.rpartition("/")[2]
        with urllib.request.urlopen(urllib.parse.urljoin(self.files, f"/info/{upload_id}")) as response:
            return json.load(response)

    def copies(self, upload_url):
        """Waits until every target has the upload; the bytes of each copy, by target."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            info = self.info(upload_url)
            deliveries = info["deliveries"] or []
            failed = [delivery for delivery in deliveries if delivery["status"] == "FAILURE"]
            if failed:
                raise AssertionError(f"deliveries failed: {failed}")
            if deliveries and all(delivery["status"] == "SUCCESS" for delivery in deliveries):
                return {delivery["name"]: Path(delivery["location"]).read_bytes() for delivery in deliveries}
            if time.monotonic() > deadline:
                raise AssertionError(f"not delivered after {DEADLINE_SECONDS} s: {info}")
            time.sleep(POLL_SECONDS)


def pattern(seed, length):
    """Bytes that depend on seed and position, so that a shifted, doubled or swapped piece is noticed."""
    blocks = (hashlib.sha256(f"{seed}:{block}".encode()).digest() for block in range(length // 32 + 1))
    return b"".join(blocks)[:length]


class Tuspy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.ferry = Ferry()
        cls.addClassCleanup(cls.ferry.stop)
        folder = tempfile.TemporaryDirectory(prefix="ferry-tuspy-files-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)

    def setUp(self):
        # tuspy itself waits for an answer without end.
        def late(*_):
            raise TimeoutError(f"the test was still running after {TEST_SECONDS} s")

        signal.signal(signal.SIGALRM, late)
        signal.alarm(TEST_SECONDS)
        self.addCleanup(signal.alarm, 0)

    def file(self, name, length):
        """A new file; its path and its bytes."""
        path = self.folder / f"{name}.bin"
        content = pattern(name, length)
        path.write_bytes(content)
        return str(path), content

    def uploader(self, path, **options):
        """No retries: what fails fails the test."""
        return TusClient(self.ferry.files).uploader(path, metadata={"filename": "from tuspy.bin"}, **options)

    def storage(self, name):
        """A file in which tuspy keeps the URLs of uploads."""
        storage = FileStorage(str(self.folder / f"{name}.json"))
        self.addCleanup(storage.close)
        return storage

    def assert_delivered(self, upload_url, content):
        """Every target has exactly the bytes that were sent."""
        copies = self.ferry.copies(upload_url)
        self.assertEqual(sorted(copies), TARGETS)
        for target, copy in copies.items():
            # Not assertEqual: it would print megabytes.
            self.assertTrue(copy == content, f"the copy in {target} is the file that was sent, byte for byte")

    def test_a_file_is_sent_whole(self):
        path, content = self.file("whole", 3 * MIB + 7)
        uploader = self.uploader(path)
        uploader.upload()
        self.assertEqual(uploader.offset, len(content))
        self.assert_delivered(uploader.url, content)

    def test_a_file_is_sent_in_chunks(self):
        path, content = self.file("chunked", 2 * MIB + 100)
        uploader = self.uploader(path, chunk_size=512 * KIB)
        offsets = []
        while uploader.offset < len(content):
            uploader.upload_chunk()
            offsets.append(uploader.offset)
        self.assertEqual(offsets, [512 * KIB, 1024 * KIB, 1536 * KIB, 2048 * KIB, len(content)])
        self.assert_delivered(uploader.url, content)

    def test_an_empty_file_is_sent(self):
        path, content = self.file("empty", 0)
        uploader = self.uploader(path)
        uploader.upload()
        self.assert_delivered(uploader.url, content)

    def test_a_file_without_metadata_is_sent(self):
        """tuspy then sends an empty `Upload-Metadata`, which other servers refuse."""
        path, content = self.file("nameless", 1000)
        uploader = TusClient(self.ferry.files).uploader(path)
        uploader.upload()
        self.assert_delivered(uploader.url, content)

    def test_an_upload_is_resumed_by_its_url(self):
        path, content = self.file("resumed", 4 * MIB)
        first = self.uploader(path, chunk_size=MIB)
        first.upload(stop_at=2 * MIB)

        second = self.uploader(path, url=first.url)
        self.assertEqual(second.offset, 2 * MIB, "HEAD tells what was acknowledged")
        second.upload()
        self.assert_delivered(first.url, content)

    def test_an_upload_of_a_killed_process_is_resumed_by_another(self):
        path, content = self.file("killed", 4 * MIB)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_SENDER, self.ferry.files, path, str(self.folder / "urls.json"), str(MIB)],
            timeout=DEADLINE_SECONDS,
        )
        self.assertEqual(killed.returncode, -signal.SIGKILL)

        second = self.uploader(path, store_url=True, url_storage=self.storage("urls"))
        self.assertEqual(second.offset, MIB, "the stored URL was found, and HEAD tells what was acknowledged")
        second.upload()
        self.assert_delivered(second.url, content)


if __name__ == "__main__":
    # tuspy leaves the files open that it reads, and Python would warn of each.
    unittest.main(warnings="ignore")
