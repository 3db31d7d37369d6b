"""`python -m train` on a rank that may share its GPU with others, so that one GPU can show NCCL.

NCCL serves one rank a GPU of a host. Ranks that give themselves other hosts' names are taken for
ranks of other hosts: real collectives, over sockets.
"""

import os

import command_line
from train import distributed
from train.__main__ import main

if __name__ == "__main__":
    os.environ |= {"NCCL_HOSTID": f"host-{os.environ['RANK']}", "NCCL_SOCKET_IFNAME": "lo"}
    distributed.check_gpus = lambda ranks: None
    command_line.run(main)
