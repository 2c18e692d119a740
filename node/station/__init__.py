"""What every node has, whatever its role: keys, a journal, a book, blobs, the network.

Agents and brokers are stations with different answers to the same kinds of request.
"""
