"""Fetching one file over HTTP: in parallel ranges, resumable at any moment, named only when its SHA-256 is right.

A transfer is one thread that watches (journal, progress, end) and several that receive. A receiving thread claims a
range that is missing and that nobody receives, asks for it, judges the answer, and writes what comes; when something
goes wrong, the claim ends and what has come stays. From a server without ranges one connection takes the whole file.
"""

from __future__ import annotations

import math
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx2

from detronome.data.download.answers import (
    Answer,
    RefusedError,
    TransferError,
    WrongAnswerError,
    is_web_page,
    judge_answer,
)
from detronome.data.download.byte_ranges import ByteRange, ByteRanges
from detronome.data.download.events import Listener, Noticed, Progressed, Stage, ignore
from detronome.data.download.part_file import PartFile
from detronome.errors import DataError, Problem
from detronome.runtime.files import sha256_of

__all__ = ["TransferOptions", "fetch", "is_same_file"]

_MAX_RESTARTS = 3
_MAX_WRONG_ANSWERS = 3
_ATTEMPTS_TO_REACH = 3
_MAX_BACKOFFS = 16
_PROGRESS_INTERVAL_S = 0.1
_SAME_NOTICE_INTERVAL_S = 10.0
_JOIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """How a transfer behaves; the defaults suit files of gigabytes on any network."""

    connections: int = 8
    """Ranges received at the same time."""
    connect_timeout_s: float = 15.0
    stall_timeout_s: float = 30.0
    """A connection that brings nothing, or hardly anything, for this long is made anew."""
    min_bytes_per_s: float = 1024.0
    """What `hardly anything` is, on average over `stall_timeout_s`."""
    max_attempts: int = 8
    """Failures in a row, without progress of any connection, before the transfer gives up."""
    progress_bytes: int = 64 * 2**10
    """New bytes that count as progress."""
    backoff_s: float = 0.5
    """Pause before the first repetition; it doubles up to `max_backoff_s`."""
    max_backoff_s: float = 30.0
    max_retry_after_s: float = 300.0
    """The longest wait that a server may ask for."""
    min_piece_bytes: int = 2**20
    max_piece_bytes: int = 32 * 2**20
    """Bounds for the range of one request."""
    journal_interval_s: float = 1.0
    """A crash costs at most the bytes of this time."""


def fetch(
    urls: str | Sequence[str],
    destination: Path,
    *,
    sha256: str,
    size_bytes: int,
    options: TransferOptions | None = None,
    on_event: Listener = ignore,
) -> int:
    """Bring a file to `destination`, and return how many bytes were received for that.

    What an earlier, interrupted call has received is used. A file that is there already is verified and kept.

    Args:
        urls: addresses of the same file, tried in this order.
        destination: the name it gets, once it is complete and verified.
        sha256: of the file, in hexadecimal; or its first digits, where no more is published.
        size_bytes: of the file.
        options: patience and parallelism.
        on_event: told progress and notices, from the calling thread.

    Raises:
        DataError: no address gave the file; says what each did instead. What was received is kept.
    """
    addresses = [urls] if isinstance(urls, str) else list(urls)
    if destination.exists() or destination.is_symlink():
        if is_same_file(destination, sha256=sha256, size_bytes=size_bytes, on_event=on_event):
            return 0
        raise DataError(
            "there is another file where the download should go",
            where=str(destination),
            fix="move it away, and run the same command again",
        )
    problems: list[Problem] = []
    received = 0
    with PartFile(destination, size_bytes=size_bytes, sha256=sha256) as part:
        for url in addresses:
            source = _Source(url, part, destination.name, options or TransferOptions(), on_event)
            try:
                source.bring(sha256)
            except RefusedError as refusal:
                problems.append(Problem(what=f"{destination.name}: {refusal.reason}", where=url, fix=refusal.fix))
            else:
                part.publish()
                return received + source.received_bytes
            received += source.received_bytes
    raise DataError(problems)


def is_same_file(path: Path, *, sha256: str, size_bytes: int, on_event: Listener = ignore) -> bool:
    """Return whether a file has this size and SHA-256; tells progress, as it may take a minute."""
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    report = _progress_reporter(path.name, "verify", size_bytes, on_event)
    return sha256_of(path, report).startswith(sha256)


def _progress_reporter(name: str, stage: Stage, total_bytes: int, on_event: Listener) -> Callable[[int], None]:
    """Return a function that passes progress on, at most every 0.1 seconds and at the end."""
    told_at = 0.0

    def report(done_bytes: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if done_bytes == total_bytes or now - told_at >= _PROGRESS_INTERVAL_S:
            told_at = now
            on_event(Progressed(name=name, stage=stage, done_bytes=done_bytes, total_bytes=total_bytes))

    return report


class _Source:
    """One address, until the file is verified or the address is given up."""

    def __init__(self, url: str, part: PartFile, name: str, options: TransferOptions, on_event: Listener) -> None:
        self._url = url
        self._part = part
        self._name = name
        self._options = options
        self._on_event = on_event
        self.received_bytes = 0

    def bring(self, sha256: str) -> None:
        """Receive what is missing and verify it; a wrong sum costs one repetition, without ranges.

        Raises:
            RefusedError: this address does not give the file.
        """
        self._part.set_source(self._url)
        first = self._receive_and_digest(use_ranges=True)
        if first.startswith(sha256):
            return
        self._notice("the SHA-256 of what was received is wrong; it is fetched once more, in one piece")
        self._part.restart()
        second = self._receive_and_digest(use_ranges=False)
        if second.startswith(sha256):
            return
        self._part.restart()
        if first == second:
            raise RefusedError(
                f"twice the same file came, and it is not the expected one (SHA-256 {second})",
                fix="the server has another file under this name: use another mirror",
            )
        raise RefusedError(
            "the bytes that came have a wrong SHA-256, each time another one",
            fix="they are damaged on the way: a proxy, the network or this machine's memory; try another network",
        )

    def _receive_and_digest(self, *, use_ranges: bool) -> str:
        transfer = _Transfer(self._url, self._part, self._name, self._options, self._on_event, use_ranges=use_ranges)
        try:
            transfer.run()
        finally:
            self.received_bytes += transfer.received_bytes
        return self._part.digest(_progress_reporter(self._name, "verify", self._part.size_bytes, self._on_event))

    def _notice(self, text: str) -> None:
        self._on_event(Noticed(name=self._name, text=text))


class _StaleError(Exception):
    """What this connection brings is no longer wanted."""


class _Patience:
    """How often one receiving thread may still fail."""

    def __init__(self) -> None:
        self.failures = 0
        self.wrong_answers = 0
        self.backoffs = 0
        self._bytes_seen = 0

    def count(self, fault: TransferError, gained_bytes: int, progress_bytes: int) -> None:
        """Count a failure; those before count no more if enough bytes have come since."""
        if gained_bytes - self._bytes_seen >= progress_bytes:
            self.failures = self.wrong_answers = 0
        self._bytes_seen = gained_bytes
        self.failures += 1
        self.wrong_answers += isinstance(fault, WrongAnswerError)
        self.backoffs = min(self.backoffs + 1, _MAX_BACKOFFS)


class _Transfer:
    """Receiving all missing bytes of a part file from one address.

    The lock guards everything below it in the constructor, and the part file's ranges.
    """

    def __init__(
        self,
        url: str,
        part: PartFile,
        name: str,
        options: TransferOptions,
        on_event: Listener,
        *,
        use_ranges: bool,
    ) -> None:
        self._url = url
        self._part = part
        self._options = options
        self._on_event = on_event
        self._name = name
        self._use_ranges = use_ranges
        self._client = _new_client(options)
        self._stop = threading.Event()
        self._lock = threading.Condition()
        self._claims: list[ByteRange] = []
        self._is_whole_running = False
        self._generation = 0
        self._restarts = 0
        self._is_answered = False
        self._takes_ranges = False
        self._ranges_ignored = 0
        self._gained_bytes = 0
        self._notices: list[str] = []
        self._told_at: dict[str, float] = {}
        self._error: BaseException | None = None
        self.received_bytes = 0
        """Bytes of bodies that came, wanted or not."""

    def run(self) -> None:
        """Return when nothing is missing.

        Raises:
            RefusedError: the address does not give the file, or patience has ended.
            DataError: the disk is full or failing.
        """
        report = _progress_reporter(self._name, "download", self._part.size_bytes, self._on_event)
        threads: list[threading.Thread] = []
        journal_at = time.monotonic()
        report(self._part.num_bytes)
        try:
            while not self._is_finished():
                while len(threads) < self._num_wanted_threads():
                    # Daemons: a connection that hangs must not keep an interrupted program alive.
                    threads.append(threading.Thread(target=self._work, daemon=True, name=f"fetch {self._name}"))
                    threads[-1].start()
                with self._lock:
                    self._lock.wait(min(_PROGRESS_INTERVAL_S, self._options.journal_interval_s))
                self._tell_notices()
                report(self._part.num_bytes)
                if time.monotonic() - journal_at >= self._options.journal_interval_s:
                    self._part.checkpoint()
                    journal_at = time.monotonic()
        finally:
            with self._lock:
                self._stop.set()  # from here on no thread writes
                self._lock.notify_all()
            self._part.checkpoint()
            end = time.monotonic() + _JOIN_S
            for thread in threads:
                thread.join(max(end - time.monotonic(), 0.0))
            self._client.close()
            self._tell_notices()
        report(self._part.num_bytes)

    def _is_finished(self) -> bool:
        with self._lock:
            if not self._part.missing(0, self._part.size_bytes):
                return True
            if self._error is not None:
                raise self._error
            return False

    def _num_wanted_threads(self) -> int:
        """One until the server has shown that it gives ranges."""
        return self._options.connections if self._takes_ranges else 1

    def _tell_notices(self) -> None:
        """Pass notices on; the same one, from many connections, only now and then."""
        with self._lock:
            notices, self._notices = self._notices, []
        now = time.monotonic()
        for text in notices:
            if now - self._told_at.get(text, -math.inf) >= _SAME_NOTICE_INTERVAL_S:
                self._told_at[text] = now
                self._on_event(Noticed(name=self._name, text=text))

    def _work(self) -> None:
        patience = _Patience()
        while (claim := self._claim()) is not None:
            try:
                self._receive(claim)
                patience.backoffs = 0
                continue
            except _StaleError:
                continue
            except TransferError as fault:
                pause_s = self._judge_fault(fault, patience)
            except BaseException as error:
                self._fail(error)
                return
            finally:
                self._end_claim(claim)
            if pause_s is None:
                return
            self._stop.wait(pause_s)

    def _claim(self) -> ByteRange | None:
        """Return a missing range that nobody receives; wait for one, if others may fail. None when all is over."""
        with self._lock:
            while not self._stop.is_set():
                # Smaller ranges towards the end let all connections end together.
                missing = self._part.missing(0, self._part.size_bytes)
                share = sum(end - start for start, end in missing) // (2 * self._options.connections)
                length = min(max(share, self._options.min_piece_bytes), self._options.max_piece_bytes)
                free = (gap for start, end in missing for gap in ByteRanges(self._claims).missing(start, end))
                gap = None if self._is_whole_running else next(free, None)
                if gap is not None:
                    claim = (gap[0], min(gap[1], gap[0] + length) if self._use_ranges else gap[1])
                    self._claims.append(claim)
                    return claim
                self._lock.wait()
        return None

    def _end_claim(self, claim: ByteRange) -> None:
        with self._lock:
            self._claims.remove(claim)
            self._lock.notify_all()

    def _receive(self, claim: ByteRange) -> None:
        with self._lock:
            generation = self._generation
            asked = None if not self._use_ranges and self._part.num_bytes == 0 else claim
            if_range = self._part.validator.if_range
        headers = {} if asked is None else {"Range": f"bytes={asked[0]}-{asked[1] - 1}"}
        if asked is not None and if_range is not None:
            headers["If-Range"] = if_range
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                self._is_answered = True
                answer = judge_answer(
                    response.status_code, response.headers, asked=asked, size_bytes=self._part.size_bytes
                )
                generation = self._accept(answer, generation, asked)
                try:
                    self._receive_body(response, answer, generation)
                finally:
                    if answer.is_whole:
                        self._is_whole_running = False
        except httpx2.HTTPError as error:
            raise _translate(error, self._options) from error
        except httpx2.InvalidURL as error:
            raise RefusedError(f"the address is not valid: {error}", fix="check the address") from error

    def _accept(self, answer: Answer, generation: int, asked: ByteRange | None) -> int:
        """Take note of an answer, and return the generation that its bytes belong to.

        Raises:
            TransferError: a range was asked for, and ignoring that once may be an accident.
            RefusedError: the file changes all the time.
        """
        with self._lock:
            self._require_current(generation)
            if self._part.validator.contradicts(answer.validator):
                self._restart_for_new_version()
                if not answer.is_whole:
                    raise _StaleError
            if answer.is_whole and asked is not None and self._part.num_bytes > 0:
                self._ranges_ignored += 1
                if self._ranges_ignored < _MAX_WRONG_ANSWERS:
                    raise TransferError("the server ignored the request for a part of the file")
                self._notices.append("the server cannot go on in the middle of a file: it is sent from the beginning")
            if answer.is_whole:
                # This connection brings everything; what the others are receiving would come twice.
                self._generation += 1
                self._is_whole_running = True
            else:
                self._ranges_ignored = 0
                self._takes_ranges = self._use_ranges
            self._part.set_validator(answer.validator)
            self._lock.notify_all()
            return self._generation

    def _restart_for_new_version(self) -> None:
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise RefusedError(
                "the file on the server changed again and again during the transfer",
                fix="try later, with one connection, or use a mirror",
            )
        self._notices.append("the file on the server has changed: the transfer starts anew")
        self._generation += 1
        self._part.restart()

    def _receive_body(self, response: httpx2.Response, answer: Answer, generation: int) -> None:
        offset = answer.start
        watch_from, watch_bytes = time.monotonic(), 0
        for chunk in response.iter_raw():
            if offset == 0 and is_web_page(chunk):
                raise WrongAnswerError("the server sent a web page instead of the file")
            if offset + len(chunk) > answer.end:
                raise WrongAnswerError("the server sent more bytes than it announced")
            self._store(chunk, offset, generation)
            offset += len(chunk)
            watch_bytes += len(chunk)
            elapsed_s = time.monotonic() - watch_from
            if elapsed_s >= self._options.stall_timeout_s:
                if watch_bytes < self._options.min_bytes_per_s * elapsed_s:
                    raise TransferError(f"only {watch_bytes:,} bytes came in {elapsed_s:.1f} s")
                watch_from, watch_bytes = time.monotonic(), 0
        if offset < answer.end:
            raise TransferError("the connection ended before all bytes had come")

    def _store(self, chunk: bytes, offset: int, generation: int) -> None:
        with self._lock:
            self.received_bytes += len(chunk)
            self._require_current(generation)
            for start, end in self._part.missing(offset, offset + len(chunk)):
                self._part.write(start, chunk[start - offset : end - offset])
                self._gained_bytes += end - start

    def _require_current(self, generation: int) -> None:
        if generation != self._generation or self._stop.is_set():
            raise _StaleError

    def _judge_fault(self, fault: TransferError, patience: _Patience) -> float | None:
        """Return the seconds to wait before the next request, or None when the transfer has been given up."""
        options = self._options
        with self._lock:
            patience.count(fault, self._gained_bytes, options.progress_bytes)
            allowed = options.max_attempts if self._is_answered else min(options.max_attempts, _ATTEMPTS_TO_REACH)
            if patience.failures >= allowed or patience.wrong_answers >= _MAX_WRONG_ANSWERS:
                self._fail(RefusedError(fault.reason, fix=_advice(is_answered=self._is_answered)))
                return None
            if fault.wait_s is not None and fault.wait_s > options.max_retry_after_s:
                self._fail(
                    RefusedError(f"{fault.reason} and asks to wait {fault.wait_s:.0f} s", fix="run again after that")
                )
                return None
            pause_s = min(options.backoff_s * 2 ** (patience.backoffs - 1), options.max_backoff_s)
            pause_s *= random.uniform(0.5, 1.0)
            pause_s = pause_s if fault.wait_s is None else fault.wait_s
            again = f"; again in {pause_s:.0f} s" if pause_s >= 1 else ""
            self._notices.append(fault.reason + again)
            return pause_s

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._stop.set()
            self._lock.notify_all()


@cache
def _tls() -> ssl.SSLContext:
    """Loading the certificates takes longer than a small file."""
    return httpx2.create_ssl_context()


def _new_client(options: TransferOptions) -> httpx2.Client:
    return httpx2.Client(
        verify=_tls(),
        timeout=httpx2.Timeout(options.stall_timeout_s, connect=options.connect_timeout_s, pool=None),
        limits=httpx2.Limits(max_connections=options.connections + 1),
        follow_redirects=True,
        headers={"User-Agent": "detronome", "Accept": "*/*", "Accept-Encoding": "identity"},
    )


def _translate(error: httpx2.HTTPError, options: TransferOptions) -> Exception:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return TransferError(f"the server cannot be reached ({error or 'no answer'})")
    if isinstance(error, httpx2.TimeoutException):
        return TransferError(f"nothing came for {options.stall_timeout_s:g} s")
    if isinstance(error, httpx2.TooManyRedirects):
        return RefusedError("the server redirects without end", fix="check the address, or use a mirror")
    if isinstance(error, httpx2.UnsupportedProtocol):
        return RefusedError(f"the address is not valid: {error}", fix="an address begins with http:// or https://")
    if isinstance(error, httpx2.RemoteProtocolError) and "complete message body" in str(error):
        return TransferError("the connection ended before all bytes had come")
    return TransferError(f"the connection broke ({error or type(error).__name__})")


def _advice(*, is_answered: bool) -> str:
    if is_answered:
        return "run the same command again: what has been received is kept; or use a mirror"
    return "check the network, the proxy settings and the address"
