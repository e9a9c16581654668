"""The reference in a message to a file in shared memory."""

import json
from dataclasses import asdict, dataclass

from fedddpm_app.transport.layout import PayloadError


@dataclass(frozen=True)
class FileReference:
    """Names a file in a message: bare names, the size in bytes, and the SHA-256 in hex."""

    directory: str
    name: str
    size: int
    sha256: str

    def to_json(self) -> bytes:
        """Serialise the reference."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "FileReference":
        """Parse a reference; raise ``PayloadError`` if ``data`` is not a reference."""
        try:
            reference = cls(**json.loads(data[:1000]))
        except (ValueError, TypeError, RecursionError) as error:
            raise PayloadError("it is not a reference to a file") from error
        texts = (reference.directory, reference.name, reference.sha256)
        if not all(isinstance(text, str) for text in texts) or not isinstance(reference.size, int):
            raise PayloadError("it is not a reference to a file")
        return reference
