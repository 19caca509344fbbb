"""Processes that train together, for the scripts beside this file."""

import socket

import torch.multiprocessing as mp


def start(function, arguments, world, preloaded):
    """Runs `function(rank, port, *arguments)` in `world` processes that can meet at the port.

    They are copies of one process that has imported the modules `preloaded`: importing torch takes each of them seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.set_forkserver_preload(preloaded)
    mp.start_processes(function, (port, *arguments), nprocs=world, start_method="forkserver")
