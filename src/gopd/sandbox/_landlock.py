# Where there are no namespaces this runs in the sandboxed interpreter before the bootstrap: the process confines itself
# with Landlock and the system call filter, for good. Arguments after the bootstrap's: the descriptor of the filter, the
# number in it that stands for the process's own id, the working folder, a folder to hide, then what is readable.
import ctypes
import os
import struct
import sys

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same numbers on x86-64 and aarch64
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # of prctl
_CAPABILITY_VERSION = 0x20080522
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many the kernel's Landlock version knows; later ones 16


def _confine(filter_descriptor: int, stand_in: int, folder: str, hidden: str, readable: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), "the sandbox could not be closed")
        return result

    def rule(rights: int, path: str) -> None:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        beneath = struct.pack("=Qi", rights, descriptor)
        checked(libc.syscall(_ADD, ruleset, 1, beneath, 0))
        os.close(descriptor)

    def allow(path: str) -> None:
        """Reading all beneath it but what is hidden, whose names can be seen all the same."""
        if not os.path.isdir(path):
            rule(_EXECUTE | _READ_FILE, path)
        elif not hidden.startswith(f"{path}/"):
            rule(_EXECUTE | _READ_FILE | _READ_DIR, path)
        else:
            rule(_READ_DIR, path)
            for entry in os.scandir(path):
                if entry.path != hidden and not entry.is_symlink():
                    allow(entry.path)

    version = checked(libc.syscall(_CREATE, None, 0, 1))
    everything = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    # File rights; TCP (since version 4); abstract Unix sockets and signals (since version 6).
    fields = [everything, 3, 3][: 1 + (version >= 4) + (version >= 6)]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = checked(libc.syscall(_CREATE, attributes, len(attributes), 0))
    rule(everything, folder)
    for path in readable:
        allow(path)
    for path in filter(os.path.exists, ("/dev/null", "/dev/zero", "/dev/urandom")):
        rule(_READ_FILE | _WRITE_FILE, path)
    checked(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    # No capability is left, should this be root.
    checked(libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)))
    checked(libc.syscall(_RESTRICT, ruleset, 0))
    os.close(ruleset)
    with open(filter_descriptor, "rb") as file:
        steps = file.read().replace(struct.pack("=I", stand_in), struct.pack("=I", os.getpid()))
    buffer = ctypes.create_string_buffer(steps, len(steps))
    described = struct.pack("@HP", len(steps) // 8, ctypes.addressof(buffer))
    checked(libc.prctl(_SECCOMP, _FILTER, described, 0, 0))


_confine(int(sys.argv[10]), int(sys.argv[11]), sys.argv[12], sys.argv[13], sys.argv[14:])
