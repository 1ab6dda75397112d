"""Two stock Debian machines for tests, emulated by QEMU: `make test-vm`, or by hand `tests/vm/lab`.

    settings   what a guest is made of, where things are cached
    mirror     the machine's own Debian mirror: which versions an image would get, and its source list
    image      a suite's image: root file system, kernel, initial RAM disk; cached by versions
    cargo      what a guest is given on a second disk: this checkout and the wheels that pip needs
    installed  an image in which ckpt was installed the way the README says, with the tests beside it
    segment    the wire between the guests: a bridge in a network namespace of its own
    qmp        QEMU's control socket
    guest      one guest: start, run, copy, stop, cut the power
    suite_*.py the tests; pytest gets them by name, so that nothing else collects them

See docs/vm-lab.md.
"""
