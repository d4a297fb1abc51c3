/* sethostname(2) and its like are called in libc as they are. */
