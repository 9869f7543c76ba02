"""The limits of connections: to the server that `kvstore` starts, and to Flask. limits.py tells clients of them."""

MAX_LINE_BYTES = 8190  # a path of 1,024 bytes, each escaped, and a query
MAX_HEAD_BYTES = 32 * 1024

HEAD_S = 10.0
BODY_S = 30.0
WRITE_S = 30.0
IDLE_S = 95.0  # Heroku's router keeps an idle connection for 90 s

MAX_UNREAD_BYTES = 192 * 1024 * 1024  # of responses that clients have not read; with those that are being made, 256 MiB

MAX_FLASK_STREAMS = 32  # long polls included: each occupies a thread
