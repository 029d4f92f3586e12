# First thing in the sandboxed interpreter: sets the limits, says so, then becomes the program.
# Arguments: descriptors of the program text and of the pipe to say so, wall-clock seconds of last resort, then one
# number per limit below. Imports as little as possible: this is the start-up cost of every run.
import sys


def _run_program() -> None:
    import builtins
    import posix
    import resource
    from _signal import alarm  # type: ignore[import-not-found]  # signal itself costs 6 ms

    text_descriptor, ready_descriptor, seconds, *numbers = map(int, sys.argv[1:10])
    alarm(seconds)
    kinds = [resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE]
    kinds += [resource.RLIMIT_CORE, resource.RLIMIT_NPROC]
    for kind, wanted in zip(kinds, numbers, strict=True):
        if wanted == resource.RLIM_INFINITY:
            continue
        hard = resource.getrlimit(kind)[1]
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # One CPU second between the catchable limit, which tells us why, and the one that cannot be caught.
        spare = 1 if kind == resource.RLIMIT_CPU and soft != hard else 0
        resource.setrlimit(kind, (soft, soft + spare))
    with open(text_descriptor, "rb") as file:
        text = file.read()
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # usually added by site, which is not loaded
    sys.argv = ["program.py"]
    namespace = sys.modules["__main__"].__dict__
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]
    posix.write(ready_descriptor, b"!")
    posix.close(ready_descriptor)
    exec(compile(text, "program.py", "exec", dont_inherit=True), namespace)


_run_program()
