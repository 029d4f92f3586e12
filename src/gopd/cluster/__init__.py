"""The three roles as groups of Ray actors, for one machine or many: the same loop, the same recipe.

`nodes` finds a cluster and checks that the recipe fits it; `placement` says which actor gets which devices; `actors`
are what runs there; `watch` waits for actors and ends those that hang; `sampling`, `scoring` and `learning` make a
group look like one role; `roles` starts them all.
"""
