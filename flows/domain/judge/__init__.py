"""The judge: counts of two releases in, a verdict out.

Belongs here: evidence, gates, policy, plan and the arithmetic between them. May not: do input or output,
read a clock, or know drift or the cluster; it can be imported and used without any of the stack. The way in
is `judging.judge` (and `judging.judge_promoted` after 100 %).
"""
