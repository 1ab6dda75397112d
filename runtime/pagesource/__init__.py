"""Pages of running or frozen tasks, read and put on a lane as records; and the records' other end.

read.py       pages out of a task, many small ranges with few system calls
wire.py       the records, nothing else
condense.py   which pages need not travel: zeros, and pages that went before
compress.py   whether compressing pays on this lane
send.py       all of it: runs in, records out
receive.py    records in, pages in a pagecache.PageStore
"""
