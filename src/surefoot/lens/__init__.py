"""What an update promised, how much of that was signal, and how much came true; without an oracle.

There are two lies. The batch that scores an update is the one it was fitted to (`crossfit`,
`gradient`); and the surrogate counts the old policy's states (`gain`, `ratio`, `shift`).
"""
