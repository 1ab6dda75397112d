"""What `ckpt agent --lane TOKEN --socket PATH` does, without the rest of ckpt."""

import sys

from transport.errors import TransportFault
from transport.lane_handover import lane_main

try:
    lane_main(sys.argv[1], sys.argv[2])
except TransportFault as fault:
    sys.exit(str(fault))
