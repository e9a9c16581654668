"""Key pairs, shared seeds, and shares of secrets: Flower's primitives, as bytes of fixed lengths.

Curve P-384, HKDF with SHA-256, Fernet, and Shamir's scheme over GF(2^128).
"""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives.asymmetric import ec

from fedddpm_app.federation.flower_internals import (
    bytes_to_public_key,
    combine_shares,
    create_shares,
    decrypt,
    encrypt,
    generate_key_pairs,
    generate_shared_key,
    public_key_to_bytes,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from fedddpm_app.secure.errors import Fault, ProtocolError, bad_shares
from fedddpm_app.secure.masks import SEED_BYTES

PUBLIC_BYTES = 215  # PEM
DIGEST_BYTES = 32
PROMISE_BYTES = 2 * DIGEST_BYTES
SEED_SHARE_BYTES = 52  # 4 for the index, and 48: the secret is padded to a multiple of 16
KEY_SHARE_BYTES = 68
SEALED_BYTES = 268  # Fernet's token of both shares and the ids of their two clients
_PRIVATE_BYTES = 48


@dataclass(frozen=True)
class KeyPair:
    """A private key, as its scalar, and its public key, as PEM."""

    private: bytes
    public: bytes

    @classmethod
    def generate(cls) -> "KeyPair":
        """Return a new pair."""
        private, public = generate_key_pairs()
        scalar = private.private_numbers().private_value
        return cls(scalar.to_bytes(_PRIVATE_BYTES, "big"), public_key_to_bytes(public))


def new_seed() -> bytes:
    """Return a secret seed of a mask."""
    return secrets.token_bytes(SEED_BYTES)


def digest(secret: bytes) -> bytes:
    """Return what the server may know of a seed, or of a share, before it is revealed; both are random."""
    return hashlib.sha256(secret).digest()


def promise(seed_share: bytes, key_share: bytes) -> bytes:
    """Return the digests of the two shares of one client for another one."""
    return digest(seed_share) + digest(key_share)


def keeps_promise(share: bytes, promised: bytes, *, of_key: bool) -> bool:
    """Return whether a share, of the key or of the seed, is the promised one."""
    return digest(share) == (promised[DIGEST_BYTES:] if of_key else promised[:DIGEST_BYTES])


def public_key_of(private: bytes) -> bytes:
    """Return the public key that belongs to a private one."""
    return public_key_to_bytes(_private_key(private).public_key())


def check_public(public: bytes) -> None:
    """Raise ``ProtocolError`` if another party's bytes are not a public key of the curve."""
    try:
        key: object = bytes_to_public_key(public)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise ProtocolError("a public key is not a point of the curve")


def shared_key(private: bytes, public: bytes) -> bytes:
    """Return the key that two clients have in common, in the form that ``seal`` takes."""
    try:
        return generate_shared_key(_private_key(private), bytes_to_public_key(public))
    except ValueError as error:
        raise ProtocolError("a public key is not a point of the curve") from error


def shared_seed(private: bytes, public: bytes, told: bytes) -> bytes:
    """Return the seed of the mask that two clients have in common, if they were told the same."""
    return hashlib.sha256(base64.urlsafe_b64decode(shared_key(private, public)) + told).digest()


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return ``count`` shares of a secret, of which ``threshold`` give it back, and fewer nothing."""
    return create_shares(secret, threshold, count)


def combine(shares: Sequence[bytes], threshold: int) -> bytes:
    """Return the secret of at least ``threshold`` shares, from the first ones."""
    try:
        return combine_shares([*shares[:threshold]])
    except ValueError as error:
        raise ProtocolError("shares do not belong together") from error


def seal(key: bytes, source: int, target: int, seed_share: bytes, key_share: bytes) -> bytes:
    """Return the two shares of one client for another one, encrypted and authenticated."""
    return encrypt(key, share_keys_plaintext_concat(source, target, seed_share, key_share))


def unseal(key: bytes, token: bytes, source: int, target: int) -> tuple[bytes, bytes]:
    """Return the shares of ``seal``: of the seed, and of the private key.

    Raises
    ------
    ProtocolError
        If they were changed, or are meant for another client.
    """
    try:
        found, meant, seed_share, key_share = share_keys_plaintext_separate(decrypt(key, token))
    except InvalidToken as error:
        raise bad_shares(source, Fault.CHANGED) from error
    if (found, meant) != (source, target):
        raise bad_shares(source, Fault.FOREIGN)
    if (len(seed_share), len(key_share)) != (SEED_SHARE_BYTES, KEY_SHARE_BYTES):
        raise bad_shares(source, Fault.LENGTH)
    return seed_share, key_share


def _private_key(private: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        return ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP384R1())
    except ValueError as error:
        raise ProtocolError("a private key is out of range") from error
