"""Fresh rollouts along an update: what it promised, what it got, and how far one may go."""
