"""The least container whose memory checks itself, and CRIU run on it as a warm move does.

Own pid and mount namespaces (with a user namespace if asked), a root directory with one static program. The network
namespace is the host's, so that CRIU has none to dump.
"""
