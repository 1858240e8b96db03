"""No network in this process: what names another machine is noted with its stack, and fails.

Python imports it by name from a folder of PYTHONPATH, in every child process too. AF_UNIX stays
allowed: these are files of this machine, by which data loaders pass tensors and wandb reaches its
own process.
"""

import os
import socket
import sys
import traceback

LOG = os.environ["NETWORK_LOG"]


def refuse(what):
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"{what} in {sys.argv}\n{''.join(traceback.format_stack()[:-1])}\n")
    raise OSError(f"no network in this test: {what}")


def refusing(name):
    return lambda *words, **more: refuse(f"{name}{words}")


class LocalSocket(socket.socket):
    def connect(self, address):
        self.only_local("connect", address)
        return super().connect(address)

    def connect_ex(self, address):
        self.only_local("connect_ex", address)
        return super().connect_ex(address)

    def sendto(self, data, *words):
        self.only_local("sendto", words[-1])
        return super().sendto(data, *words)

    def sendmsg(self, buffers, *words):
        if len(words) == 3:
            self.only_local("sendmsg", words[-1])
        return super().sendmsg(buffers, *words)

    def only_local(self, name, address):
        if self.family != socket.AF_UNIX:
            refuse(f"{name}({address})")


socket.socket = LocalSocket
for each in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo"):
    setattr(socket, each, refusing(each))
