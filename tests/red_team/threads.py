"""How many threads a program can start by bare system calls, on one stack for all: prints the number; 5000 are tried.

x86-64 only. No limit on memory counts them, and their numbers are the machine's.
"""

from __future__ import annotations

from gopd.sandbox import Limits
from gopd.sandbox.process import launch

_CODE = """
import ctypes, mmap, os
page = mmap.mmap(-1, 4096, prot=7)
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
number = lambda value, size: value.to_bytes(size, "little")
flags = 0x10000 | 0x100 | 0x200 | 0x400 | 0x800 | 0x40000  # a thread, all shared
code = bytes.fromhex("5553bb") + number(5000, 4)  # push rbp; push rbx; mov ebx, 5000
loop = b"\\xb8\\x38\\0\\0\\0\\xbf" + number(flags, 4)  # mov eax, clone; mov edi, flags
loop += b"\\x48\\xbe" + number(start + 4000, 8)  # mov rsi, stack
loop += bytes.fromhex("31d2 4d31d2 4d31c0 0f05 85c0")  # no more arguments; syscall; test eax, eax
loop += bytes.fromhex("740b 7804 ffcb")  # jz child; js done; dec ebx
code += loop + b"\\x75" + number(256 - len(loop) - 2, 1)  # jnz loop
code += bytes.fromhex("89d8 5b5d c3")  # done: mov eax, ebx; pop rbx; pop rbp; ret
code += bytes.fromhex("b822000000 0f05 ebf7")  # child: pause for ever
page.write(code)
print(5000 - ctypes.CFUNCTYPE(ctypes.c_int)(start)(), flush=True)
os._exit(0)
"""


def main() -> None:
    outcome = launch("namespaces", _CODE, b"", Limits())
    print(outcome.stdout.decode().strip(), outcome.stderr.decode())


if __name__ == "__main__":
    main()
