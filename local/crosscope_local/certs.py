"""A certificate authority of one's own, and certificates that it signs. Knows no command line and no gRPC."""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA, CA_KEY = "ca.pem", "ca-key.pem"
_CLIENT = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
"""A name in DNS; one in letters that are not ASCII is written as its xn--… form."""
_CURVE = ec.SECP256R1()
_EARLIER = datetime.timedelta(minutes=5)
"""Certificates hold from a little earlier on, for clocks that are behind."""


class CertsError(Exception):
    """Certificates cannot be made; the text is one sentence."""


def make(folder: Path, hosts: Sequence[str], clients: Sequence[str], days: int) -> list[Path]:
    """Makes an authority (ca.pem), unless the folder has one, and what it signs; returns the new files.

    `server.pem` and `server-key.pem` are for a server at the `hosts`; `<name>.pem` and `<name>-key.pem` for each of
    `clients`. Keys are private (0600). Certificates hold for `days`, the authority for ten times as long. Raises
    CertsError; a file that is there is never replaced.
    """
    for host in hosts:
        if not _HOST.fullmatch(host) and not _is_address(host):
            raise CertsError(f"{host!r} is no host: write gpu7.example.org or 10.0.0.1, without a scheme or a port")
    for client in clients:
        if not _CLIENT.fullmatch(client) or client in ("server", "ca"):
            raise CertsError(
                f"{client!r} cannot name a client: use 1 to 64 letters, digits and ._-, and not server or ca"
            )
    named = {"server": hosts, **dict.fromkeys(clients, ())} if hosts else dict.fromkeys(clients, ())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if taken := [name for each in named for name in (f"{each}.pem", f"{each}-key.pem") if (folder / name).exists()]:
            raise CertsError(f"{folder / taken[0]} is there already; remove it first, or choose another folder or name")
        made: list[Path] = []
        if not (folder / CA).exists():
            made += _make_authority(folder, days * 10)
        authority = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertsError(f"{folder / CA_KEY} was not made by `crosscope certs`; choose another folder")
        if (ended := authority.not_valid_after_utc) <= datetime.datetime.now(datetime.UTC):
            raise CertsError(
                f"{folder / CA} has ended on {ended:%d %b %Y}: choose another folder, and give everybody its {CA}"
            )
        for name, names in named.items():
            made += _make_signed(folder, name, names, authority, key, days)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertsError(f"certificates cannot be made in {folder}: {error}") from error
    return made


def _make_authority(folder: Path, days: int) -> list[Path]:
    key = ec.generate_private_key(_CURVE)
    name = _name("crosscope authority")
    signs = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _begun(name, name, key.public_key(), _end(days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _write(folder, "ca", certificate, key)


def _make_signed(
    folder: Path,
    name: str,
    hosts: Sequence[str],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> list[Path]:
    key = ec.generate_private_key(_CURVE)
    ends = min(_end(days), authority.not_valid_after_utc)  # one that outlives its authority would not be believed
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    begun = (
        _begun(_name(hosts[0] if hosts else name), authority.subject, key.public_key(), ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if hosts:
        begun = begun.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return _write(folder, name, begun.sign(authority_key, hashes.SHA256()), key)


def _end(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.datetime.now(datetime.UTC), ends) - _EARLIER)
        .not_valid_after(ends)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> list[Path]:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    contents = {f"{name}-key.pem": (private, 0o600), f"{name}.pem": (certificate.public_bytes(pem), 0o644)}
    made: list[Path] = []
    try:
        for file, (data, mode) in contents.items():
            descriptor = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(folder / file)
            with os.fdopen(descriptor, "wb") as out:
                out.write(data)
    except OSError:
        for path in made:  # a key without its certificate would be in the way
            path.unlink(missing_ok=True)
        raise
    return made
