"""Video models that play as a stream.

- `causal_transformer`: Wan's transformer over a whole clip, block-causally, or chunk by chunk over a cache.
- `attention_cache`: keys and values of what the next chunk sees, in constant memory.
- `controls`: the camera's path and the tracks of points, as features of every token.
- `wan_config`, `wan_blocks`, `weights`: sizes, layers and files, as diffusers has them.
"""
