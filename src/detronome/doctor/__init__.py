"""The doctor of the environment: what is installed and the machine it runs on, and what pasted error texts mean.

Nothing here imports a package that could be broken: what has to be called is called in a child process (`child`), which
reports facts; rules (`packages`, `calls`, `machine`) turn facts into findings. So the doctor works without torch too.
"""
