"""Addresses of volumes: https://, http://, gs:// and s3://, with precomputed://, zarr:// or n5:// before it or without.

    gs://bucket/em                          the finest scale
    precomputed://https://host/em:16_16_40  a scale by its name, its number, or its resolution (32nm, 40x16x16nm)
    s3://bucket/cells#missing=0             chunks that are not there are 0, as their publisher says

What must not be told (a password before the host, a signature behind the question mark) stands in no text made here.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from emcore.errors import InputError

KINDS = {"precomputed": "precomputed", "zarr": "zarr", "zarr2": "zarr", "zarr3": "zarr", "n5": "n5"}
PATTERN = re.compile(rf"(?:({'|'.join(KINDS)})://)?(?:(https?|gs|s3|file)://)?(.*)", re.DOTALL)
TELLING = ("info", "zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata", "attributes.json")  # what one may copy
SPARSE = "missing=0"
SECRET = re.compile(r"(?<=://)[^/\s]*@|\?(?:[^\s'\"\])},:#]|[:,](?=[^\s'\"\])}]))*")


class Address(NamedTuple):
    """Where a volume is; a path of this machine has the scheme file."""

    kind: str | None  # precomputed, zarr or n5; None where the files there tell
    scheme: str
    host: str  # or bucket; with what logs in
    path: str  # has no slashes at its ends, except in a file address
    query: str
    scale: str | None
    sparse: bool = False  # chunks that are not there are 0

    def __str__(self) -> str:
        """The address without what must not be told."""
        text = self.path if self.scheme == "file" else f"{self.scheme}://{self.host.rpartition('@')[2]}/{self.path}"
        scale = f":{self.scale}" if self.scale else ""
        return (f"{self.kind}://" if self.kind else "") + text + scale + (f"#{SPARSE}" if self.sparse else "")

    def __repr__(self) -> str:
        return f"Address({self})"

    def at(self, name: str) -> "Address":
        """What lies below it, or above it for `..`."""
        path = self.path.rpartition("/")[0] if name == ".." else f"{self.path}/{name}".rstrip("/")
        return self._replace(path=path if self.scheme == "file" else path.strip("/"), scale=None)

    def store(self) -> dict[str, Any]:
        """The key-value store of its files, as tensorstore names it; who one is it finds out by itself."""
        if self.scheme == "file":
            return {"driver": "file", "path": f"{self.path}/"}
        path = f"{self.path}/" if self.path else ""
        if self.scheme == "gs":
            return {"driver": "gcs", "bucket": self.host, "path": path}
        if self.scheme == "s3":
            found: dict[str, Any] = {"driver": "s3", "bucket": self.host, "path": path}
            if not knows_amazon():
                found["aws_credentials"] = {"type": "anonymous"}
            if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
                found |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
            return found
        query = f"?{self.query}" if self.query else ""
        return {"driver": "http", "base_url": f"{self.scheme}://{self.host}/{path}{query}"}


def knows_amazon() -> bool:
    """Whether this user has told Amazon's libraries who he is; public buckets are read without."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE",
             "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONFIG_FILE")
    return any(os.environ.get(name) for name in names) or any(
        os.path.isfile(os.path.expanduser(f"~/.aws/{name}")) for name in ("credentials", "config"))


def is_address(reference: Any) -> bool:
    """Whether a reference is an address and no path of a file."""
    if not isinstance(reference, str):
        return False
    kind, scheme, _ = PATTERN.fullmatch(reference).groups()
    return bool(kind or scheme)


def parsed(reference: str) -> Address:
    """The parts of an address."""
    kind, scheme, rest = PATTERN.fullmatch(reference).groups()
    rest, _, said = rest.partition("#")
    if said not in ("", SPARSE):
        raise InputError(f"{without_secrets(reference)} ends in #{said[:80]}; what may stand there is #{SPARSE}, which "
                         "takes chunks that are missing as 0")
    rest, _, query = rest.partition("?") if scheme in ("http", "https") else (rest, "", "")
    if scheme in (None, "file"):
        host, path = "", rest
    else:
        host, _, path = rest.partition("/")
        if not host or not host.isprintable() or " " in host:
            raise InputError(f"{without_secrets(reference)} names no host or bucket; an address is like "
                             "https://host/volume or gs://bucket/volume")
        check_host(reference, scheme, host)
    if any(not letter.isprintable() for letter in path + query):
        raise InputError(f"{without_secrets(ascii(reference))} has letters that no address has")
    head, colon, scale = path.rpartition(":")
    if not colon or "/" in scale:
        head, scale = path, ""
    if head.rpartition("/")[2] in TELLING:
        head = head.rpartition("/")[0]
    head = os.path.abspath(head) if scheme in (None, "file") else head.strip("/")
    return Address(KINDS.get(kind), scheme or "file", host, head, query, scale or None, bool(said))


def check_host(reference: str, scheme: str, host: str) -> None:
    try:
        _ = urlsplit(f"{scheme}://{host}").port
    except ValueError as error:
        raise InputError(f"{without_secrets(reference)} is no address: {error}") from None


def located(folder: str | os.PathLike, reference: str) -> str:
    """A reference of a file of settings from where the program runs: the folder goes before paths alone."""
    return reference if is_address(reference) else os.path.join(folder, reference)


def name_of(reference: str) -> str:
    """How a volume may be called, after its file or the last part of its address."""
    if not is_address(reference):
        return Path(reference.partition(":")[0]).stem
    address = parsed(reference)
    return Path(address.path).stem or re.sub(r"\W+", "_", address.host.rpartition("@")[2])


def without_secrets(text: str) -> str:
    """The text without what logs in to the addresses in it, and without what stands behind their question marks."""
    return SECRET.sub(lambda found: "?..." if found[0].startswith("?") and len(found[0]) > 1 else "", text)


def has_secrets(reference: str) -> bool:
    """Whether an address holds what must not be written into a file."""
    address = parsed(reference)
    return "@" in address.host or bool(address.query)
