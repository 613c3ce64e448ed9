"""One engine per domain, shared by programs that are started apart: a server, its socket, and those who ask it.

For: the command line (``run``, ``attach``, ``detach``, ``status``, ``top``, ``stop``) and ``pageone.merge_self``. May
call ``pageone.engine`` and ``pageone.live``, which only the server process loads: ``client``, ``launch`` and ``own``
need the standard library alone, so that starting a program under PageONE stays quick. Merges nothing itself.

    place     where the socket of an engine is, and that nobody else can have put it there
    protocol  messages: length, then JSON; nothing malformed or oversized gets past it
    members   the processes that an engine is to follow, and their descendants
    server    the engine's process: answers requests, follows members, ends with the last of them
    client    finds the engine of a domain, starts it if there is none, asks it
    launch    becomes the command that was asked for, after telling the engine
    own       an engine of a program's own: ``pageone.merge_self``
"""
