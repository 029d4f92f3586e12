"""The system call filter of the sandbox, as a classic BPF program: what no program under test has any need of."""

from __future__ import annotations

import struct

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Audit numbers of the processors the filter is written for."""

# Name: (number on x86_64, number on aarch64); None where the processor has no such call.
_Calls = dict[str, tuple[int | None, int | None]]
_DENIED: _Calls = {
    # processes, and reaching into other ones; threads are cloned, and looked at below
    **{"fork": (57, None), "vfork": (58, None), "ptrace": (101, 117), "kcmp": (312, 272)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440)},
    **{"pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424)},
    # sockets, and what else tells programs side by side or the machine something; pairs are looked at below
    **{"socket": (41, 198), "flock": (73, 32), "fanotify_init": (300, 262)},
    **{"inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27)},
    # namespaces and file systems
    **{"unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41)},
    **{"mount": (165, 40), "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433)},
    **{"mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    # large parts of the kernel that are attacked again and again
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    # owners, modes, times and attributes: /dev/null is the machine's own, and root's programs would own it
    **{"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452)},
    **{"chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16)},
    **{"utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88)},
    # memory that no limit counts, and that of others: their segments and queues need no more than a number
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196)},
    **{"shmctl": (31, 195), "semget": (64, 190), "semctl": (66, 191), "semop": (65, 193)},
    **{"semtimedop": (220, 192), "msgget": (68, 186), "msgctl": (71, 187), "msgsnd": (69, 189)},
    **{"msgrcv": (70, 188), "mq_open": (240, 180), "mq_unlink": (241, 181)},
    # the machine
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142)},
    **{"swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60)},
    **{"syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112)},
    **{"adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161)},
    **{"setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58)},
    **{"personality": (135, 92), "modify_ldt": (154, None), "sync": (162, 81), "syncfs": (306, 267)},
}
_DENIED_WITHOUT_NAMESPACES: _Calls = {
    # signals and scheduling of the user's other processes; kill and tgkill are looked at below
    **{"tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)},
    **{"setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119)},
    **{"sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    # what Landlock does not govern
    **{"getxattr": (191, 8), "lgetxattr": (192, 9), "listxattr": (194, 11), "llistxattr": (195, 12)},
    "truncate": (76, 45),
}
_CLONE3 = 435
_NEWER = 453  # calls from here on are not known here; those of x86-64's other set, x32, come long after

_WHOLE = 0xFFFFFFFF
_CLONE_THREAD = 0x10000
_Checks = tuple[tuple[int, int, tuple[int, ...]], ...]
# Allowed only when each of these arguments, masked, is one of the values.
_LIMITED: dict[str, tuple[tuple[int, int], _Checks]] = {
    "clone": ((56, 220), ((0, _CLONE_THREAD, (_CLONE_THREAD,)),)),
    "prlimit64": ((302, 261), ((0, _WHOLE, (0,)),)),  # 0 is the process itself
    # A pair of Unix stream sockets, as asyncio needs it, talks with itself only; a datagram socket with any other.
    "socketpair": ((53, 199), ((0, _WHOLE, (1,)), (1, 0xF, (1,)))),
    # Descriptors, their flags, and locks on records; not leases, notices and signals to others.
    "fcntl": ((72, 25), ((1, _WHOLE, (*range(8), 1030)),)),
    # What terminals, pipes and sockets are asked and told; not what sets the attributes of files.
    "ioctl": ((16, 29), ((1, _WHOLE, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),)),
}
_OWN_ONLY: _Calls = {"kill": (62, 129), "tgkill": (234, 131)}

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL_PROCESS, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_NUMBER, _ARCHITECTURE = 0, 4  # offsets
_ARGUMENTS = 16  # each takes 8 bytes, of which the lower half counts


def program(machine: str, own_pid: int | None = None) -> bytes:
    """The filter for a processor of `MACHINES`: an array of `struct sock_filter`.

    Denied calls fail with EPERM, as processes do; threads are allowed; calls newer than this table fail with ENOSYS.
    With `own_pid`, for use without namespaces, signals reach only that process.
    """
    column = list(MACHINES).index(machine)
    denied = _DENIED if own_pid is None else _DENIED | _DENIED_WITHOUT_NAMESPACES
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, MACHINES[machine], 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER),
        *(_step(_AT_LEAST, _NEWER, 0, 1), _step(_RETURN, _ENOSYS)),
        *(_step(_EQUAL, _CLONE3, 0, 1), _step(_RETURN, _ENOSYS)),  # then clone is called instead
    ]
    for both, checks in _LIMITED.values():
        steps += _only_if(both[column], checks)
    if own_pid is not None:
        for numbers in _OWN_ONLY.values():
            steps += _only_if(numbers[column], ((0, _WHOLE, (own_pid,)),))
    for numbers in denied.values():
        number = numbers[column]
        if number is not None:
            steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _EPERM)]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _only_if(number: int | None, checks: _Checks) -> list[bytes]:
    """The call is allowed when its arguments pass the checks."""
    assert number is not None
    steps = []
    for argument, mask, values in checks:
        steps += [_step(_LOAD, _ARGUMENTS + 8 * argument), _step(_AND, mask)]
        steps += [
            _step(_EQUAL, value, left) for left, value in zip(range(len(values), 0, -1), values, strict=True)
        ]
        steps.append(_step(_RETURN, _EPERM))
    return [_step(_EQUAL, number, 0, len(steps) + 1), *steps, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; a jump's distances count from the next one."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
