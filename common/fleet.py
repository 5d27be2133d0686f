"""What of Flower's HTTP interface a gateway lets through: the calls that a SuperNode makes, and no others.

Flower serves control (start a run, register a node), runtime (take a task) and fleet on one port, and
protects the last alone. A request is matched against this list as it was sent, before any normalisation,
and the upstream's path is put together from the list, never from the request.
"""

FLEET_CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
FLEET_PATH = "/v1/fleet/"
RELEASES_PATH = "/releases/"
LARGEST_BODY = "16m"  # Flower sends at most 5 MiB a chunk, and what surrounds it

# Common to both gateways. `~` makes a comparison exact, to the letter's case.
FLEET_MAP = f"""
  map "$request_method $request_uri" $fleet_call {{
    default "";
    "~^POST {FLEET_PATH}(?<call>{"|".join(FLEET_CALLS)})\\z" $call;
  }}
"""
# Bodies go through as they come. No kept connections upstream: a call on one that just closed would fail.
FORWARDED = f"""
    client_max_body_size {LARGEST_BODY};
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_connect_timeout 5s;
    proxy_read_timeout 120s;
    proxy_send_timeout 120s;
    proxy_next_upstream off;
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 1;
    proxy_ssl_server_name on;
    proxy_set_header Connection "";
    proxy_set_header Authorization "";
    proxy_set_header Cookie "";
"""


def endpoint(host: str, port: int) -> str:
    """host:port as nginx and Flower spell it, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
