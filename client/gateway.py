"""The hospital's gateway: nginx on loopback, which lends the SuperNode the site's client certificate.

A SuperNode cannot present one. So it calls this gateway by TLS on 127.0.0.1, with a certificate that only
this host trusts, and the gateway calls the coordinator's by mutual TLS 1.3, whose name and authority it
verifies. It lets through what the coordinator's gateway does, so that nothing else of this host reaches out
by it, and opens no port to anybody but this host.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from fedward.client.membership import FOLDER, Membership, loopback_certificate, tls_identity
from fedward.common.certificates import is_due, loopback_identity
from fedward.common.errors import EnrolmentRefused
from fedward.common.files import make_folder, read_bounded, write_atomically
from fedward.common.fleet import FLEET_MAP, FLEET_PATH, FORWARDED, RELEASES_PATH, endpoint
from fedward.common.key_files import Identity, pem
from fedward.common.locks import FileLock
from fedward.common.nginx import Nginx, quoted, settings

_PORT = "gateway.json"
_LIFETIME = timedelta(days=3650)


class HospitalGateway:
    """The gateway of a hospital's state folder."""

    def __init__(self, state: Path, port: int) -> None:
        """Listen on 127.0.0.1:`port`; nothing is written yet."""
        self._state, self.port = state, port
        self._folder = state / FOLDER
        self.nginx = Nginx(self._folder / "gateway")

    @classmethod
    def running(cls, state: Path) -> "HospitalGateway | None":
        """The gateway that runs on this state folder, if one does."""
        path = state / FOLDER / _PORT
        if not path.exists():
            return None
        found = cls(state, json.loads(read_bounded(path, 100, refusal=EnrolmentRefused))["port"])
        return found if found.nginx.pid is not None else None

    @property
    def certificate(self) -> Path:
        """What a SuperNode has to trust (`--root-certificates`)."""
        return loopback_certificate(self._state)

    def start(self, now: datetime) -> None:
        """Configure and start.

        Raises:
            EnrolmentRefused: the hospital is in no federation, or its keys are damaged.
            GatewayFailed: nginx is missing, cannot find the coordinator's name, or does not start.
        """
        with self._locked():
            self._configure(now)
            self.nginx.start()

    def become(self, now: datetime) -> NoReturn:
        """Configure, and let this very process be the gateway.

        Raises:
            EnrolmentRefused, GatewayFailed: as `start`.
        """
        with self._locked():
            self._configure(now)
            self.nginx.become()

    def refresh(self, now: datetime) -> bool:
        """Take over a renewed place, or an authority that ended. To be called each hour and after `accept`.

        Returns whether it was reloaded; a gateway that does not run is left as it is.

        Raises:
            EnrolmentRefused, GatewayFailed: as `start`; the old configuration goes on.
        """
        with self._locked():
            self._configure(now)
            return self.nginx.take_over()

    def stop(self) -> None:
        """Stop, once requests have ended."""
        self.nginx.stop()

    def _locked(self) -> FileLock:
        """`accept` and the daemon may refresh at the same moment."""
        Membership.load(self._state)  # so that there is a folder for the lock
        return FileLock(self._folder / "gateway.lock")

    def _configure(self, now: datetime) -> None:
        member = Membership.load(self._state)
        tls_identity(member)  # refused here by name, not by nginx in its own words
        make_folder(self.nginx.folder, 0o700)
        self._keep_loopback(now)
        authorities = b"".join(pem(one.authority) for one in member.federation.current(now))
        write_atomically(self._folder / "authorities.pem", authorities)
        self.nginx.configure(self._text(member), self._folder / "authorities.pem", self.certificate)
        write_atomically(self._folder / _PORT, json.dumps({"port": self.port}).encode(), 0o600)

    def _keep_loopback(self, now: datetime) -> None:
        key = self.certificate.with_suffix(".key")
        try:
            found = Identity.load(key, self.certificate).certificate
        except EnrolmentRefused:  # none yet, or a crash came between the two files
            found = None
        if found is None or is_due(found, now):
            loopback_identity(now, _LIFETIME).save(key, self.certificate)

    def _text(self, member: Membership) -> str:
        federation = member.federation
        return f"""{settings(self.nginx.folder)}
{FLEET_MAP}
  upstream coordinator {{ server {endpoint(federation.host, federation.port)}; }}
  server {{
    listen 127.0.0.1:{self.port} ssl;
    ssl_protocols TLSv1.3;
    ssl_certificate {quoted(self.certificate)};
    ssl_certificate_key {quoted(self.certificate.with_suffix(".key"))};
{FORWARDED}
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_session_reuse off;
    proxy_ssl_certificate {quoted(member.tls_certificate)};
    proxy_ssl_certificate_key {quoted(member.tls_key)};
    proxy_ssl_trusted_certificate {quoted(self._folder / "authorities.pem")};
    proxy_ssl_name {federation.host};
    proxy_set_header Host {federation.host};
    location / {{
      if ($fleet_call = "") {{ return 403; }}
      proxy_pass https://coordinator{FLEET_PATH}$fleet_call;
    }}
    location {RELEASES_PATH} {{
      if ($request_method !~ "^(GET|HEAD)\\z") {{ return 403; }}
      proxy_pass https://coordinator;
    }}
  }}
}}
"""
