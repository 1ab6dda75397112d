"""How fast it is, beside what else there is: each program prints a table, and with --json one more line.

    downtime     how long a program stands still: warm, cold, lazy; beside raw CRIU, runc and podman
    total        how long a whole move takes beside sending its bytes through ssh, and what memory ckpt needs
    throughput   bytes per second of each lane, for memory of several kinds
    tracking     what it costs a program to have its written memory found
    service      what the clients of Redis and PostgreSQL notice of a migration
    frozen       where the milliseconds of the frozen window go
    peers        sets up runc and podman for downtime

docs/benchmarks.md tells how they measure. `make bench` runs all of them.
"""
