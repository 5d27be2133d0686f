"""The coordinator's gateway: nginx with the only open port, in front of SuperLink on loopback.

What a caller gets, in this order:

    no certificate, a foreign, expired or revoked one   401
    a body over 16 MiB                                  413
    anything but POST of a fleet call, GET of a release 403
    a node's key that is not the certificate's          401
    else                                                SuperLink's answer, or the file

A node stops on 401; it would take 403 for a run that has ended, and wait for ever. TLS sessions are not
resumed: a resumed one would not look at the list of revoked certificates again.
"""

import base64
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from fedward.common.certificates import is_due, issued_by, revocation_list, server_identity
from fedward.common.errors import EnrolmentRefused
from fedward.common.files import make_folder, write_atomically
from fedward.common.fleet import FLEET_MAP, FLEET_PATH, FORWARDED, RELEASES_PATH, endpoint
from fedward.common.key_files import Identity, pem
from fedward.common.nginx import Nginx, quoted, settings
from fedward.server.coordinator import Coordinator
from fedward.server.sites import Site, Sites

_CERTIFICATE_LIFETIME = timedelta(days=365)
_MOST_CONNECTIONS = 64  # of one site at a time


class CoordinatorGateway:
    """The gateway of a coordinator's folder."""

    def __init__(self, coordinator: Coordinator) -> None:
        """Serve `coordinator`; nothing is written yet."""
        self._coordinator = coordinator
        self.nginx = Nginx(coordinator.folder / "gateway")

    def start(self, now: datetime) -> None:
        """Configure and start.

        Raises:
            GatewayFailed: nginx is missing, or does not accept or start with the configuration.
        """
        with self._coordinator.lock:
            self._configure(now)
            self.nginx.start()

    def become(self, now: datetime) -> NoReturn:
        """Configure, and let this very process be the gateway.

        Raises:
            GatewayFailed: nginx is missing, or does not accept the configuration.
        """
        with self._coordinator.lock:
            self._configure(now)
            self.nginx.become()

    def refresh(self, now: datetime) -> bool:
        """Take over what changed: sites, keys that ended, certificates that are due. To be called each hour.

        Returns whether it was reloaded; a gateway that does not run is left as it is.

        Raises:
            GatewayFailed: nginx does not accept it; the old configuration goes on.
        """
        with self._coordinator.lock:
            self._configure(now)
            return self.nginx.take_over()

    def refresh_if_running(self, now: datetime) -> bool:
        """`refresh` where a gateway runs; says whether one does.

        Raises:
            GatewayFailed: as `refresh`.
        """
        if self.nginx.pid is None:
            return False
        self.refresh(now)
        return True

    def stop(self) -> None:
        """Stop, once requests have ended."""
        self.nginx.stop()

    def _configure(self, now: datetime) -> None:
        """Write all that nginx reads. Whoever calls holds the lock."""
        folder = self.nginx.folder
        make_folder(folder, 0o700)
        self._keep_certificate(now)
        issuers, sites = self._coordinator.issuers(now), Sites(self._coordinator.folder)
        write_atomically(folder / "authorities.pem", b"".join(pem(one.certificate) for one in issuers))
        write_atomically(folder / "revoked.pem", _revoked(issuers, sites, now))
        # A list of revoked numbers is signed anew each time: the numbers stand in the text, too.
        text = configuration(self._coordinator, sites.active(), now)
        self.nginx.configure(text, folder / "server.pem", folder / "authorities.pem")

    def _keep_certificate(self, now: datetime) -> None:
        """A certificate for the gateway, made anew where it is due or its issuer was rotated out."""
        key, certificate = self.nginx.folder / "server.key", self.nginx.folder / "server.pem"
        issuer = self._coordinator.gateway_issuer(now)
        try:
            found = Identity.load(key, certificate).certificate
        except EnrolmentRefused:  # none yet, or a crash came between the two files
            found = None
        if found is None or is_due(found, now) or not issued_by(found, issuer.certificate):
            host = self._coordinator.address.host
            server_identity(issuer, [host], now, _CERTIFICATE_LIFETIME).save(key, certificate)


def configuration(coordinator: Coordinator, sites: list[Site], now: datetime) -> str:
    """The whole nginx.conf for these sites.

    Raises:
        GatewayFailed: the folder's path cannot be spelled in it.
    """
    folder, address = coordinator.folder.absolute(), coordinator.address
    listen = endpoint(address.listen, address.port)
    return f"""{settings(folder / "gateway")}
  # A certificate's subject with a node's key, as the request brings both -> the same text, if they belong
  # together. It is compared again, because a map does not tell capitals from small letters.
  map_hash_bucket_size 1024;
  map_hash_max_size {2048 + 16 * len(sites)};
  map "$ssl_client_s_dn|$http_flwr_public_key" $bound {{
    default "";
{_bindings(sites, now)}  }}
  map $ssl_client_s_dn $site {{
    default "";
{_subjects(sites)}  }}
{FLEET_MAP}
  limit_conn_zone $ssl_client_s_dn zone=sites:4m;
  limit_conn_status 429;
  upstream superlink {{ server 127.0.0.1:{address.superlink_port}; }}
  # Serial numbers of revoked certificates: {_serials(coordinator, now)}
  server {{
    listen {listen} ssl;
    ssl_protocols TLSv1.3;
    ssl_certificate {quoted(folder / "gateway" / "server.pem")};
    ssl_certificate_key {quoted(folder / "gateway" / "server.key")};
    ssl_client_certificate {quoted(folder / "gateway" / "authorities.pem")};
    ssl_crl {quoted(folder / "gateway" / "revoked.pem")};
    ssl_verify_client on;
    ssl_verify_depth 1;
    ssl_session_cache off;
    ssl_session_tickets off;
    keepalive_timeout 60s;
    keepalive_time 10m;
    client_header_timeout 10s;
    client_body_timeout 60s;
    limit_conn sites {_MOST_CONNECTIONS};
    error_page 495 496 = @unknown;
    location @unknown {{ return 401; }}
{FORWARDED}
    proxy_ssl_trusted_certificate {quoted(folder / "loopback" / "superlink.pem")};
    proxy_ssl_name localhost;
    proxy_set_header Host localhost;
    proxy_set_header flwr-public-key $http_flwr_public_key;
    location / {{
      if ($fleet_call = "") {{ return 403; }}
      if ($bound = "") {{ return 401; }}
      if ($bound != "$ssl_client_s_dn|$http_flwr_public_key") {{ return 401; }}
      proxy_pass https://superlink{FLEET_PATH}$fleet_call;
    }}
    location {RELEASES_PATH} {{
      if ($site = "") {{ return 401; }}
      if ($request_method !~ "^(GET|HEAD)\\z") {{ return 403; }}
      alias {quoted_folder(folder / "releases")};
      disable_symlinks on;
      autoindex off;
    }}
    # What is being written is not there yet.
    location ~ "^{RELEASES_PATH}(.*/)?\\." {{ return 403; }}
  }}
}}
"""


def node_header(node: str) -> str:
    """A node's public key (PEM) as a SuperNode sends it in the header flwr-public-key."""
    return base64.b64encode(node.encode()).decode()


def quoted_folder(folder: Path) -> str:
    """A folder as `alias` wants it, with a slash at the end."""
    return quoted(folder)[:-1] + '/"'


def _bindings(sites: list[Site], now: datetime) -> str:
    texts = (f"CN={site.id}|{node_header(node)}" for site in sites for node in site.node_keys(now))
    return "".join(f'    "{text}" "{text}";\n' for text in texts)


def _subjects(sites: list[Site]) -> str:
    return "".join(f'    "CN={site.id}" "{site.id}";\n' for site in sites)


def _revoked(issuers: list[Identity], sites: Sites, now: datetime) -> bytes:
    """One list an authority. A number is entered in each: two authorities never give the same."""
    serials = [serial for site in sites for serial in site.revoked_serials(now)]
    return b"".join(revocation_list(issuer, serials) for issuer in issuers)


def _serials(coordinator: Coordinator, now: datetime) -> str:
    """In the configuration too, so that a change of the list alone is a change."""
    found = {serial for site in Sites(coordinator.folder) for serial in site.revoked_serials(now)}
    return ", ".join(f"{serial:x}" for serial in sorted(found)) or "none"
