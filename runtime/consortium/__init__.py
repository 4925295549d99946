"""What the sites of a consortium agree on among themselves, over a server that none of them trusts.

roster      whom a site takes part with; people compare it by telephone
identity    who signs, and whom one believes: the authority's certificates and the site's own roster
keys        how a hand-off key gets from one site to another
epochs      the chain of hand-off keys: who made each, and who is kept from it
evidence    accusations and verdicts, and whom they convict
site        a site's part in all that; ``errands``: when it does it
board       the server's part: it passes on, and asks
"""
