"""Requests to S3 signed with the keys of the environment, as GDAL signs its own.

Source:
    AWS Signature Version 4: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import hashlib
import hmac
import os
from datetime import UTC, datetime
from urllib.parse import urlsplit

NOTHING = hashlib.sha256(b"").hexdigest()  # of a request without content


def signed(
    address: str, method: str, region: str, headers: dict[str, str], now: datetime | None = None
) -> dict[str, str]:
    """Returns the headers of an S3 request, signed where the environment holds keys and does not forbid it.

    Args:
        address: http(s) address of the object, quoted, without a query.
        method: GET or HEAD.
        region: of the bucket.
        headers: those that shall be signed too; `Host` is.
        now: time of the request; the clock's by default.
    """
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    if not key or not secret or os.environ.get("AWS_NO_SIGN_REQUEST", "NO").upper() in ("YES", "TRUE", "ON", "1"):
        return headers
    time = f"{now or datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    sent = headers | {"x-amz-content-sha256": NOTHING, "x-amz-date": time}
    if token := os.environ.get("AWS_SESSION_TOKEN", ""):
        sent["x-amz-security-token"] = token
    place = urlsplit(address)
    fields = {name.lower(): value.strip() for name, value in (sent | {"Host": place.netloc}).items()}
    names = ";".join(sorted(fields))
    lines = [f"{name}:{fields[name]}\n" for name in sorted(fields)]
    request = "\n".join([method, place.path or "/", place.query, "".join(lines), names, NOTHING])
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(request.encode()).hexdigest()])
    hashed = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        hashed = hmac.digest(hashed, part.encode(), "sha256")
    signature = hmac.digest(hashed, text.encode(), "sha256").hex()
    sent["Authorization"] = f"AWS4-HMAC-SHA256 Credential={key}/{scope},SignedHeaders={names},Signature={signature}"
    return sent
