"""What the outcome of a verb is to its caller: a document, a page, jobs, or a Problem. Functions of values; no I/O."""

from collections.abc import Sequence
from typing import Any

from kvstore.commands.base import Appended, Deleted, Failed, Found, Missing, Stored
from kvstore.commands.batch import Answers, Refused
from kvstore.commands.bulk import CREATED, ManyRead, ManyWritten
from kvstore.commands.containers import DeletedRecursive, List, Listing
from kvstore.commands.jobs import Job, LeaseChanged, Taken
from kvstore.commands.queries import Counted, Find
from kvstore.core import values
from kvstore.core.errors import InternalError, Leased, PreconditionFailed, Problem
from kvstore.core.paths import Path
from kvstore.http.batch import render_refused
from kvstore.http.documents import render_failed, render_missing
from kvstore.http.messages import Request, ttl_s
from kvstore.http.protocol import render
from kvstore.verbs.shapes import Asking, Document, LeasedDocument, Page

_NO_REQUEST = Request("", b"", {})  # the detail of a problem depends only on whether it has a lease
_WITH_LEASE = Request("", b"", {"if-match": '"0-0.1"'})


def _found(path: str, found: Found) -> Document:
    text, _, tag, _, ttl_ms = found
    return Document(path, values.load(text) if text else None, _quoted(tag), None if ttl_ms is None else ttl_s(ttl_ms))


def _quoted(tag: str | None) -> str | None:
    return None if tag is None else f'"{tag}"'


def _expect(outcome: object, *kinds: type, request: Request = _NO_REQUEST) -> Any:
    """Return an outcome of one of these kinds; raises the Problem that another one means."""
    if isinstance(outcome, kinds):
        return outcome
    if isinstance(outcome, Failed):
        render_failed(request, outcome)
    if isinstance(outcome, Missing):
        render_missing(request, outcome)
    raise InternalError(f"the store answered {type(outcome).__name__}")


def read_found(path: Path, outcome: object) -> Document:
    """Return the document that was read. Raises Problem."""
    return _found(path.text, _expect(outcome, Found))


def read_written(path: Path, outcome: object) -> Document:
    """Return the document that was written. Raises Problem."""
    return _found(path.text, _expect(outcome, Stored).document)


def read_appended(outcome: object) -> Document:
    """Return the document that was appended. Raises Problem."""
    appended: Appended = _expect(outcome, Appended)
    return _found(appended.path, appended.document)


def read_deleted(outcome: object) -> int:
    """Return how many documents were deleted; of a single one whether there was one. Raises Problem."""
    gone = _expect(outcome, Deleted, DeletedRecursive, Missing)
    return gone.documents if isinstance(gone, DeletedRecursive) else isinstance(gone, Deleted)


def read_finished(outcome: object) -> bool:
    """Return whether the job was still there. Raises Problem."""
    return isinstance(_expect(outcome, Deleted, Missing, request=_WITH_LEASE), Deleted)


def read_changed(outcome: object) -> None:
    """Check that the job was still leased. Raises Problem."""
    _expect(outcome, LeaseChanged, request=_WITH_LEASE)


def read_taken(outcome: object) -> list[LeasedDocument]:
    """Return the jobs that were taken; a replay leaves out those that are gone."""
    taken: Taken = _expect(outcome, Taken)
    return [_job(job) for job in taken.jobs if job.document.text]


def _job(job: Job) -> LeasedDocument:
    document = _found(job.path.text, job.document)
    return LeasedDocument(document.path, document.value, document.etag, document.ttl, job.attempts, job.lease)


def read_page(container: Path, outcome: object, limit: int | None) -> Page:
    """Return a page of a listing, of which `limit` documents are still wanted."""
    listing: Listing = _expect(outcome, Listing)
    documents = [_found(container.text + item.name, item.document) for item in listing.items if item.document]
    left = None if limit is None else limit - len(documents)
    if listing.more is None or left == 0:
        return Page(documents, None)
    more = listing.more if left is None else _limited(listing.more, left)
    return Page(documents, Asking(more, lambda outcome: read_page(container, outcome, left)))


def _limited(more: List | Find, left: int) -> List | Find:
    """Return the command of a next page with at most so many documents."""
    if isinstance(more, Find):
        return more._replace(listing=more.listing._replace(limit=min(left, more.listing.limit)))
    return more._replace(limit=min(left, more.limit))


def read_count(outcome: object) -> int:
    """Return how many documents were counted."""
    counted: Counted = _expect(outcome, Counted)
    return counted.documents


def unless_lost(asking: Asking[Document]) -> Asking[Document | None]:
    """Return None where another writer was faster; raises Leased where the document is a job, whose lease alone would do."""

    def read(outcome: object) -> Document | None:
        try:
            return asking.read(outcome)
        except PreconditionFailed as failed:
            assert isinstance(asking.asked, Request)
            if failed.members["etag"] is not None and failed.members["etag"] == asking.asked.headers.get("if-match"):
                raise Leased("somebody has taken this job: only its lease can be used to change it") from None
            return None

    return Asking(asking.asked, read)


def read_batch(parts: Sequence[Asking[Any]], outcome: object) -> list[Any]:
    """Return the result of each request of a batch, or its Problem; raises BatchRefused."""
    return [_each(part, answer) for part, answer in zip(parts, _answers(outcome), strict=True)]


def _answers(outcome: object) -> list[Any]:
    """Return the outcomes of the requests of a batch, or their problems."""
    match outcome:
        case Answers(answers=answers):
            return answers
        case ManyWritten(documents=documents):
            parts = zip(documents, outcome.tags, outcome.ttls_ms, outcome.words, strict=True)
            return [
                Stored(Found(document.text, document.is_object, tag.decode(), None, ttl_ms), created=word == CREATED)
                for document, tag, ttl_ms, word in parts
            ]
        case ManyRead(documents=found, time_ms=time_ms):
            return [
                Found(*document, None, at_ms - time_ms if at_ms >= 0 else None)
                for document, at_ms in zip(found, outcome.expires_at_ms, strict=True)
            ]
    refused: Refused[Any, Any] = _expect(outcome, Refused)
    raise render_refused(refused, render)


def _each(part: Asking[Any], answer: object) -> Any:
    """Return the result of a request of a batch, or its problem."""
    try:
        if isinstance(answer, Problem):
            raise answer
        return part.result(answer)
    except Problem as problem:
        return problem
