"""Bearer tokens: made once, stored as digests, taken over by a running collector when their file changes.

A token is `spanlake_ID_SECRET`. The secret has 256 random bits, so nobody can guess it or look it up in a table, and
a single SHA-256 (FIPS 180-4) of the token is as good as a slow password hash, which exists for secrets that can
be guessed. It is compared in constant time (`hmac.compare_digest`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from collector.config import Section, TenantQuota
from collector.errors import OperatorError
from collector.lake.lock import exclusive
from collector.tenants.names import InvalidTenantError, checked_name

FILE_NAME = "tokens.json"
_TOKEN = re.compile(r"spanlake_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
_NOBODY = "0" * 64


class Token(Section):
    """What is kept of a token: `digest` is the hex SHA-256 of it, `limits` go before those of its tenant."""

    id: str
    tenant: str
    digest: str
    created_at: datetime
    limits: TenantQuota = TenantQuota()


class _File(Section):
    version: int = 1
    tokens: tuple[Token, ...] = ()


class TokenFile:
    """The tokens of one data folder. Every method raises OperatorError where the file cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def read(self) -> tuple[Token, ...]:
        """All tokens, oldest first; none where there is no file."""
        try:
            return _File.model_validate_json(self.path.read_bytes()).tokens
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise OperatorError(
                f"{str(self.path)!r} cannot be read: {error.strerror}; expected a file that this user may read; "
                "correct its owner or its mode"
            ) from error
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
            raise OperatorError(
                f"{str(self.path)!r} is no file of tokens ({where}: {error.errors()[0]['msg']}): expected what "
                "`spanlake tokens add` writes; restore it, or remove it and add the tokens anew"
            ) from error

    def add(self, tenant: str, limits: TenantQuota) -> tuple[str, Token]:
        """Make a token: the text, which is kept nowhere, and what is kept."""
        try:
            checked_name(tenant)
        except InvalidTenantError as error:
            raise OperatorError(str(error)) from error
        token_id = secrets.token_hex(6)
        text = f"spanlake_{token_id}_{secrets.token_urlsafe(32)}"
        token = Token(
            id=token_id, tenant=tenant, digest=_digest(text), created_at=datetime.now(UTC), limits=limits
        )
        with self._changed() as tokens:
            tokens.append(token)
        return text, token

    def revoke(self, token_id: str) -> Token:
        """Remove the token of this id, and return what was kept of it."""
        with self._changed() as tokens:
            for token in tokens:
                if token.id == token_id:
                    tokens.remove(token)
                    return token
        raise OperatorError(f"{token_id!r} is no token's id: expected one of `spanlake tokens list`")

    @contextmanager
    def _changed(self) -> Iterator[list[Token]]:
        """The tokens, to be changed; the file is replaced as a whole, and only by one process at a time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.path.with_suffix(".lock")):
                tokens = list(self.read())
                before = list(tokens)
                yield tokens
                if tokens != before:
                    self._replace(_File(tokens=tuple(tokens)))
        except OSError as error:
            raise OperatorError(
                f"{str(self.path)!r} cannot be written: {error.strerror}; expected a data folder that this user may "
                "write; give another --data, or correct its owner"
            ) from error

    def _replace(self, content: _File) -> None:
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".tokens-", delete=False) as part:
            try:
                os.fchmod(part.fileno(), 0o600)
                part.write(content.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")
                part.flush()
                os.fsync(part.fileno())
                os.replace(part.name, self.path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Tokens:
    """Tokens by id, to be asked for each request; knows nothing of files."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._by_id = {token.id: token for token in tokens}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, text: str) -> Token | None:
        """The token whose text this is, None where there is none."""
        match = _TOKEN.fullmatch(text)
        token = self._by_id.get(match[1]) if match else None
        same = hmac.compare_digest(_digest(text), token.digest if token else _NOBODY)
        return token if same else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
