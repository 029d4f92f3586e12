"""Getting out: other namespaces and roots, other identities, other processes, devices, the kernel's side doors."""

from __future__ import annotations

from red_team.attack import ANY, STOPPED, Attack, attempts

_CAPABILITIES = """
import ctypes
def capabilities():
    sets = (ctypes.c_uint * 6)()
    ctypes.CDLL(None).capget((ctypes.c_uint * 2)(0x20080522, 0), sets)
    return sum(sets[:2]) + sum(sets[3:5])
"""

ATTACKS = [
    attempts(
        "handles",
        "escape",
        "opens the machine's root by file handles, the way out of containers of 2014",
        "import struct",
        root="call(304, 3, ctypes.create_string_buffer(struct.pack('=IiQ', 8, 1, 2)), 0)",
        own="call(303, -100, b'.', ctypes.create_string_buffer(b'\\x80' + bytes(160)), "
        "ctypes.create_string_buffer(8), 0)",
    ),
    attempts(
        "roots",
        "escape",
        "changes its root and climbs out of it",
        "os.mkdir('jail')",
        chroot="os.chroot('jail')",
        pivot="call(155, b'.', b'jail')",
        again="(os.chroot('jail'), os.chdir('../../../..'), os.chroot('.'))",
    ),
    attempts(
        "namespaces",
        "escape",
        "makes or joins namespaces, by unshare, setns, and clone with a thread's flags",
        user="call(272, 0x10000000)",
        mount="call(272, 0x00020000)",
        net="call(272, 0x40000000)",
        join="call(308, 0, 0)",
        clone="call(56, 0x10000000 | 17, 0, 0, 0, 0)",
        thread="call(56, 0x10000000 | 0x10000, 0, 0, 0, 0)",
        thread_mount="call(56, 0x00020000 | 0x10000 | 0x100 | 0x800, 0, 0, 0, 0)",
        clone3="call(435, ctypes.create_string_buffer(88), 88)",
    ),
    attempts(
        "mounts",
        "escape",
        "mounts memory, /proc and the root, by the old call and the new ones",
        "os.mkdir('mnt')",
        tmpfs="call(165, b'none', b'mnt', b'tmpfs', 0, 0)",
        proc="call(165, b'none', b'mnt', b'proc', 0, 0)",
        bind="call(165, b'/usr', b'mnt', 0, 4096, 0)",
        writable="call(165, 0, b'/usr/lib', 0, 32 | 4096, 0)",
        open="call(428, -100, b'/', 1)",
        attribute="call(467, -100, b'/', 1, 0, 0)",
        fsopen="call(430, b'tmpfs', 0)",
        unmount="call(166, b'/tmp', 2)",
    ),
    attempts(
        "identity",
        "escape",
        "becomes root, gains capabilities, loses its confinement",
        uid="os.setresuid(0, 0, 1)",
        other="os.setuid(12345)",
        groups="os.setgroups([0, 1])",
        capset="call(126, ctypes.create_string_buffer((0x20080522).to_bytes(4, 'little') + bytes(4)), "
        "ctypes.create_string_buffer(b'\\xff' * 24))",
        ambient="call(157, 47, 2, 21, 0, 0)",
        bounding="call(157, 24, 21, 0, 0, 0)",
        personality="call(135, 0x0400000)",
        domain="call(446, -1, 0)",
    ),
    Attack(
        "capabilities-by-exec",
        "escape",
        "replaces itself by a new interpreter, which as root would get its capabilities back",
        _CAPABILITIES
        + "text = '''"
        + _CAPABILITIES
        + "print('got-through' if capabilities() else 'tried')'''\n"
        "if capabilities(): print('got-through')\nos.execv(sys.executable, [sys.executable, '-SEsB', '-c', text])",
    ),
    attempts(
        "programs",
        "escape",
        "starts other programs, those among them that become root",
        su="os.posix_spawn('/usr/bin/su', ['su', '-c', 'id'], {})",
        shell="__import__('subprocess').run(['/bin/sh', '-c', 'echo $mark'], check=True)",
        fork="os.fork()",
        pty="__import__('pty').fork()",
        process="__import__('multiprocessing').Process(target=print).start()",
    ),
    Attack(
        "file-in-memory",
        "escape",
        "runs a program from a file in memory or from its own input, past any list of allowed ones",
        "try: print('got-through', os.memfd_create('x'))\nexcept OSError: pass\n"
        "try: os.pwrite(0, b'#!/bin/sh\\necho got-through\\n', 0); call(322, 0, b'', 0, 0, 0x1000)\n"
        "except OSError: print('tried')",
        ends=ANY,
    ),
    attempts(
        "devices",
        "escape",
        "makes and opens devices: memory, log, terminals, disks",
        "import stat",
        block="os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))",
        char="os.mknod('mem', 0o600 | stat.S_IFCHR, os.makedev(1, 1))",
        mem="open('/dev/mem', 'rb')",
        kmsg="open('/dev/kmsg', 'w')",
        tty="open('/dev/tty')",
        ptmx="open('/dev/ptmx')",
        pts="os.listdir('/dev/pts')",
        fuse="open('/dev/fuse')",
        kvm="open('/dev/kvm')",
    ),
    attempts(
        "device-attributes",
        "escape",
        "changes mode, owner, times and access list of the devices it is given, which are the machine's own",
        mode="os.chmod('/dev/zero', 0o666)",
        mode_open="os.fchmod(os.open('/dev/zero', os.O_RDWR), 0o666)",
        owner="os.chown('/dev/zero', -1, -1)",
        times="os.utime('/dev/zero')",
        times_open="os.utime(os.open('/dev/zero', os.O_RDWR))",
        attribute="os.setxattr('/dev/zero', 'user.x', b'x')",
        access="os.setxattr('/dev/zero', 'system.posix_acl_access', b'\\2\\0\\0\\0')",
        newer="call(452, -100, b'/dev/zero', 0o666, 0)",
        newest="call(463, -100, b'/dev/zero', 0, b'user.x', 0, 0)",
    ),
    attempts(
        "file-attributes",
        "escape",
        "sets the flags of a system's file by ioctl, and makes it unchangeable for good by fs-verity",
        "import fcntl\nfile = os.open('$library', os.O_RDONLY)",
        flags="fcntl.ioctl(file, 0x40086602, bytes.fromhex('$library_flags'))",
        extended="fcntl.ioctl(file, 0x401C5820, bytes(28))",
        verity="fcntl.ioctl(file, 0x40806685, bytes(128))",
        version="fcntl.ioctl(file, 0x40087602, bytes(8))",
        newest="call(469, -100, b'$library', ctypes.create_string_buffer(24), 24, 0)",
    ),
    attempts(
        "keyring",
        "escape",
        "adds keys, joins and names keyrings",
        add="call(248, b'user', b'$mark', b'x', 1, -3)",
        join="call(250, 1, 0)",
        request="call(249, b'user', b'$mark', 0, -3)",
        link="call(250, 8, -4, -3)",
    ),
    attempts(
        "side-doors",
        "escape",
        "opens the kernel's parts that exploits begin with",
        "attribute = ctypes.create_string_buffer(bytes([1] * 8) + bytes(120))",
        uffd="call(323, 1)",
        uring="call(425, 8, ctypes.create_string_buffer(120))",
        bpf="call(321, 5, attribute, 120)",
        perf="call(298, attribute, 0, -1, -1, 0)",
        ldt="call(154, 0, attribute, 16)",
        kexec="call(246, 0, 0, 0, 0)",
        module="call(175, attribute, 16, b'')",
        quota="call(443, 0, 0, 0, 0)",
        notifier="call(300, 4, 0)",
    ),
    attempts(
        "other-call-tables",
        "escape",
        "asks for forbidden calls by the numbers of x32 and by numbers newer than any filter",
        x32_socket="call(0x40000000 + 41, 2, 1, 0)",
        x32_fork="call(0x40000000 + 57)",
        x32_ptrace="call(0x40000000 + 521, 0, 0, 0, 0)",
        newest="call(470, 0, 0, 0, 0)",
        beyond="call(600, 0, 0, 0, 0)",
        negative="call(-1)",
    ),
    attempts(
        "victim",
        "escape",
        "signals, traces, slows and limits a process that is not its own",
        "import resource",
        kill="os.kill($victim, 19)",
        thread="call(234, $victim, $victim, 19)",
        light="call(200, $victim, 19)",
        queued="call(129, $victim, 19, ctypes.create_string_buffer((-1).to_bytes(12, 'little', signed=True), 128))",
        group="os.killpg($victim, 19)",
        trace="call(101, 0x4206, $victim, 0, 0)",
        priority="os.setpriority(os.PRIO_PROCESS, $victim, 7)",
        group_priority="os.setpriority(os.PRIO_PGRP, $victim, 7)",
        affinity="os.sched_setaffinity($victim, {0})",
        limits="resource.prlimit($victim, resource.RLIMIT_NOFILE, (9, 9))",
        io="call(251, 1, $victim, 3 << 13)",
        release="call(448, 0, 0)",
        move="call(256, $victim, 64, 0, 0)",
    ),
    attempts(
        "signal-by-descriptor",
        "escape",
        "names a victim as the owner of a pipe, so that the kernel signals it",
        "import fcntl, socket\na, b = socket.socketpair()",
        owner="fcntl.fcntl(a, fcntl.F_SETOWN, $victim)",
        signal="fcntl.fcntl(a, 10, 19)",
        extended="fcntl.fcntl(a, 15, (0).to_bytes(4, 'little') + ($victim).to_bytes(4, 'little'))",
        by_ioctl="fcntl.ioctl(a, 0x8901, ($victim).to_bytes(4, 'little'))",
        lease="fcntl.fcntl(os.open('$library', 0), 1024, fcntl.F_RDLCK)",
        notice="fcntl.fcntl(os.open('/usr/lib', 0), 1026, 0x80000003)",
    ),
    Attack(
        "swapped-links",
        "escape",
        "swaps a folder and a link to the caller's folder while it ends, so that the clean-up follows",
        "import threading, time\nos.mkdir('a'); os.mkdir('a/x')\nfor i in range(300): open(f'a/x/{i}', 'w').close()\n"
        "os.symlink('$folder', 'b')\ndef swap():\n    while True: os.rename('a', 'c'); os.rename('b', 'a'); "
        "os.rename('c', 'b')\nfor _ in range(2): threading.Thread(target=swap, daemon=True).start()\n"
        "time.sleep(0.05); print('tried', flush=True); os._exit(0)",
    ),
    Attack(
        "crash",
        "escape",
        "crashes in every way, so that the machine's handler of core dumps starts",
        "import resource\nprint('tried', flush=True)\nif resource.getrlimit(resource.RLIMIT_CORE)[1] > 1: "
        "print('got-through', flush=True)\nctypes.string_at(1)",
        ends=STOPPED,
    ),
]
