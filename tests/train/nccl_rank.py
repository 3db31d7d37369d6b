"""`python -m train` on a rank that may share its GPU with others, so that one GPU can show NCCL.

NCCL serves one rank a GPU of a host. Ranks that give themselves other hosts' names are taken for
ranks of other hosts: real collectives, over sockets.
"""

import os

from common import command_line
from train.__main__ import main
from train.ranks import distributed

if __name__ == "__main__":
    os.environ |= {"NCCL_HOSTID": f"host-{os.environ['RANK']}", "NCCL_SOCKET_IFNAME": "lo"}
    distributed.check_gpus = lambda ranks: None
    command_line.run(main)
