"""The certificate with which this machine's scheduler and workers encrypt what crosses a network.

It proves nothing by itself: no authority signs it and nobody checks its name or its dates. Each connection's two ends
prove to each other, by the secret, that they see the same one (`wire/handshake.py`). So each machine makes its own, and
only the secret is copied.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from cluster.errors import SettingError
from cluster.private_files import create_private_file, make_private_directory, read_private_file

__all__ = [
    "CERTIFICATE_FILE",
    "Certificate",
    "fingerprint",
    "load_certificate",
    "load_or_create_certificate",
    "read_expiry",
]

CERTIFICATE_FILE: Final = "certificate.pem"
_VALID_DAYS: Final = 365
_RENEWED_BEFORE_DAYS: Final = 30
# The clocks of two machines differ.
_VALID_SINCE_DAYS: Final = 1
# OpenSSL skips what stands before the first block, so the date can be read without a library.
_HEADER: Final = "made by cluster, with its private key; valid until {:%Y-%m-%d}\n"
_expiry = re.compile(r"^made by cluster.* valid until (\d{4}-\d\d-\d\d)$", re.MULTILINE)


class Certificate(NamedTuple):
    """A listener's side of encryption."""

    context: ssl.SSLContext
    fingerprint: str


def fingerprint(der: bytes) -> str:
    """Return the name that two ends of a connection compare."""
    return hashlib.sha256(der).hexdigest()


def load_or_create_certificate(directory: Path) -> Certificate:
    """Return the certificate of that directory, made if it is missing and made anew within a month of its end.

    Raises SettingError when somebody else could read or change it, or when the file holds no certificate and key.
    """
    file = directory / CERTIFICATE_FILE
    try:
        make_private_directory(directory)
        text = read_private_file(file, "certificate")
        renewed_from = datetime.date.today() + datetime.timedelta(days=_RENEWED_BEFORE_DAYS)
        until = None if text is None else read_expiry(text)
        if text is None or (until is not None and until < renewed_from):
            create_private_file(file, _make(), replace=text is not None)
            text = read_private_file(file, "certificate")
        while True:
            loaded = load_certificate(file, text or "")
            # Another process may have renewed it between the two readings.
            again = read_private_file(file, "certificate")
            if again == text:
                return loaded
            text = again
    except OSError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"the certificate {file} cannot be read or made: {error}") from error


def read_expiry(text: str) -> datetime.date | None:
    """Return until when the certificate of a file with this text is valid; None if the file is not of our making."""
    found = _expiry.search(text)
    return None if found is None else datetime.date.fromisoformat(found[1])


def load_certificate(file: Path, text: str) -> Certificate:
    """Return the certificate of a file with this text; SettingError if it holds none with its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Connections live long, so none is resumed; without tickets nothing travels but what was written.
    context.num_tickets = 0
    try:
        context.load_cert_chain(file)
        end = text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) : end])
    except (ssl.SSLError, ValueError) as error:
        raise SettingError(
            f"{file} does not hold a certificate and its key ({error}); remove it to have them made"
        ) from error
    return Certificate(context, fingerprint(der))


def _make() -> bytes:
    # The library is large, and this is needed once a year.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=_VALID_DAYS)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=_VALID_SINCE_DAYS))
        .not_valid_after(until)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return _HEADER.format(until).encode() + certificate.public_bytes(pem) + private
