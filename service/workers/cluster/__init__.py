"""Tasks on the nodes of a Ray cluster.

- ``ray_executor``: starts tasks there. ``ray_run`` follows one of them from the server.
- ``ray_slot``: the place of one task, on a node. ``slot_pool``: the slots of this server.
- ``ray_connection``: the connection of this process to the cluster.
- ``ray_search``: finds the slots that earlier processes of the server have left.
"""
