"""The essay's claims as experiments on finite MDPs, with the rules that train elsewhere."""
