"""One container on one host: namespaces, cgroups, root file system, network, security, CRIU."""
