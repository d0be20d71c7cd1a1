"""Fresh episodes along one policy update: what it promised, what it gained, how far is safe.

`api` has the two entry points. A run's update comes from `updates`, which finds a checkpoint near
it and repeats iterations. `players` play episodes of any policy with common random numbers;
`policies` is their interface to it. `rows` has advantages of the old policy's episodes, and scores
of other policies on them. `sweep` spends the budget of steps, `measurements` holds the results,
`conclude` turns them into figures with intervals, and `result` is the outcome, with its words.
"""
