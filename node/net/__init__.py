"""The network as the market sees it: peers, gossip, requests and verified transfers over libp2p."""
