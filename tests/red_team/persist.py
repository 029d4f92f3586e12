"""Leaving something behind: files, code that others will run, processes, segments, keys."""

from __future__ import annotations

from red_team.attack import ENDED, Attack, attempts

_DAEMON = """
import time
for fork in (os.fork, lambda: call(57), lambda: call(56, 17, 0, 0, 0, 0)):
    try:
        if fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        print("got-through", flush=True)
    except OSError:
        pass
print("tried")
"""

ATTACKS = [
    attempts(
        "files",
        "persist",
        "writes files where the next program, the caller or the user would find them",
        "def write(path): return open(path, 'w').write('$mark')",
        tmp="write('/tmp/../tmp/../$mark')",
        temporary="write('$temporary/$mark')",
        shm="write('/dev/shm/$mark')",
        var="write('/var/tmp/$mark')",
        home="write('$home/$mark')",
        caller="write('$folder/$mark')",
        working="write('$tests/$mark')",
        run="write('/run/$mark')",
        root="write('/$mark')",
        dev="write('/dev/$mark')",
    ),
    attempts(
        "code-of-others",
        "persist",
        "plants modules, path files and start-up files that other interpreters would run",
        "import sysconfig\nlib = sysconfig.get_path('stdlib')\ndef write(path): return open(path, 'w').write('$mark')",
        module="write(lib + '/$mark.py')",
        pth="write(lib + '/site-packages/$mark.pth')",
        sitecustomize="write(lib + '/$mark-sitecustomize.py')",
        pyc="write(lib + '/__pycache__/$mark.cpython-311.pyc')",
        usercustomize="os.makedirs('$home/.local/lib/$mark')",
        startup="write('$home/$mark.pythonrc')",
        package="write('$package/$mark.py')",
        stdlib="open(lib + '/os.py', 'a')",
        interpreter="open(sys.executable, 'r+b')",
        renamed="os.rename(lib + '/this.py', lib + '/$mark.py')",
    ),
    attempts(
        "schedules",
        "persist",
        "plants jobs and services",
        "def write(path): return open(path, 'w').write('$mark')",
        cron="write('/etc/cron.d/$mark')",
        spool="write('/var/spool/cron/crontabs/$mark')",
        service="write('/etc/systemd/system/$mark.service')",
        user_service="os.makedirs('$home/.config/systemd/$mark')",
        profile="write('/etc/profile.d/$mark.sh')",
        core="open('/proc/sys/kernel/core_pattern', 'w')",
    ),
    Attack("daemon", "persist", "forks twice and leaves a daemon of its own session", _DAEMON),
    Attack(
        "thread-after-the-end",
        "persist",
        "ends its main thread alone and goes on in another",
        "import threading, time\nprint('tried', flush=True)\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)",
        ends=frozenset({"timeout"}),
        seconds=1.0,
    ),
    attempts(
        "segments",
        "persist",
        "makes shared memory, queues and semaphores that outlive it, and removes the caller's",
        make="call(29, 0x7e57, 4096, 0o1600)",
        shared="__import__('multiprocessing.shared_memory').shared_memory.SharedMemory(create=True, size=64)",
        semaphore="__import__('multiprocessing').Semaphore()",
        remove="call(31, $shm, 0, 0)",
        remove_queue="call(71, $msg, 0, 0)",
        send="call(69, $msg, ctypes.create_string_buffer((1).to_bytes(8, 'little') + b'hello', 16), 5, 0o4000)",
        remove_semaphores="call(66, $sem, 0, 0, 0)",
        set="call(66, $sem, 0, 16, 9)",
        operate="call(65, $sem, ctypes.create_string_buffer(bytes([0, 0, 1, 0, 0, 0])), 1)",
        unlink="call(241, b'$mark')",
    ),
    Attack(
        "stubborn-folder",
        "persist",
        "leaves a folder that is hard to remove: locked, deep, with pipes, sockets and odd names",
        "import socket\nfor name in ('-rf', '--', '\\n', '*', '\\\\', ' ', '\\x80'.encode().decode('utf-8')):\n"
        "    os.mkdir(name); open(os.path.join(name, '-f'), 'w').close()\nos.mkfifo('pipe')\na, b = "
        "socket.socketpair()\n"
        "try: a.bind('socket')\nexcept OSError: pass\nfor _ in range(100): os.mkdir('d'); os.chdir('d')\n"
        "os.mkdir('closed', 0)\nprint('tried')",
        ends=ENDED,
    ),
    attempts(
        "caller-files",
        "persist",
        "changes, renames, truncates and removes the caller's files",
        append="open('$secret_file', 'a').write('x')",
        truncate="os.truncate('$secret_file', 0)",
        remove="os.remove('$secret_file')",
        rename="os.rename('$secret_file', '$folder/$mark')",
        mode="os.chmod('$secret_file', 0o777)",
        times="os.utime('$secret_file', (0, 0))",
        attribute="os.setxattr('$secret_file', 'user.$mark', b'x')",
        attribute_gone="os.removexattr('$secret_file', 'user.secret')",
        swap="call(316, -100, b'$secret_file', -100, b'$mark', 2)",
    ),
]
