"""Secure aggregation: the coordinator learns the sum of the sites' updates and nothing else.

The protocol is Bonawitz et al. 2017 (doi:10.1145/3133956.3133982), in its variant against an active
server, with the threshold rule of section 6.2 there and the complete graph of sites (Bell et al.
2020, doi:10.1145/3372297.3417885, thins it out for thousands of clients; institutions are few).
Each site hides its noisy integers under one mask shared with each other site, which cancel in the
sum, and one of its own. Both kinds come from seeds that every site has shared out among the others,
so that a threshold of survivors can take away exactly what is left in the sum: the own mask of a
site whose update is in it, or the shared masks of a site that dropped out, and never both.

    site      keys ─▶ shares ─▶ masked update ─▶ confirmation ─▶ unmasking
    everyone sees   roster    who has shares     who survived      confirmations

Everything here is pure: states and messages are frozen dataclasses, randomness is passed in
(except inside pycryptodome's Shamir scheme, which draws from the operating system), and whoever
holds the states moves the messages. No primitive is our own: X25519, HKDF-SHA256, AES-256-CTR and
AES-256-GCM are `cryptography`'s, Shamir's scheme is pycryptodome's, signatures `privacy.signing`'s.
"""
