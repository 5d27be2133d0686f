"""Codes of Fedward's own errors in Flower's messages; Flower leaves those from 100 to applications.

They stand by themselves for the task runner, which must load neither torch nor anything that trains.
"""

REFUSED = 100  # a refusal, by name and with its sentence
NOT_APPROVED = 101  # the site's task runner: the run came with a bundle that the site has not approved
NO_DAEMON = 102  # the site's task runner: the daemon did not answer in time
UNPROVEN = 103  # the coordinator's own: an answer that its site's signatures do not prove
