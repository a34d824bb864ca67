"""One block of speculative decoding: draft a tree, score it with one target forward, verify, commit.

Read in this order: `shapes`, `tree`, `strategies`, `grow`, `verify`, `kv_cache`, `loop`. `README.md` draws an example.

Glossary
    block           one call of the target behind the prompt's prefill, and the tokens that it yields
    budget N        draft tokens that the target processes in a block: the nodes of the tree
    root            the last token that is committed; its row is forwarded with the tree, and is no draft
    previous        the token before the root, which the drafter is given again in each block
    node, row       a draft token; rows of a tree are numbered 0 for the root and 1 + n for node n
    frontier        the deepest level that is grown so far, whose nodes get children next
    p, q            next-token distributions of the target and of the drafter, after temperature and top-p
    accepted        a draft that verification keeps; the accepted drafts are a path from the root
    recovered       the block's last token where a node's drafts were all rejected: drawn from the rule's residual
    bonus           the block's last token where a leaf was accepted: drawn from p at that leaf
    residual        the distribution of the recovered token
    prefix length   the root's position: the number of tokens before it
    KV slot         a column of a KV cache: one for the token before the root, for the root, for each node, and for
                    each position of the prefix
    commit          move the accepted path's keys and values from their slots to their positions

Shapes: B sequences, N nodes, E of them expanded (all but the last level), L levels, K children, V tokens.
"""
